"""The secure sum as a step of the channel: the mean of all to the bit, whoever drops out, and nothing of any site."""

from contextlib import contextmanager

import pytest
import torch

from helpers import Federation, recorded, table_sites
from polyclinic.channel.said import read_said, said
from polyclinic.channel.secure_sum import BOUND, About
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import SiteError, StudyError
from polyclinic.options import EntryError
from polyclinic.parts import TOPOLOGIES, Grouping
from polyclinic.running.progress import Checkpoint
from polyclinic.secure import Ring
from polyclinic.shapes import Misfit
from polyclinic.study.job import Job

SITES = {"Aachen": 12, "Bonn": 7, "Celle": 15, "Dresden": 9, "Essen": 10}
MODEL = {"mlp": {"hidden": [9], "norm": "batch"}}
CLIPPED = [{"clip": {"norm": 0.5}}]


def federation(channel=("secure_sum",), entry=None, sites=SITES, **options):
    training = {"rounds": 2} | options.pop("training", {})
    method = {"fedavg": {"channel": list(channel), **(entry or {})}}
    options.setdefault("model", MODEL)
    return Federation(table_sites(sites), [method], training=training, **options)


@contextmanager
def silent(made, *when):
    """Sites that do not answer, given as (function, round, site); what they do stays done at the site."""
    original = made.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            gone = (function.rpartition("/")[2], requests[site].fields.get("round"), site) in when
            yield site, SiteError("P401", f"{site} is away.", site=site) if gone else reply

    made.engine.call = call
    try:
        yield
    finally:
        made.engine.call = original


def updates(made):
    """Of the first round, what each site would have sent without the sum: (packed, weight)."""
    with recorded(made.engine) as said_:
        made.rounds()
    first = [(site, reply) for function, site, asked, reply in said_
             if function == "train" and asked.fields["round"] == 0]  # fmt: skip
    return {site: (reply.tensors, float(reply.fields["examples"])) for site, reply in first}


def plain(made, found, *, bound, bits, sites=None, weights=None):
    """The next state from whole numbers that are added up as they are, in exact Python numbers."""
    plan, members = made.plan(), sites or list(found)
    weights = weights or {site: weight for site, (_, weight) in found.items()}
    ring = Ring.fit(
        bound, len(found), most_weight=max(weights.values()), total_weight=sum(weights.values()), bits=bits
    )  # fmt: skip
    vectors = []
    for site in members:
        packed = found[site][0]
        numbers = torch.cat([packed[name].double() for name in sorted(packed)])
        vectors.append(ring.encode(numbers, weights[site]).tolist())
    total = torch.tensor([sum(column) for column in zip(*vectors, strict=True)])
    mean = ring.decode(total).mean.float()
    size = plan.selection.trainable
    before = plan.selection.take(plan.initial)
    return torch.cat([before[:size] + mean[:size], mean[size:]])


ONE = {"rounds": 1}


# The sum --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["cases", "uniform"])
def test_it_is_the_sum_of_whole_numbers_to_the_bit(weights):
    training = {"rounds": 1, "weights": weights}
    found = updates(federation((), training=training))
    declared = None if weights == "cases" else dict.fromkeys(SITES, 1.0)
    expected = plain(federation(training=training), found, bound=BOUND, bits=64, weights=declared)
    assert torch.equal(federation(training=training).state(), expected)


def test_with_clipped_changes_alone_it_is_one_of_32_bits():
    model = {"mlp": {"hidden": [9]}}
    found = updates(federation(CLIPPED, model=model, training=ONE))
    made = federation([*CLIPPED, "secure_sum"], model=model, training=ONE)
    with recorded(made.engine) as said_:
        state = made.state()
    assert {reply.tensors["change"].dtype for function, _, _, reply in said_ if function == "train"} == {torch.int32}
    assert torch.equal(state, plain(made, found, bound=0.5, bits=32))
    assert (state - federation(CLIPPED, model=model, training=ONE).state()).abs().max() < 1e-8


@pytest.mark.parametrize("channel", [
    [], CLIPPED, ["top_k"], [{"top_k": {"share": 0.3, "values": "int8"}}], ["int8"], ["float16"],
    [{"random_k": {"places": "common", "share": 0.4}}],
], ids=str)  # fmt: skip
def test_it_is_the_mean_of_what_was_to_be_sent(channel):
    found, expected = federation([*channel, "secure_sum"]).state(), federation(channel).state()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)


def test_with_common_weights_fewer_bytes_are_sent():
    sizes = []
    for channel in ((), ["top_k"], ["random_k"]):
        _, rows = federation([*channel, "secure_sum"], model={"mlp": {"hidden": [400]}}).rounds()
        sizes.append(rows[-1]["bytes_up"])
    assert sizes[0] == sizes[1]
    assert sizes[2] < 0.2 * sizes[0]


def test_parts_that_need_only_a_mean_of_what_is_sent_go_with_it():
    training = {"rounds": 4}
    entry = {"local": ["control_variates"]}
    made = federation(entry=entry, training=training)
    with recorded(made.engine) as said_:
        state = made.state()
    torch.testing.assert_close(state, federation((), entry=entry, training=training).state(), rtol=0, atol=2e-6)
    assert (state - federation(training=training).state()).abs().max() > 1e-3, "or control variates do nothing"
    for function, _, _, reply in said_:
        if function == "train":
            assert reply.tensors.keys() == {"change"}


@pytest.mark.parametrize("how", ["serialised", "stacked", "processes"])
def test_all_engines_give_the_same_sum(how):
    expected = federation().state()
    if how == "processes":
        data = table_sites(SITES)
        engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
        try:
            made = Federation(data, [{"fedavg": {"channel": ["secure_sum"]}}], model=MODEL, training={"rounds": 2},
                              engine=engine)  # fmt: skip
            assert torch.equal(made.state(), expected)
        finally:
            engine.close()
    else:
        made = federation(serialise=how == "serialised", stacked=how == "stacked")
        torch.testing.assert_close(made.state(), expected, rtol=0, atol=1e-5 if how == "stacked" else 0)


# Who drops out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["advertise", "share", "train", "agree", "unmask"])
def test_a_site_may_drop_out_in_any_phase(phase):
    """Before its update is there the sum is that of the others; after that it is in the sum."""
    made = federation(training={"rounds": 1, "quorum": 4})
    found = updates(federation((), training=ONE))
    with silent(made, (phase, 0, "Bonn")):
        progress, rows = made.rounds()
    inside = [site for site in SITES if site != "Bonn" or phase in ("agree", "unmask")]
    expected = plain(made, found, bound=BOUND, bits=64, sites=inside)
    assert torch.equal(progress.model("federation"), expected)
    assert [row["site"] for row in rows] == inside
    shares = {row["site"]: row["share"] for row in rows}
    total = sum(SITES[site] for site in inside)
    assert shares == {site: pytest.approx(SITES[site] / total) for site in inside}
    assert phase in ("agree", "unmask") or any("Bonn" in note for note in progress.failures)


def test_with_too_few_left_nothing_is_known():
    made = federation(training={"rounds": 1, "quorum": 3})
    with silent(made, ("train", 0, "Bonn"), ("train", 0, "Celle")), pytest.raises(SiteError, match="P402") as caught:
        made.rounds()
    assert "3 of 5 sites sent their vectors; 4 are needed" in str(caught.value)


def test_two_sites_are_too_few_unless_they_say_otherwise():
    sites = {"Aachen": 12, "Bonn": 7}
    with pytest.raises(SiteError, match=r"P402 .*the other's update"):
        federation(sites=sites).rounds()
    found = federation([{"secure_sum": {"least": 2}}], sites=sites).state()
    torch.testing.assert_close(found, federation((), sites=sites).state(), rtol=0, atol=2e-7)


def test_a_round_in_which_too_few_take_part_changes_nothing():
    """Chosen by lot, there are rounds with two sites and rounds with three or more: the former are noted."""
    made = federation(training={"rounds": 8, "participation": {"poisson": {"probability": 0.6}}})
    progress, rows = made.rounds()
    there = [sum(row["round"] == number for row in rows) for number in range(8)]
    assert set(there) <= {0, 3, 4, 5}
    assert 0 < there.count(0) < 8
    assert any("changed nothing. P402 A secure sum of 2 sites" in note for note in progress.failures)


def test_sites_that_are_not_chosen_have_no_masks():
    training = {"rounds": 3, "participation": {"uniform": {"sites": 3}}}
    found, expected = (federation(channel, training=training).state() for channel in (["secure_sum"], ()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)


# What a site sends ----------------------------------------------------------------------------------------------------


def test_what_leaves_a_site_is_uniform_and_new_in_each_run():
    model, sent = {"mlp": {"hidden": [200]}}, []
    for _ in range(2):
        made = federation(model=model, training=ONE)
        with recorded(made.engine) as said_:
            made.rounds()
        sent += [reply.tensors["change"] for function, _, _, reply in said_ if function == "train"]
    bits = torch.stack([(tensor >> place) & 1 for tensor in sent for place in range(64)]).double()
    assert abs(bits.mean() - 0.5) < 0.002
    assert (bits.mean(1) - 0.5).abs().max() < 0.08, "no bit of the numbers is the same everywhere"
    numbers = torch.cat(sent)
    assert len(numbers.unique()) == len(numbers)


@contextmanager
def lying(made, function, change):
    """A server that asks something else than it should."""
    original = made.engine.call

    def call(asked, requests):
        if asked == f"secure_sum/{function}" or asked == function:
            requests = {site: type(one)(one.fields, change(site, dict(one.tensors))) for site, one in requests.items()}
        return original(asked, requests)

    made.engine.call = call
    try:
        yield
    finally:
        made.engine.call = original


def told(tensors, **others):
    about = read_said(tensors["terms"], "terms")
    return {"terms": said({**about, **others})}


LIES = {
    "all the weight on one site": ("advertise", lambda site, asked: told(asked, weight=1e6, most=1e6, total=1e7)),
    "two sites alone": ("advertise", lambda site, asked: told(asked, sites=["Aachen", "Bonn"])),
    "others alone": ("advertise", lambda site, asked: told(asked, sites=["A", "B", "C"])),
    "a site twice": ("advertise", lambda site, asked: told(asked, sites=["Aachen", "Bonn", "Celle", site, site])),
    "no masks": ("train", lambda site, asked: {name: t for name, t in asked.items() if name != "secure_sum/boxes"}),
    "masks with nobody": ("train", lambda site, asked: {**asked, "secure_sum/boxes": said({})}),
    "a sum of one": ("agree", lambda site, asked: {"survivors": said([site])}),
    "other survivors for each": ("agree", lambda site, asked: {"survivors": said(sorted({*list(SITES)[:3], site}))}),
    "no text": ("share", lambda site, asked: {"keys": torch.zeros(3, dtype=torch.uint8)}),
    "not a number": ("advertise", lambda site, asked: told(asked, weight="1")),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_sites_refuse_a_server_that_asks_for_more(lie):
    made = federation(training=ONE)
    function, change = LIES[lie]
    with recorded(made.engine) as said_, lying(made, function, change), pytest.raises(SiteError):
        made.rounds()
    replies = [(asked, reply) for asked, _, _, reply in said_ if not isinstance(reply, Exception)]
    assert not [reply for asked, reply in replies if asked == "secure_sum/unmask"], "no mask was told"
    assert not [reply for asked, reply in replies if asked == "train"] or function == "agree"


def test_a_site_sends_nothing_that_it_was_not_asked_to_mask():
    """A server that leaves the sum out of its questions gets no update at all."""
    made = federation(training=ONE)
    plan = made.plan()
    made.engine.ask("start", dict.fromkeys(SITES, _message(plan.start.fields(), {"initial": plan.initial})))
    asked = {"round": 0, "exchange": 1, "turn": 0, "learning_rate": 0.1, "counted": 0, "optimizer": {},
             "after_rounds": 0, "after_batches": 0}  # fmt: skip
    state = plan.selection.take(plan.initial)
    for _, reply in made.engine.call("train", dict.fromkeys(SITES, _message(asked, {"state": state}))):
        assert isinstance(reply, SiteError)
        assert "sends nothing into the secure sum" in str(reply)


def _message(fields, tensors):
    from polyclinic.communication.message import Message

    return Message(fields, tensors)


@pytest.mark.parametrize(
    "text", [b"", b"[", b"\xff", b"1" * 40, b"[" * 4000, b'{"": "!"}', b'{"": 1}', b"null", b"NaN"]
)
def test_texts_that_can_not_be_read_are_refused(text):
    told_ = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
    with pytest.raises(Misfit):
        About.read(told_)


# With other parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [
    {"server": ["median"]}, {"server": ["multi_krum"]}, {"server": ["qfedavg"]}, {"server": ["mean", "norm_bound"]},
    {"server": ["normalised"]},
])  # fmt: skip
def test_what_compares_updates_is_refused_with_what_works(entry):
    with pytest.raises((EntryError, StudyError), match="P104") as caught:
        federation(entry=entry)
    assert "secure_sum" in str(caught.value)
    assert "group_size" in str(caught.value) or "normalised" in str(entry)


def test_a_robust_rule_works_on_sums_of_groups():
    """Nine sites in three groups of three: the median is that of three means."""
    sites = {f"Site {letter}": 8 + number for number, letter in enumerate("ABCDEFGHI")}
    made = federation([{"secure_sum": {"group_size": 3}}], {"server": ["median"]}, sites, training=ONE)
    found = updates(federation((), sites=sites, training=ONE))
    with recorded(made.engine) as said_:
        progress, rows = made.rounds()
    groups = {}
    for function, site, asked, _ in said_:
        if function == "secure_sum/advertise":
            groups.setdefault(tuple(read_said(asked.tensors["terms"], "terms")["sites"]), []).append(site)
    assert sorted(map(len, groups)) == [3, 3, 3]
    assert all(list(members) == asked for members, asked in groups.items())
    means = []
    for members in groups:
        total = sum(found[site][1] for site in members)
        means.append(sum(found[site][0]["change"].double() * (found[site][1] / total) for site in members))
    plan = made.plan()
    size, before = plan.selection.trainable, plan.selection.take(plan.initial)
    expected = before[:size] + torch.stack(means).median(0).values.float()
    torch.testing.assert_close(progress.model("federation")[:size], expected, rtol=0, atol=1e-6)
    assert sum(row["share"] for row in rows) == pytest.approx(1) or all(row["share"] != row["share"] for row in rows)


def test_one_bad_site_of_nine_does_not_move_the_median_of_groups():
    """The group of a site that sends a hundred times its update is outvoted by the two others; a mean is not."""
    sites = {f"Site {letter}": 20 for letter in "ABCDEFGHI"}
    gaps = {}
    for rule in ("median", "mean"):
        states = []
        for factor in (1.0, 100.0):
            made = federation([{"secure_sum": {"group_size": 3}}], {"server": [rule]}, sites, training=ONE)
            plan, engine = made.plan(), made.engine
            run_close = engine.members["Site A"]
            original = run_close._functions["train"]

            def spoilt(asked, tensors, original=original, factor=factor, member=run_close):
                end = member.run.ends["secure_sum"]
                close = type(end).close
                end.close = lambda packed: close(end, {**packed, "change": factor * packed["change"]})
                return original(asked, tensors)

            run_close._functions["train"] = spoilt
            states.append(made.state()[: plan.selection.trainable])
        gaps[rule] = float((states[1] - states[0]).norm())
    assert gaps["median"] < 0.1 * gaps["mean"]


# Stopped and resumed --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def test_a_run_that_was_stopped_goes_on_with_new_keys_to_the_same_bytes(tmp_path):
    def outcome(folder, stop=None):
        made = federation(folder=folder / "sites", training={"rounds": 4})

        def report(done, _):
            if done == stop:
                raise Killed

        job = Job((made.method(),), 0, 0)
        found = made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        (tensors,) = found.models.values()
        return {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}

    unbroken = outcome(tmp_path / "whole")
    for stop in (1, 3):
        with pytest.raises(Killed):
            outcome(tmp_path / str(stop), stop)
        assert outcome(tmp_path / str(stop)) == unbroken


@pytest.mark.parametrize("kept", [False, True])
def test_a_round_is_not_summed_again_with_other_sites(tmp_path, kept):
    """The difference of both sums would be Bonn's update. A site that has a folder knows it also in a new process."""
    folder = tmp_path / "sites" if kept else None
    made = federation(training={"rounds": 1, "quorum": 4}, folder=folder)
    first = made.state()
    if kept:
        made = federation(training={"rounds": 1, "quorum": 4}, folder=folder)
        with silent(made, ("train", 0, "Bonn")), pytest.raises(SiteError, match="P402") as caught:
            made.rounds()
        assert "0 of 5 sites agreed" in str(caught.value)
        assert "Aachen, Celle, Dresden, Essen: Site Aachen sends nothing" in str(caught.value), "the cause, once"
        assert "if one of them is gone for good, begin the study anew with another `seed`" in str(caught.value)
    made = federation(training={"rounds": 1, "quorum": 4}, folder=folder)
    if kept:
        assert torch.equal(made.state(), first), "with the same sites it may be summed again"
        text = (tmp_path / "sites" / "Aachen" / "diary.jsonl").read_text()
        assert len(text.splitlines()) == 1


class Halves(Grouping):
    """Two stages of a round in each of which all sites train; or two models, between which sites change each round."""

    several = True

    def __init__(self, *, models: bool = False):
        self.models = models

    def stages(self, turn):
        if not self.models:
            return [{"federation": turn.sites[:3]}, {"federation": turn.sites[3:]}]
        moved = turn.sites[turn.number :] + turn.sites[: turn.number]
        return [{"one": sorted(moved[:3]), "two": sorted(moved[3:])}]


@pytest.fixture
def halves():
    TOPOLOGIES.add("halves")(Halves)
    yield "halves"
    TOPOLOGIES.remove("halves")


@pytest.mark.parametrize("channel", ["secure_sum"])
def test_a_round_that_was_given_up_does_not_end_the_sums(halves, channel):
    """In the second round a site of the second stage is late, so all is as it was before it; the next has new keys."""
    sites = {**SITES, "Fulda": 8}
    training = {"rounds": 3, "quorum": 6, "participation": {"deadline": {"seconds": 9.0}}}
    made = federation(channel=[channel], entry={"topology": halves}, sites=sites, training=training)
    original = made.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            if function == "train" and site == "Fulda" and requests[site].fields["round"] == 1:
                reply.fields["seconds"] = 99.0
            yield site, reply

    made.engine.call = call
    progress, rows = made.rounds()
    assert {row["round"] for row in rows} == {0, 2}, progress.failures
    assert sum(row["round"] == 2 for row in rows) == 6


def test_sites_may_change_between_models(halves):
    made = federation(entry={"topology": {halves: {"models": True}}}, sites={**SITES, "Fulda": 8},
                      training={"rounds": 3})  # fmt: skip
    _, rows = made.rounds()
    assert len(rows) == 18


def test_a_site_that_is_gone_for_good_is_left_out_where_the_quorum_allows_it():
    gone = [(function, number, "Bonn") for number in (1, 2, 3)
            for function in ("advertise", "share", "train", "agree", "unmask")]  # fmt: skip
    made = federation(training={"rounds": 4, "quorum": 4})
    with silent(made, *gone):
        _, rows = made.rounds()
    assert [sum(row["round"] == number for row in rows) for number in range(4)] == [5, 4, 4, 4]
    made = federation(training={"rounds": 4})
    with silent(made, *gone), pytest.raises(SiteError, match=r"P40\d .*Bonn"):
        made.rounds()


def test_a_diary_that_was_changed_is_refused_and_a_line_that_was_cut_off_forgotten(tmp_path):
    from polyclinic.site.diary import Diary

    path = tmp_path / "site" / "diary.jsonl"
    diary = Diary("Aachen", path)
    for number in range(3):
        diary.note(f"round {number}", "x" * number)
    diary.note("round 1", "other")
    assert Diary("Aachen", path).recall("round 1") == "other"
    assert Diary("Aachen", path).recall("round 9") is None
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    again = Diary("Aachen", path)
    assert again.recall("round 1") == "x"
    again.note("round 1", "third")
    assert Diary("Aachen", path).recall("round 1") == "third"
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(SiteError, match=r"Line 1 of diary\.jsonl"):
        Diary("Aachen", path).recall("round 1")
