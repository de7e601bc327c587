"""Real processes that are killed in the middle of a study, which ends with the same bytes all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from elsewhere import hospital_files, kill_processes
from helpers import write_table_study
from polyclinic import Study
from polyclinic.federation.audit_log import verify
from polyclinic.federation.kit import Kit
from polyclinic.federation.processes import parties, running
from polyclinic.federation.rehearse import all_parties
from polyclinic.federation.session import Researcher
from polyclinic.federation.watching.status import Status

pytest.importorskip("nvflare")
pytestmark = pytest.mark.long

SIZES = {"Aachen": 24, "Bonn": 30, "Celle": 26}
PATIENCE = 120.0


class Ward:
    """All parties, and what kills them."""

    def __init__(self, folder: Path, researcher: Researcher) -> None:
        self.folder, self.researcher = folder, researcher
        self.again = list[Kit]()

    def study(self, **changes: Any) -> Path:
        entries = write_table_study(self.folder / "all", SIZES) | {"methods": ["scaffold"]} | changes
        entries["evaluation"] |= {"predictions": "sites", "bootstrap": 100, "holdout": 0.3}
        entries["evaluation"].pop("folds", None)
        path = self.folder / "all" / f"{entries['study']}.yaml"
        path.write_text(yaml.safe_dump(entries))
        return path

    def kill(self, party: str, *, job_only: bool) -> None:
        """Kill the process of a study at a party, or with it the party."""
        kill_processes(Kit.read(self.folder / "kits" / party, role_of(party)), job_only=job_only)

    def start(self, party: str) -> None:
        self.again.append(Kit.read(self.folder / "kits" / party, role_of(party)))
        parties.start(self.again[-1])


def role_of(party: str) -> str:
    return "coordinator" if party == "coordinator" else "site"


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ward")
    with all_parties(folder / "kits", hospital_files(folder, SIZES)) as researcher:
        made = Ward(folder, researcher)
        try:
            yield made
        finally:
            for kit in made.again:
                running.end(kit)


def at_rounds(steps: dict[int, Callable[[], None]]) -> Callable[[Status], None]:
    """Does something when so many rounds are done, once."""
    left = dict(steps)

    def follow(status: Status) -> None:
        for number in list(left):
            if status.state == "running" and status.round >= number:
                left.pop(number)()

    follow.left = left  # type: ignore[attr-defined]
    return follow


def test_whoever_is_killed_the_bytes_are_the_same(ward: Ward, tmp_path: Path) -> None:
    training = {"rounds": 400, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.02}}}
    study = ward.study(study="killed", training=training)

    def site_again() -> None:
        ward.kill("site-2", job_only=False)
        ward.start("site-2")

    def coordinator_again() -> None:
        ward.kill("coordinator", job_only=False)
        ward.start("coordinator")

    follow = at_rounds({
        20: lambda: ward.kill("site-3", job_only=True), 90: lambda: ward.kill("coordinator", job_only=True),
        160: site_again, 230: coordinator_again,
    })  # fmt: skip
    ward.researcher.run(study, tmp_path / "there", ward.researcher.sites(), follow, PATIENCE)
    assert not follow.left  # type: ignore[attr-defined]
    here = Study.read(study).run(tmp_path / "here").folder
    for path in here.glob("*.csv"):
        if path.name != "rounds.csv":
            assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name
    tables = [pd.read_csv(folder / "rounds.csv").drop(columns="seconds") for folder in (here, tmp_path / "there")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for party in ("coordinator", "site-1", "site-2", "site-3"):
        assert verify(ward.folder / "kits" / party).lines > 5


def test_others_go_on_without_a_site_and_it_comes_back(ward: Ward, tmp_path: Path) -> None:
    training = {"rounds": 400, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.02}}, "quorum": 2}
    study = ward.study(study="quorum", training=training)
    lost = list[str]()

    def follow(status: Status) -> None:
        kill(status)
        lost.extend(site.name for site in status.sites if site.lost)

    kill = at_rounds({20: lambda: ward.kill("site-3", job_only=True)})
    ward.researcher.run(study, tmp_path / "there", ward.researcher.sites(), follow, PATIENCE)
    rows = pd.read_csv(tmp_path / "there" / "rounds.csv")
    took_part = rows.groupby("round")["site"].agg(set)
    without = [number for number, sites in took_part.items() if sites == {"Aachen", "Bonn"}]
    assert len(took_part) == 400
    assert without
    assert set(lost) == {"Celle"}
    assert took_part[399] == set(SIZES), "it came back"
    notes = (tmp_path / "there" / "notes.json").read_text(encoding="utf-8")
    assert "Celle goes on with what it kept after round" in notes
