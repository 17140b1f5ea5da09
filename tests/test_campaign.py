"""A short slice of the fault campaign (`make campaign`), and what the campaign itself must see."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from campaign import case, commands, report, uploads
from campaign.case import run_case
from campaign.kinds import CAMPAIGNS, Kind
from campaign.room import Room
from campaign.supervise import run_kind
from campaign.verdict import Outcome, Verdict

from shardkit.loader.reader import Reader

SEED = 7
SLICE = {
    "flips": 60,
    "overwrites": 50,
    "cuts": 50,
    "swaps": 40,
    "manifest-bits": 60,
    "manifest-forms": 40,
    "shard-forms": 20,
    "rows": 25,
    "pictures": 10,
    "kills": 2,
    "buildings": 6,
    "remote": 5,
    "leaks": 1,
    "soak": 1,
}
"""Cases of each kind that run with every test run."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Datasets for all tests of this module."""
    yield Room(tmp_path_factory.mktemp("campaign"))
    commands.close()
    uploads.close()


@pytest.mark.parametrize("kind", SLICE)
def test_a_slice_of_the_campaign(room: Room, kind: str) -> None:
    """Nothing silent, foreign, hanging or dead in these cases of each kind."""
    reason = CAMPAIGNS[kind].why_not()
    if reason is not None:
        pytest.skip(reason)
    found = [(n, run_case(kind, SEED, n, room)) for n in range(SLICE[kind])]
    assert [(n, verdict) for n, verdict in found if verdict.is_bad] == []


def test_a_case_is_the_same_again(room: Room) -> None:
    """Seed, kind and number decide the fault and what comes of it."""
    for kind in ("flips", "cuts", "rows"):
        first, again = run_case(kind, SEED, 11, room), run_case(kind, SEED, 11, room)
        assert (first.fault, first.outcome) == (again.fault, again.outcome)
        assert run_case(kind, SEED + 1, 11, room).fault != first.fault


def test_a_reader_that_checks_nothing_is_seen(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the check of hashes taken out of the product the campaign says so."""
    monkeypatch.setattr(Reader, "check", lambda *args: None)
    found = [run_case("flips", SEED, n, room) for n in range(60)]
    assert any(v.outcome == Outcome.SILENT and "differ" in v.seen for v in found)


def _dies(room: Room, chance: Random, number: int) -> Verdict:
    raise MemoryError(f"case {number}")


def _hangs(room: Room, chance: Random, number: int) -> Verdict:
    time.sleep(60)
    return Verdict(Outcome.SAME, "")


def test_a_case_that_hangs_is_given_up(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience of its kind, twice."""
    monkeypatch.setattr(case, "SECOND_S", 0.2)
    monkeypatch.setitem(CAMPAIGNS, "hangs", Kind(_hangs, 1, patience_s=0.2))
    assert run_case("hangs", SEED, 0, room).outcome == Outcome.HANG


@pytest.mark.slow
def test_a_child_that_dies_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table counts it, names the case that does it again, and the next child goes on."""
    helper = tmp_path / "sitecustomize.py"
    helper.write_text(
        "import campaign.flips, os\n"
        "whole = campaign.flips.case\n"
        "def case(room, chance, number):\n"
        "    os.abort() if number == 1 else None\n"
        "    return whole(room, chance, number)\n"
        "campaign.flips.case = case\n"
    )
    helpers = Path(commands.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{helpers}")
    tally = run_kind("flips", SEED, 600.0, 1, last=4)
    assert tally.counts[Outcome.DIED] == 1
    assert tally.counts.total() == 4
    assert "CASE=1" in "\n".join(report.reproducers({"flips": tally}, SEED))
    assert report.n_bad({"flips": tally}) == 1
    written = json.loads(report.as_json({"flips": tally}, {"seed": SEED}))
    assert (written["tried"], written["bad"]) == (4, 1)
    (fault,) = written["kinds"]["flips"]["faults"]
    assert fault["again"] == ["--seed", str(SEED), "--only", "flips", "--case", "1"]
