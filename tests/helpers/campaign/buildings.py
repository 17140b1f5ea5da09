"""Files of an unfinished pack that are damaged before it goes on: noticed and made again."""

from __future__ import annotations

from pathlib import Path
from random import Random

from records import digests

from campaign.commands import in_process, judge_run
from campaign.room import DATASETS, Room, pack_words
from campaign.rows import damaged
from campaign.verdict import Outcome, Verdict

DAMAGES = ("flip", "cut", "noise", "zeros", "missing", "a folder", "empty")


def case(room: Room, chance: Random, number: int) -> Verdict:
    """One file below .building is damaged; the same command gives the same files, or refuses."""
    packed = room.packed(chance.choice(list(DATASETS)))
    with room.scratch() as folder:
        out = folder / "set"
        argv = pack_words(packed.source, out, packed.options)
        begun = in_process([*argv, "--part", "1/2"])
        if begun.status != 0:
            return judge_run(begun, "a part of a pack")
        files = sorted(p for p in (out / ".building").rglob("*") if p.is_file())
        victim, damage = chance.choice(files), chance.choice(DAMAGES)
        _damage(victim, damage, chance)
        fault = f"{damage}: {victim.relative_to(out)}, {packed.name}"
        verdict = judge_run(in_process(argv), fault, names=[victim.name, str(out)])
        if verdict.outcome != Outcome.SAME:
            return verdict
        found, whole = digests(out), digests(packed.folder)
        differing = sorted({name for name, _ in whole.items() ^ found.items()})
        if differing:
            return Verdict(Outcome.SILENT, fault, f"committed with other {differing[:5]}")
        return verdict


def _damage(path: Path, damage: str, chance: Random) -> None:
    data = path.read_bytes()
    if damage in ("missing", "a folder"):
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        return
    if damage in ("flip", "cut", "noise") and data:
        path.write_bytes(damaged(data, damage, chance))
    else:
        path.write_bytes(bytes(len(data)) if damage == "zeros" else b"")
