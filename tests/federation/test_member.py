"""A site in a study across hospitals: what it takes part in, what it answers, and what it does not."""

from __future__ import annotations

import contextlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import Federation, recorded, table_sites, write_image_study, write_table_study
from polyclinic.communication.message import Message
from polyclinic.data.opening.agreement import agree
from polyclinic.data.opening.census import Census
from polyclinic.data.opening.source import Source
from polyclinic.engine import LocalEngine
from polyclinic.errors import FederationError, PolyclinicError, StudyError
from polyclinic.federation.audit_log import AUDIT_LOG, verify
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.ends.agreed import Agreed
from polyclinic.federation.ends.policy import approve, refusals
from polyclinic.federation.job import study_hash
from polyclinic.federation.kits import make_kits
from polyclinic.federation.remote.calls import digest, size
from polyclinic.federation.site_file import SITE_FILE, Policy, SiteFile
from polyclinic.site.messages import Agree, Open, Retain, Start
from polyclinic.study.runner import run_study
from polyclinic.study.study import Study

pytest.importorskip("nvflare")

RESEARCHER = "maria@hospital.org"


@pytest.fixture(scope="module")
def startup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = {"consortium": "a", "coordinator": {"host": "localhost"}, "sites": ["b"], "researchers": [RESEARCHER]}
    return make_kits(Consortium.model_validate(entries), tmp_path_factory.mktemp("kits"))["b"] / "startup"


@pytest.fixture
def kit(tmp_path: Path, startup: Path) -> Path:
    folder = tmp_path / "kit"
    (folder / "local").mkdir(parents=True)
    (tmp_path / "export").mkdir()
    shutil.copytree(startup, folder / "startup")
    write_table_study(tmp_path / "export", {"Aachen": 24})
    write_site_file(folder)
    return folder


def write_site_file(kit: Path, **changes: Any) -> None:
    entries = {"name": "Aachen", "device": "cpu", "data": {"cases.csv": "../../export/cases.csv"}} | changes
    entries["policy"] = {"patients": 1, "floor": 1} | entries.get("policy", {})
    (kit / "local" / SITE_FILE).write_text(yaml.safe_dump(entries))


def write_study(kit: Path, **changes: Any) -> Path:
    (kit / "job").mkdir(exist_ok=True)
    (kit / "unused").mkdir(exist_ok=True)
    entries = write_table_study(kit / "unused", {"Aachen": 4}) | {"methods": ["fedavg"]}
    entries["evaluation"]["predictions"] = "sites"
    for key, value in changes.items():
        entries[key] = {**entries[key], **value} if isinstance(entries.get(key), dict) else value
    path = kit / "job" / "study.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def member(kit: Path, study: Path) -> Any:
    from polyclinic.federation.ends.site import Member

    return Member(kit, "site-1", study, RESEARCHER)


def opening(study: Path, **changes: Any) -> Message:
    declaration = Study.read(study, named=True).declaration
    asked = Open(data=declaration.data, target=declaration.target)
    return Message(asked.model_copy(update=changes).fields())


def asked(site: Any, function: str, message: Message) -> Message:
    return Message.from_pieces(site.answer(function, message.to_pieces()))


def test_data_are_found_by_their_names(kit: Path) -> None:
    study = write_study(kit)
    site = member(kit, study)
    assert asked(site, "hello", Message()).fields == {
        "site": "Aachen",
        "version": version("polyclinic"),
        "plugins": {},
    }
    census = asked(site, "open", opening(study)).fields
    assert census["counts"]["found"] == 24 if "counts" in census else census
    assert str(kit.parent) not in str(census)


def test_a_variable_is_a_name_of_data(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT", "/nowhere")  # what it means on the coordinator's machine
    write_site_file(kit, data={"EXPORT": "../../export"})
    study = write_study(kit, data={"table": "${EXPORT}/cases.csv"})
    asked(member(kit, study), "open", opening(study))


@pytest.mark.parametrize("name", ["cases.csv/../other.csv", "../../../export/other.csv", "/etc/hostname", "other.csv"])
def test_names_of_data_lead_nowhere_else(kit: Path, name: str) -> None:
    (kit.parent / "export" / "other.csv").write_text((kit.parent / "export" / "cases.csv").read_text())
    study = write_study(kit, data={"table": name})
    with pytest.raises(PolyclinicError, match="P201") as error:
        asked(member(kit, study), "open", opening(study))
    assert str(kit.parent) not in str(error.value)


def test_a_study_writes_nothing_beside_the_data(kit: Path) -> None:
    write_site_file(kit, data={"export": "../../export"})
    for cache in ("export/cache", "export", "../elsewhere", "/tmp/elsewhere"):  # noqa: S108 - refused
        study = write_study(kit, data={"table": "export/cases.csv", "cache": cache})
        with pytest.raises(PolyclinicError, match=r"P201 `data: \{cache: ...\}` names a place outside"):
            asked(member(kit, study), "open", opening(study))
    assert sorted(path.name for path in (kit.parent / "export").iterdir()) == ["cases.csv"]
    study = write_study(kit, data={"table": "export/cases.csv", "cache": "prepared"})
    asked(member(kit, study), "open", opening(study))


def test_a_bundle_is_not_looked_for(kit: Path) -> None:
    study = write_study(kit)
    entries = yaml.safe_load(study.read_text()) | {"model": {"bundle": {"path": str(kit.parent / "export")}}}
    study.write_text(yaml.safe_dump(entries))
    with pytest.raises(PolyclinicError, match=r"P104 .*A bundle is read from files of one machine"):
        member(kit, study)


def test_a_link_in_the_data_leads_nowhere_else(kit: Path) -> None:
    (kit.parent / "secret.csv").write_text((kit.parent / "export" / "cases.csv").read_text())
    (kit.parent / "export" / "link.csv").symlink_to(kit.parent / "secret.csv")
    write_site_file(kit, data={"export": "../../export"})
    study = write_study(kit, data={"table": "export/link.csv"})
    with pytest.raises(PolyclinicError, match=r"P201 .*outside the folder"):
        asked(member(kit, study), "open", opening(study))


def test_a_message_that_is_not_of_the_study_is_refused(kit: Path) -> None:
    study = write_study(kit)
    site = member(kit, study)
    other = Study.read(study, named=True).declaration.data.model_copy(update={"features": ["patient"]})
    with pytest.raises(FederationError, match=r"P604 Site Aachen does not take part any longer: .*other data"):
        asked(site, "open", opening(study, data=other))
    with pytest.raises(PolyclinicError, match="P401"):
        asked(site, "start", Message({"task": "classification"}))
    for function, words in (("predict", "predictions"), ("overlays", "overlays"), ("model", "personal models")):
        with pytest.raises(FederationError, match=f"asks to {function}, and {words} may not leave"):
            asked(site, function, Message())
    with pytest.raises(PolyclinicError, match="P401"):
        asked(site, "train", Message())
    with pytest.raises(PolyclinicError, match="P401 A message asks for 'mine bitcoin'"):
        asked(site, "mine bitcoin", Message())
    with pytest.raises(PolyclinicError, match="P401 What came to site Aachen is no message"):
        site.answer("open", [b"no message"])


def test_another_training_than_the_study_has_is_refused(kit: Path) -> None:
    federation = Federation(table_sites({"Aachen": 12, "Bonn": 12}))
    with recorded(federation.engine) as found:
        federation.rounds()
    start = next(request for function, _, request, _ in found if function == "start")
    assert Start.model_validate(start.fields).model != Study.read(write_study(kit)).declaration.model_part
    with pytest.raises(FederationError, match=r"P604 .*starts another training than the study has"):
        asked(member(kit, write_study(kit)), "start", start)


def test_a_site_with_too_few_patients_does_not_take_part(kit: Path) -> None:
    """It says so before it says anything of its tables."""
    write_site_file(kit, policy={"patients": 25})
    study = write_study(kit)
    with pytest.raises(FederationError, match="P604 Site Aachen does not take part: it has too few patients") as error:
        asked(member(kit, study), "open", opening(study))
    assert "24" not in str(error.value)
    write_site_file(kit, policy={"patients": 24})
    site = member(kit, study)
    census = Census.model_validate(asked(site, "open", opening(study)).fields)
    declaration = Study.read(study, named=True).declaration
    agreed = agree({"Aachen": census}, declaration.data, declaration.target)
    message = Message(Agree(agreement=agreed, notes=True).fields())
    assert asked(site, "agree", message).fields["patients"] == 24
    site.policy = site.policy.model_copy(update={"patients": 25})  # as where images can't be read
    with pytest.raises(FederationError, match="P604 Site Aachen does not take part: it has too few patients"):
        asked(site, "agree", message)


@pytest.mark.parametrize(
    ("policy", "study", "words"),
    [
        ({"tasks": ["segmentation"]}, {}, "the task classification is not allowed"),
        ({"methods": ["single"]}, {"methods": ["fedavg", {"fedprox": {"mu": 1.0}}]},
         "the methods fedavg, fedprox are not allowed"),
        ({"methods": ["fedavg"]}, {"methods": [{"scaffold": {"label": "fedavg"}}]},
         "the method scaffold is not allowed"),
        ({"models": ["logistic"]}, {}, "the model mlp is not allowed"),
        ({"metrics": ["auc"]}, {}, "the metric acc is not allowed"),
        ({"parts": ["proximal"]}, {"methods": ["fedavg", "scaffold"]}, "the part control_variates is not allowed"),
        ({"protection": ["weight_decay_noise"]}, {"methods": ["single", "fedavg"]},
         "fedavg is without weight_decay_noise"),
        ({"protection": ["secure_sum"]},
         {"methods": ["single", {"fedavg": {"channel": ["secure_sum"], "label": "summed"}}, "fedprox"]},
         "fedprox is without secure_sum"),
        ({"privacy": {"epsilon": 8}},
         {"methods": ["single", {"fedavg": {"channel": ["clip", {"gaussian_noise": {"noise": 9}}], "label": "noisy"}},
                      {"fedavg": {"channel": ["clip", {"central_noise": {"noise": 9}}], "label": "trusting"}}],
          "model": {"mlp": {"hidden": [4]}}}, "trusting has no noise that protects a patient"),
        ({"rounds": 2}, {}, "3 rounds are more than 2"),
        ({"rounds": 3}, {"final_model": {"method": "fedavg", "rounds": 9}}, "9 rounds are more than 3"),
        ({"final_models": False}, {"final_model": "fedavg"}, "it ends with a model that is used"),
        ({}, {"evaluation": {"predictions": "coordinator"}}, "predictions of single cases may not leave"),
        ({"floor": 20}, {"evaluation": {"disclosure_floor": 10}}, "`disclosure_floor: 10` is less than 20"),
        ({"researchers": ["someone@else.org"]}, {}, "maria@hospital.org may not ask for studies"),
    ],
)  # fmt: skip
def test_what_a_policy_does_not_allow_is_refused(
    kit: Path, policy: dict[str, Any], study: dict[str, Any], words: str
) -> None:
    write_site_file(kit, policy=policy)
    with pytest.raises(FederationError, match=f"P604 Site Aachen does not take part: .*{words}"):
        member(kit, write_study(kit, **study))
    write_site_file(kit)
    if "predictions" not in words:
        member(kit, write_study(kit, **study))


def test_a_site_s_own_model_goes_to_other_sites_only_if_its_policy_says_so(kit: Path) -> None:
    study = write_study(kit, methods=["fedavg", "fedsm"])
    with pytest.raises(FederationError, match=r"P604 .*: fedsm sends .* own model to other sites \(super_model\)\."):
        member(kit, study)
    write_site_file(kit, policy={"personal_models": True})
    member(kit, study)


@pytest.mark.parametrize(
    ("function", "changes", "words"),
    [
        ("open", {"subgroups": ["diagnosis"]}, "asks for other data"),
        ("agree", {"agreement": {"features": ["patient"]}}, "agrees on other features"),
        ("agree", {"agreement": {"values": {"patient": ["p1", "p2"]}}}, "agrees on other values"),
        ("agree", {"agreement": {"spellings": {"diagnosis": {"yes": "no"}}}}, "agrees on other values"),
        ("agree", {"agreement": {"numeric": ["patient"]}}, "agrees on other covariates"),
        ("agree", {"agreement": {"labels": None}}, "agrees on other classes"),
        ("agree", {"agreement": {"subgroups": {"patient": {"p1": "p1"}}}}, "agrees on other subgroups"),
        ("agree", {"agreement": {"patch": {"size": [8, 8, 8]}}}, "agrees on other volumes"),
        ("prepare", {"steps": [["common_scaling", {}]]}, "prepares the cases in another way"),
        ("prepare", {"classes": 3}, "prepares the cases in another way"),
        ("prepare", {"augmentation": ["flip"]}, "prepares the cases in another way"),
        ("prepare", {"split_seed": 1}, "splits the cases in another way"),
        ("prepare", {"holdout": 0.5, "folds": None}, "splits the cases in another way"),
        ("prepare", {"fold": 7}, "splits the cases in another way"),
        ("prepare", {"final": True}, "splits the cases in another way"),
        ("prepare", {"fold": 2, "final": True}, "splits the cases in another way"),
        ("start", {"parts": [["mean", {}], ["star", {}], ["local", {}], ["proximal", {}]]}, "another training"),
        ("start", {"share": ["weight"]}, "another training"),
        ("start", {"seed": 5}, "another training"),
        ("start", {"work": {"batch_size": 1}}, "another training"),
        ("start", {"work": {"kind": "gradient"}}, "another training"),
        ("start", {"model": ["logistic", {}]}, "another training"),
        ("start", {"networks": [{"model": ["logistic", {}], "size": 4}]}, "another training"),
        ("train", {"round": 3}, "more rounds than 3"),
    ],
)  # fmt: skip
def test_a_message_that_the_study_does_not_have_is_refused(
    kit: Path, function: str, changes: dict[str, Any], words: str
) -> None:
    study = write_study(kit)
    site = member(kit, study)
    engine = LocalEngine(["Aachen"], source=Source(kit.parent / "export", site="Aachen"))
    asked_for = dict[str, Message]()
    with recorded(engine) as messages, contextlib.suppress(Exception):
        run_study(Study.read(study), kit / "out", engine=engine)
    for name, _, request, _ in messages:
        asked_for.setdefault(name, request)
    for name in ("open", "agree", "prepare", "start", "train"):
        if name == function:
            fields = {**asked_for[name].fields}
            for key, value in changes.items():
                fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
            with pytest.raises(FederationError, match=words):
                asked(site, name, Message(fields, asked_for[name].tensors))
        asked(site, name, asked_for[name])


def test_a_site_is_told_its_own_network_and_those_of_the_study(kit: Path) -> None:
    study = write_study(kit, methods=["single"], networks={"Aachen": "logistic"})
    engine = LocalEngine(["Aachen"], source=Source(kit.parent / "export", site="Aachen"))
    with recorded(engine) as messages, contextlib.suppress(Exception):
        run_study(Study.read(study), kit / "out", engine=engine)
    start = next(Start.model_validate(request.fields) for name, _, request, _ in messages if name == "start")
    declaration = Study.read(study, named=True).declaration
    assert Agreed(declaration, "Aachen").refusal(start) == ""
    assert "another training" in Agreed(declaration, "Bonn").refusal(start)
    for change in ({"model": declaration.model_part}, {"networks": []}, {"networks": start.networks[:1]}):
        assert "another training" in Agreed(declaration, "Aachen").refusal(start.model_copy(update=change))


def test_a_model_is_made_only_where_the_study_says_so(kit: Path) -> None:
    without, within = (
        Agreed(Study.read(write_study(kit, **more), named=True).declaration, "Aachen")
        for more in ({}, {"final_model": {"method": "fedavg", "rounds": 5}})
    )
    assert "makes a model, and the study none" in without.refusal(Retain(model="0" * 16))
    assert within.refusal(Retain(model="0" * 16)) == ""
    assert (without.rounds, within.rounds) == (3, 5)


def test_a_training_with_another_budget_is_not_the_study_s(kit: Path) -> None:
    """How many trainings share it is not judged: whatever is said of that, the ledger keeps ε."""
    noisy = {"fedavg": {"channel": ["clip", "gaussian_noise"], "label": "noisy"}}
    own = {"epsilon": 4.0, "delta": 0.001, "over": "study"}
    study = write_study(kit, methods=[noisy], privacy=own, model={"mlp": {"hidden": [4]}})
    engine = LocalEngine(["Aachen"], source=Source(kit.parent / "export", site="Aachen"))
    with recorded(engine) as messages, contextlib.suppress(Exception):
        run_study(Study.read(study), kit / "out", engine=engine)
    start = next(Start.model_validate(request.fields) for name, _, request, _ in messages if name == "start")
    agreed = Agreed(Study.read(study, named=True).declaration, "Aachen")

    def refusal(**changes: Any) -> str:
        assert start.privacy is not None
        return agreed.refusal(start.model_copy(update={"privacy": start.privacy.model_copy(update=changes)}))

    assert refusal() == refusal(trainings=1) == ""
    for wrong in ({"epsilon": 9.0}, {"epsilon": None}, {"delta": 0.1}, {"over": "training"}):
        assert "another training" in refusal(**wrong), wrong
    assert "another training" in agreed.refusal(start.model_copy(update={"privacy": None}))


def test_sites_agree_once(kit: Path) -> None:
    """Else counts of classes that are put together in other ways would tell of single patients."""
    study = write_study(kit)
    site = member(kit, study)
    census = Census.model_validate(asked(site, "open", opening(study)).fields)
    declaration = Study.read(study, named=True).declaration
    found = agree({"Aachen": census}, declaration.data, declaration.target)
    asked(site, "agree", Message(Agree(agreement=found, notes=True).fields()))
    asked(site, "agree", Message(Agree(agreement=found, notes=True).fields()))
    other = found.model_copy(update={"labels": dict.fromkeys(found.labels or {}, 0)})
    with pytest.raises(FederationError, match="agrees on something else than one before"):
        asked(site, "agree", Message(Agree(agreement=other, notes=True).fields()))


def test_a_site_works_for_as_long_as_its_policy_allows(kit: Path) -> None:
    study = write_study(kit)
    write_site_file(kit, policy={"hours": 1e-9})
    site = member(kit, study)
    asked(site, "open", opening(study))
    with pytest.raises(FederationError, match=r"P604 Site Aachen .*has worked for 1e-09 hours"):
        asked(site, "open", opening(study))
    write_site_file(kit, policy={"hours": 3.0})
    folder = next((kit / "studies").iterdir())
    (folder / "hours.json").write_text(json.dumps({"seconds": 10_799.0}))  # of runs before
    site = member(kit, study)
    asked(site, "open", opening(study))
    site.hours.add(20.0)
    with pytest.raises(FederationError, match="3 hours"):
        asked(member(kit, study), "open", opening(study))


@pytest.mark.parametrize("task", ["segmentation", "reconstruction"])
def test_pictures_of_cases_are_asked_for_by_studies_of_images_only(tmp_path: Path, task: str) -> None:
    entries = write_image_study(tmp_path, {"Aachen": 4})
    entries["evaluation"]["predictions"] = "coordinator"
    if task == "reconstruction":
        del entries["data"]["mask"]
        entries["data"]["undersampling"] = {"acceleration": 4}
        entries |= {"task": task, "model": {"unrolled": {}}}
    found = Study.of(entries, tmp_path).declaration
    refused = list(refusals(Policy(predictions=True), found, RESEARCHER))
    assert any("pictures of single cases" in one for one in refused)
    assert not list(refusals(Policy(predictions=True, overlays=True), found, RESEARCHER))


def test_few_draws_are_refused_before_a_study_is_handed_in(kit: Path) -> None:
    """Between hospitals sites keep their predictions, unless it is said otherwise, and refuse so few draws."""
    study = write_study(kit, evaluation={"bootstrap": 50, "predictions": None})
    with pytest.raises(StudyError, match=r"P104 study.yaml.*100 draws or more"):
        Study.read(study, named=True)
    assert Study.read(study).declaration.evaluation.bootstrap == 50
    Study.read(write_study(kit, evaluation={"bootstrap": 50, "predictions": "coordinator"}), named=True)


def test_a_study_waits_until_this_very_file_is_approved(kit: Path) -> None:
    write_site_file(kit, policy={"approval": "person"})
    study = write_study(kit)
    mark = study_hash(study.read_text())
    with pytest.raises(FederationError, match=f"a person there must approve the study {mark[:12]}"):
        member(kit, study)
    with pytest.raises(FederationError, match="0 studies that wait begin with"):
        approve(kit, "f" * 12)
    with pytest.raises(FederationError, match=f"Waiting: {mark[:12]}"):
        approve(kit, mark[:4])  # it may be another's, too
    assert approve(kit, mark[:12]).read_text() == study.read_text()
    member(kit, study)
    with pytest.raises(FederationError, match="does not take part yet"):
        member(kit, write_study(kit, training={"rounds": 4}))


def test_all_that_left_is_in_the_audit_log(kit: Path) -> None:
    study = write_study(kit)
    site = member(kit, study)
    answer = site.answer("open", opening(study).to_pieces())
    with pytest.raises(FederationError):
        asked(site, "predict", Message())
    assert verify(kit).lines == 3
    joined, opened, refused = map(json.loads, (kit / AUDIT_LOG).read_text().splitlines())
    mark = study_hash(study.read_text())
    assert (joined["event"], joined["study"], joined["researcher"]) == ("study joined", mark, RESEARCHER)
    assert (opened["event"], opened["function"], opened["left"]["bytes"]) == ("answered", "open", size(answer))
    assert opened["left"]["sha256"] == digest(answer)
    assert (refused["event"], refused["function"]) == ("refused", "predict")
    assert "MRN" not in (kit / AUDIT_LOG).read_text()


def test_a_site_says_nothing_of_fewer_patients_than_its_own_floor(kit: Path) -> None:
    write_site_file(kit, policy={"floor": 4})
    site = member(kit, write_study(kit))
    assert site.engine.members["Aachen"].floor == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data: {a/b: x}", "expected one without '/'"),
        ("data: {..: x}", "expected one without '/'"),
        ("data: {cases.csv: nothing.csv}", "there is nothing at"),
        ("data: {}\npolicy: {patient: 3}", "policy.patient"),
        ("data: {}\npolicy: {approval: maybe}", "policy.approval"),
        ("device: cpu", "data: field required"),
        ("data: [1, 2]", "data: input should be a valid dictionary"),
    ],
)
def test_a_site_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / SITE_FILE
    path.write_text(content)
    with pytest.raises(FederationError, match="P605") as error:
        SiteFile.read(path)
    assert words in str(error.value)


def test_without_a_site_file_it_is_said_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"P605 There is no .*site\.yaml"):
        SiteFile.read(tmp_path / SITE_FILE)


def test_a_budget_for_life_and_models_that_leave_exclude_each_other(kit: Path) -> None:
    write_site_file(kit, policy={"privacy": {"epsilon": 8}, "personal_models": True})
    with pytest.raises(FederationError, match=r"P605 .*exclude each other"):
        member(kit, write_study(kit))
    for wrong in ({"epsilon": 0}, {"epsilon": float("inf")}, {"epsilon": 1, "delta": 1}, {"delta": 0.1}):
        write_site_file(kit, policy={"privacy": wrong})
        with pytest.raises(FederationError, match="P605"):
            member(kit, write_study(kit))


def test_a_budget_for_life_is_that_of_the_kit(kit: Path) -> None:
    write_site_file(kit, policy={"privacy": {"epsilon": 8, "delta": 0.001}})
    noisy = {"fedavg": {"channel": ["clip", {"gaussian_noise": {"noise": 9}}], "label": "noisy"}}
    found = member(kit, write_study(kit, methods=[noisy], model={"mlp": {"hidden": [4]}}))
    spending = found.engine.members["Aachen"].spending
    assert (spending.real, spending.lifetime) == (True, (8.0, 0.001))
    spending.record("run", 0, [])
    assert (kit / "privacy.jsonl").is_file()
