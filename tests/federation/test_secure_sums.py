"""Secure sums between sites with certificates: the same results, whoever drops out, and a coordinator that lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from elsewhere import split_table
from faults import PATIENCE, SiteProcess
from helpers import write_table_study
from polyclinic import Study
from polyclinic.channel.said import read_said, said
from polyclinic.communication.message import Message
from polyclinic.federation.audit_log import AUDIT_LOG, verify
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.processes.party_status import status
from polyclinic.federation.remote.calls import Alive, Asked, Pieces
from polyclinic.federation.remote.engine import Unreachable
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.federation.trust.identity import Identity
from polyclinic.federation.watching.status import Outcome
from polyclinic.privacy import Ledger
from polyclinic.secure import KeySigner
from polyclinic.secure.keys import KeyPair
from polyclinic.site.spending import LEDGER

pytest.importorskip("nvflare")

SIZES = {"Aachen": 20, "Celle": 22, "Dresden": 18, "St. Bonn": 24}
PARTIES = {site: f"site-{number}" for number, site in enumerate(SIZES, start=1)}
SUM = {"fedavg": {"channel": ["secure_sum"], "label": "summed"}}


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a coordinator and four sites, each with a table of its own."""
    folder = tmp_path_factory.mktemp("consortium")
    (folder / "all").mkdir()
    write_table_study(folder / "all", SIZES)
    own = split_table(folder / "all")
    entries = {"consortium": "a", "coordinator": {"host": "localhost"}, "sites": list(PARTIES.values()),
               "researchers": ["a@b.org"]}  # fmt: skip
    kits = make_kits(Consortium.model_validate(entries), folder / "kits")
    for site, party in PARTIES.items():
        about = {"name": site, "device": "cpu", "data": {"cases.csv": str(own[site] / "cases.csv")},
                 "policy": {"patients": 1, "floor": 1, "predictions": True, "protection": ["secure_sum"]}}  # fmt: skip
        (kits[party] / "local" / SITE_FILE).write_text(yaml.safe_dump(about))
    return folder


def study(folder: Path, method: Any = SUM, **changes: Any) -> Path:
    """One training of three rounds whose predictions come to the coordinator."""
    (folder / "unused").mkdir(exist_ok=True)
    entries = write_table_study(folder / "unused", SIZES) | {"methods": [method], "seeds": [0]}
    entries["evaluation"] |= {"predictions": "coordinator", "bootstrap": 0, "holdout": 0.3, "best_round": "last"}
    entries["evaluation"].pop("folds")
    entries["training"]["quorum"] = 3
    entries["model"] = {"mlp": {"hidden": [6]}}
    for name, change in changes.items():
        entries[name] = {**entries.get(name, {}), **change}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


class Reached:
    """A site at the other end of a connection that fails for single calls: (function, round)."""

    def __init__(self, process: SiteProcess, gone: set[tuple[str, int]]) -> None:
        self.process, self.gone = process, gone

    def answer(self, envelope: str, message: Pieces, seconds: float) -> tuple[object, object]:
        asked = Asked.model_validate_json(envelope).function
        if asked.rpartition("/")[2] in {function for function, _ in self.gone}:
            number = Message.from_pieces(message).fields.get("round")
            if (asked.rpartition("/")[2], number) in self.gone:
                raise Unreachable
        return self.process.once(envelope, message)

    def alive(self, seconds: float) -> Alive:
        return self.process.once.now()


class World:
    """The ends of a study at a coordinator and four sites, which are objects here; what they write is real."""

    def __init__(
        self, consortium: Path, folder: Path, *, method: Any = SUM, gone: Any = (), unsigned: str = "", **changes: Any
    ) -> None:  # fmt: skip
        from polyclinic.federation.ends.coordinator import Conduct
        from polyclinic.federation.ends.site import Member, answered

        shutil.copytree(consortium / "kits", folder / "kits")
        self.kits, self.study, self.members = folder / "kits", study(folder, method, **changes), dict[str, Member]()
        lost = {site: {(function, number) for function, number, who in gone if who == site} for site in SIZES}

        def start(site: str, party: str) -> Callable[[str, Pieces], Pieces]:
            def now(function: str, message: Pieces) -> Pieces:
                if site not in self.members:
                    self.members[site] = Member(self.kits / party, party, self.study, "a@b.org")
                    if site == unsigned:
                        self.members[site].engine.members[site].identity = None
                return self.members[site].answer(function, message)

            return lambda function, message: answered(site, function, lambda: now(function, message))

        reached = {
            party: Reached(SiteProcess(party, "run", lambda site=site, party=party: start(site, party)), lost[site])
            for site, party in PARTIES.items()
        }
        self.conduct = Conduct(
            self.kits / "coordinator", self.study, "run", sorted(reached), reached, "a@b.org", PATIENCE
        )  # fmt: skip
        self.answered = dict[tuple[str, int], list[str]]()

    def lie(self, function: str, change: Callable[[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        """A coordinator that asks something else than it should."""
        original = self.conduct.engine.call

        def call(asked: str, requests: Mapping[str, Message]) -> Iterator[Any]:
            if asked == f"secure_sum/{function}":
                requests = {site: Message(one.fields, change(site, {**one.tensors})) for site, one in requests.items()}
            for site, reply in original(asked, requests):
                if isinstance(reply, Message) and (asked == "train" or asked.startswith("secure_sum/")):
                    name = asked.rpartition("/")[2], requests[site].fields["round"]
                    self.answered.setdefault(name, []).append(site)
                yield site, reply

        self.conduct.engine.call = call  # type: ignore[method-assign]

    def run(self) -> Outcome:
        return self.conduct.run()

    @property
    def results(self) -> Path:
        return Path(self.conduct.results)

    def log(self, party: str) -> list[dict[str, Any]]:
        assert verify(self.kits / party).lines
        return list(map(json.loads, (self.kits / party / AUDIT_LOG).read_text().splitlines()))


def model(results: Path) -> torch.Tensor:
    (path,) = results.rglob("models/**/*.safetensors")
    found = load_file(path)
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


def predictions(results: Path) -> pd.DataFrame:
    return pd.read_csv(results / "predictions.csv").drop(columns=["method"])


def without_celle(*rounds: int) -> list[tuple[str, int, str]]:
    return [("train", number, "Celle") for number in rounds]


@pytest.fixture(scope="module")
def plain(consortium: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Path]:
    """Rounds without Celle -> results of the same without a sum, at sites that do not ask for one."""
    return {rounds: run_plain(consortium, tmp_path_factory.mktemp("plain"), without_celle(*rounds))
            for rounds in ((), (1,), (0, 1, 2))}  # fmt: skip


def run_plain(consortium: Path, folder: Path, gone: Any) -> Path:
    made = World(consortium, folder, method={"fedavg": {"label": "plain"}}, gone=gone)
    for party in PARTIES.values():
        path = made.kits / party / "local" / SITE_FILE
        entries = yaml.safe_load(path.read_text())
        entries["policy"].pop("protection")
        path.write_text(yaml.safe_dump(entries))
    assert made.run().state == "finished"
    return made.results


def test_results_are_those_of_one_machine_and_of_a_plain_mean(
    consortium: Path, tmp_path: Path, plain: dict[tuple[int, ...], Path]
) -> None:
    world = World(consortium, tmp_path)
    outcome = world.run()
    assert (outcome.state, outcome.failure) == ("finished", {})
    shutil.copyfile(world.study, consortium / "all" / "here.yaml")
    here = Study.read(consortium / "all" / "here.yaml").run(tmp_path / "here").folder
    assert torch.equal(model(world.results), model(here)), "whole numbers are added: the bits are the same"
    pd.testing.assert_frame_equal(predictions(world.results), predictions(here), check_exact=True)
    other = plain[()]
    torch.testing.assert_close(model(world.results), model(other), rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(predictions(world.results), predictions(other), check_exact=False, rtol=0, atol=1e-6)


def test_all_that_leaves_has_a_certificate_and_is_logged_in_words(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path)
    assert world.run().state == "finished"
    assert all(isinstance(member.engine.members[site].identity, Identity) for site, member in world.members.items())
    lines = world.log("site-1")
    trained = [line for line in lines if line.get("function") == "train"]
    assert [line["hidden_by"] for line in trained] == [["secure_sum"]] * 3
    assert [list(line["left"]["tensors"]) for line in trained] == [["change"]] * 3
    assert all("hidden_by" not in line for line in lines if line.get("function") != "train")
    path = world.kits / "site-1" / AUDIT_LOG
    last = next(number for number, line in enumerate(lines) if line.get("function") == "train")
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[: last + 1]))
    words = [text for name, text in status(Kit.read(world.kits / "site-1", "site")) if name == "audit log"]
    assert words[-1].endswith("bytes left, hidden by secure_sum")


@pytest.mark.parametrize("phase", ["advertise", "share", "train", "agree", "unmask"])
def test_who_drops_out_of_a_round_is_missing_there_as_in_a_plain_mean(
    consortium: Path, tmp_path: Path, plain: dict[tuple[int, ...], Path], phase: str
) -> None:
    world = World(consortium, tmp_path, gone=[(phase, 1, "Celle")])
    outcome = world.run()
    assert (outcome.state, outcome.failure) == ("finished", {})
    rounds = pd.read_csv(world.results / "rounds.csv").groupby("round")["site"].agg(set)
    inside = phase in ("agree", "unmask")  # its update had come
    assert rounds[1] == {*SIZES} - ({"Celle"} if not inside else set())
    assert rounds[2] == {*SIZES}, "it is there again"
    other, unlike = plain[() if inside else (1,)], plain[(1,) if inside else ()]
    torch.testing.assert_close(model(world.results), model(other), rtol=0, atol=1e-6)
    assert (model(world.results) - model(unlike)).abs().max() > 1e-4


def test_a_site_that_does_not_sign_is_left_out_by_the_coordinator_and_the_others_go_on(
    consortium: Path, tmp_path: Path, plain: dict[tuple[int, ...], Path]
) -> None:
    """If it passed on what it knows the others to refuse, there would be no sum at all."""
    world = World(consortium, tmp_path, unsigned="Celle")
    outcome = world.run()
    assert (outcome.state, outcome.failure) == ("finished", {})
    assert set(pd.read_csv(world.results / "rounds.csv")["site"]) == {*SIZES} - {"Celle"}
    torch.testing.assert_close(model(world.results), model(plain[0, 1, 2]), rtol=0, atol=1e-6)


def test_without_a_secure_sum_a_site_that_asks_for_one_says_nothing(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path, method="fedavg")
    outcome = world.run()
    assert outcome.state == "failed"
    assert outcome.failure["code"] == "P604"
    assert outcome.failure["message"].startswith("Site Aachen does not take part: fedavg is without secure_sum.")
    assert [line["event"] for line in world.log("site-1")] == ["study refused"]


# A coordinator that lies ----------------------------------------------------------------------------------------------


def edited(asked: dict[str, torch.Tensor], name: str, change: Callable[[Any], Any]) -> dict[str, torch.Tensor]:
    return {name: said(change(read_said(asked[name], name)))}


def unsigned(site: str, asked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return edited(asked, "keys", lambda keys: {one: {**found, "signature": b""} for one, found in keys.items()})


def others_unsigned(site: str, asked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A site's own line is as it was."""
    return edited(asked, "keys", lambda keys: {
        one: found if one == site else {**found, "signature": b""} for one, found in keys.items()
    })  # fmt: skip


def swapped(site: str, asked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys of the coordinator's own beside the signatures of the sites, so that it can read the shares."""
    own = KeyPair.new().public
    return edited(asked, "keys", lambda keys: {
        one: found if one == site else {**found, "seal": own} for one, found in keys.items()
    })  # fmt: skip


def by_a_key_of_its_own(site: str, asked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from polyclinic.federation.trust.certificates import new_key

    signer = KeySigner({}, new_key())
    return edited(asked, "keys", lambda keys: {
        one: found if one == site else {**found, "signature": signer.sign(b"")} for one, found in keys.items()
    })  # fmt: skip


@pytest.mark.parametrize("lie", [unsigned, others_unsigned, swapped, by_a_key_of_its_own])
def test_sites_refuse_keys_that_are_not_signed_and_nothing_leaves(
    consortium: Path, tmp_path: Path, lie: Callable[..., Any]
) -> None:
    world = World(consortium, tmp_path)
    world.lie("share", lie)
    outcome = world.run()
    assert outcome.state == "failed"
    assert outcome.failure["code"] == "P402"
    assert "0 of 4 sites shared their secrets" in outcome.failure["message"]
    assert ("advertise", 0) in world.answered
    assert not {"share", "train", "agree", "unmask"} & {name for name, _ in world.answered}, "no site answered"
    reasons = [line["reason"] for party in PARTIES.values() for line in world.log(party) if line["event"] == "refused"]
    assert len(reasons) == 4
    assert all("refuses a secure sum in round 1" in reason for reason in reasons)
    assert all("are not signed by it for this round" in reason for reason in reasons)


def test_a_training_without_the_sum_is_not_the_study_s(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path)
    original = world.conduct.engine.call

    def call(function: str, requests: Mapping[str, Message]) -> Iterator[Any]:
        if function == "start":
            for one in requests.values():
                one.fields["parts"] = [part for part in one.fields["parts"] if part[0] != "secure_sum"]
        return original(function, requests)

    world.conduct.engine.call = call  # type: ignore[method-assign]
    outcome = world.run()
    assert outcome.failure["code"] == "P604"
    assert "starts another training than the study has" in outcome.failure["message"]


def test_a_list_of_survivors_that_nobody_signed_is_not_unmasked(consortium: Path, tmp_path: Path) -> None:
    """Aachen is told that the others agreed; what they signed is another list."""
    world = World(consortium, tmp_path)
    world.lie("unmask", lambda site, asked: edited(asked, "signatures", lambda found: dict.fromkeys(found, b"")))
    outcome = world.run()
    assert outcome.state == "failed"
    assert ("train", 0) in world.answered
    assert ("unmask", 0) not in world.answered
    (reason,) = [line["reason"] for line in world.log("site-1") if line["event"] == "refused"]
    assert "0 sites signed the list of survivors that this site signed; 3 are needed" in reason


def test_keys_that_were_signed_in_another_round_are_refused(consortium: Path, tmp_path: Path) -> None:
    world, before = World(consortium, tmp_path), list[dict[str, Any]]()

    def replay(site: str, asked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        before.append(read_said(asked["keys"], "keys"))
        old = before[0]
        if len(before) <= len(SIZES):
            return asked
        return edited(asked, "keys", lambda keys: {**old, site: keys[site]})

    world.lie("share", replay)
    outcome = world.run()
    assert outcome.state == "failed"
    assert len(world.answered["share", 0]) == 4
    assert ("share", 1) not in world.answered
    (reason,) = [line["reason"] for line in world.log("site-1") if line["event"] == "refused"]
    assert "are not signed by it for this round" in reason


def test_between_hospitals_noise_can_not_be_repeated_and_is_written_down_for_ever(
    consortium: Path, tmp_path: Path
) -> None:
    """Two runs of one study at the same kits: other noise, and a ledger that knows of both."""
    method = {"fedavg": {"local": [{"dp_sgd": {"noise": 1.0}}], "channel": ["secure_sum"], "label": "private"}}
    world = World(consortium, tmp_path, method=method)
    outcome = world.run()
    assert (outcome.state, outcome.failure) == ("finished", {})
    table = pd.read_csv(world.results / "privacy.csv")
    assert sorted(table["site"]) == sorted(SIZES)
    assert set(table["source"]) == {"the operating system's cryptographic generator"}
    assert (table["epsilon"] == table["lifetime_epsilon"]).all()
    for site, party in PARTIES.items():
        ledger = Ledger(world.kits / party / LEDGER)
        assert [(entry.round, entry.attempt) for entry in ledger.entries(site)] == [(0, 1), (1, 1), (2, 1)]
    shutil.copyfile(world.study, consortium / "all" / "private.yaml")
    here = Study.read(consortium / "all" / "private.yaml").run(tmp_path / "here").folder
    assert not torch.equal(model(world.results), model(here)), "a simulation's noise follows from its seed"
    other = pd.read_csv(here / "privacy.csv").set_index("site")["epsilon"]
    assert other.to_dict() == table.set_index("site")["epsilon"].to_dict(), "and costs the same"


# Summaries outside of training ----------------------------------------------------------------------------------------

#: All that sites say of their cases in sums.
IN_SUMS = {
    "privacy": {"summaries": "secure_sum"}, "data": {"scaling": "federated"}, "evaluation": {"best_round": "loss"},
}  # fmt: skip


def test_summaries_are_added_under_masks_with_certificates(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path, **IN_SUMS)
    outcome = world.run()
    assert (outcome.state, outcome.failure) == ("finished", {})
    shutil.copyfile(world.study, consortium / "all" / "summed.yaml")
    here = Study.read(consortium / "all" / "summed.yaml").run(tmp_path / "here").folder
    assert torch.equal(model(world.results), model(here))
    pd.testing.assert_frame_equal(predictions(world.results), predictions(here), check_exact=True)
    lines = world.log("site-1")
    hidden = [line for line in lines if line.get("function") in ("share", "evaluate", "threshold")]
    assert {line["function"] for line in hidden} == {"share", "evaluate", "threshold"}
    assert all(list(line["left"]["tensors"]) == ["masked"] for line in hidden)
    assert all(line["hidden_by"] == ["secure_sum"] for line in hidden)
    asked = [line["asked"] for line in lines if line.get("function") == "agree"]
    assert "usual" not in str(asked)


@pytest.mark.parametrize("function", ["prepare", "start", "agree"])
def test_a_coordinator_that_wants_them_in_the_clear_is_refused(consortium: Path, tmp_path: Path, function: str) -> None:
    world = World(consortium, tmp_path, **IN_SUMS)
    original, heard = world.conduct.engine.call, list[str]()

    def call(asked: str, requests: Mapping[str, Message]) -> Iterator[Any]:
        if asked == function:
            change = {"usual": True} if function == "agree" else {"hides": False}
            requests = {site: Message({**one.fields, **change}, one.tensors) for site, one in requests.items()}
        for site, reply in original(asked, requests):
            heard.extend([asked] if isinstance(reply, Message) else [])
            yield site, reply

    world.conduct.engine.call = call  # type: ignore[method-assign]
    outcome = world.run()
    assert outcome.failure["code"] == "P604"
    assert function not in heard


@pytest.mark.parametrize("lie", [swapped, others_unsigned])
def test_no_summary_leaves_where_keys_are_not_the_sites(
    consortium: Path, tmp_path: Path, lie: Callable[..., Any]
) -> None:
    world = World(consortium, tmp_path, **IN_SUMS)
    original, heard = world.conduct.engine.call, list[str]()

    def call(asked: str, requests: Mapping[str, Message]) -> Iterator[Any]:
        if asked == "sum_share":
            keys = {site: lie(site, {"keys": one.tensors["told"]}) for site, one in requests.items()}
            requests = {site: Message({}, {"told": found["keys"]}) for site, found in keys.items()}
        for site, reply in original(asked, requests):
            heard.extend([asked] if isinstance(reply, Message) else [])
            yield site, reply

    world.conduct.engine.call = call  # type: ignore[method-assign]
    outcome = world.run()
    assert outcome.state == "failed"
    assert outcome.failure["code"] == "P402"
    assert "are not signed by it for this round" in outcome.failure["message"]
    assert "sum_advertise" in heard
    assert not {"sum_share", "share", "sum_agree", "sum_unmask"} & {*heard}


def test_who_does_not_answer_is_missing_in_validation(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path, gone=[("threshold", None, "Celle")], **IN_SUMS)
    outcome = world.run()
    assert (outcome.state, outcome.failure) == ("finished", {})
    notes = json.loads((world.results / "notes.json").read_text())
    assert any("When asked to threshold, Celle did not answer" in note["text"] for note in notes)
