"""Samples of finished datasets at another max_length, and the account of what that does to rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.builder.gather import OldShards
from shardkit.builder.ledger import over_limit
from shardkit.builder.receipt import N_EXAMPLES
from shardkit.builder.stretches import Stretches
from shardkit.conversation import Reason
from shardkit.errors import BadInput, BuildConflict, TooManyRejects
from shardkit.format.manifest import Manifest, SourceEntry
from shardkit.format.recipe import RowRules
from shardkit.format.samples import IGNORE_INDEX
from shardkit.tokens.assemble import without_loss
from shardkit.tokens.overlong import longer_than

Fate = tuple[Reason, str]
"""Why a sample is left out: the reason, and its detail."""
RejectLine = dict[str, Any]
"""A line of rejects.jsonl."""


@dataclass(frozen=True, slots=True)
class Recut:
    """The samples that are left, and the account."""

    held: Stretches
    sources: list[SourceEntry]
    checks: dict[str, Any]
    rejects: list[RejectLine]
    """Lines of the rows that were rejected before, then of those that are rejected now."""
    n_before: int
    """How many lines of `rejects` are from before."""


def recut(
    held: Stretches,
    old: OldShards,
    joined: Manifest,
    rejects: Sequence[RejectLine],
    max_length: int | None,
    *,
    drops: bool,
) -> Recut:
    """Cut every sample to max_length, as packing the source again would.

    `joined`, `rejects`: the old datasets as one, and their rejected rows. `drops`: leave out
    samples that were cut before. Raises BuildConflict where only the source could say how a row
    is cut.
    """
    fates: dict[int, Fate] = {}
    if drops:
        what = f"cut at max length {joined.recipe['max_length']}"
        fates |= {i: (Reason.TOO_LONG, what) for i in np.flatnonzero(held.summed("n_cut")).tolist()}
    lengths = held.lengths
    if max_length is not None:
        lengths = _cut(held, old, joined.recipe, max_length, fates)
    is_kept = np.ones(len(held), np.bool_)
    is_kept[list(fates)] = False
    left = held.chosen(is_kept)
    if np.any(lengths != held.lengths):
        left = left.cut_to(lengths[is_kept])
    now = _lines(held, joined, fates, rejects)
    sources, checks = _ledger(left, joined, now), _checks(left, joined, now)
    return Recut(left, sources, checks, [*rejects, *now], len(rejects))


def refuse_lost(done: Recut, joined: Manifest, max_rejects: float | None) -> None:
    """Refuse to leave out more rows than allowed of those that `joined` keeps, or all of them.

    Raises BadInput, TooManyRejects.
    """
    n_before = sum(source.n_kept for source in joined.sources)
    n_left = sum(source.n_kept for source in done.sources)
    n_lost = n_before - n_left
    found = f"{n_lost} of {n_before}"
    for line in done.rejects[done.n_before :][:1]:
        found += f"; the first: {line['source']} row {line['row']}: {line['detail']}"
    if not n_left:
        raise BadInput("no row would be left", found=found, fix="Look at --max-length.")
    allowed = over_limit(n_lost, n_before, max_rejects)
    if allowed:
        raise TooManyRejects(
            "more rows would be left out than --max-rejects allows",
            expected=allowed,
            found=found,
            fix=f"Look at --max-length. If so many are to go: --max-rejects {n_lost}.",
        )


def _cut(
    held: Stretches,
    old: OldShards,
    recipe: Mapping[str, Any],
    max_length: int,
    fates: dict[int, Fate],
) -> NDArray[np.int64]:
    """(n,) the tokens that are left of each sample; those that are not kept get a fate.

    Tokens of which the second is an image of 4 places weigh [1, 4, 1], in sums [1, 5, 6]: of a
    max_length of 5, two tokens are left.
    """
    rules, lengths = RowRules.of(recipe), held.lengths.copy()
    n_cut, has_images = held.summed("n_cut"), held.of_samples("n_images") > 0
    places = lengths + held.summed("n_images") * (rules.image_tokens - 1)
    for i in np.flatnonzero(places > max_length).tolist():
        if i in fates:
            continue
        if recipe.get("overlong") == "drop":
            fates[i] = (Reason.TOO_LONG, longer_than(int(places[i]), max_length))
            continue
        has_blocks = rules.image_token is None and bool(has_images[i])
        _refuse_unclear(held, i, recipe, has_blocks=has_blocks)
        ids, labels = _tokens(held, old, i)
        weights = np.ones(len(ids), np.int64)
        if rules.image_token is not None and has_images[i]:
            weights[ids == rules.image_token] = rules.image_tokens
        n = int(np.searchsorted(np.cumsum(weights), max_length, side="right"))
        lengths[i] = n
        if not np.any(labels[:n] != IGNORE_INDEX):
            n_supervised = int(np.count_nonzero(labels != IGNORE_INDEX))
            n_tokens = int(weights.sum() + n_cut[i])
            detail = without_loss(n_tokens, n_supervised, max_length)
            fates[i] = (Reason.NO_SUPERVISED_TOKENS, detail)
    return lengths


def _refuse_unclear(
    held: Stretches, i: int, recipe: Mapping[str, Any], *, has_blocks: bool
) -> None:
    """Raise BuildConflict where the tokens do not say how packing would cut this sample.

    `has_blocks`: whether its pictures are expanded in its tokens.
    """
    is_split = recipe.get("overlong") == "split"
    if is_split or has_blocks:
        what = "packed with --overlong split" if is_split else "with expanded pictures"
        raise BuildConflict(
            f"a row {what} is longer than max_length: its tokens do not say how it is cut",
            where=f"source {held.of_samples('source')[i]}, row {held.of_samples('record')[i]}",
            fix="Pack the sources again with this --max-length.",
        )


def _tokens(held: Stretches, old: OldShards, i: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    parts = []
    for one in held.table[held.heads[i] : held.heads[i + 1]]:
        row = old[int(one["shard"])].shard.tokens(int(one["row"]))
        parts.append(row[:, int(one["start"]) : int(one["start"]) + int(one["length"])])
    ids, labels = np.concatenate(parts, axis=1)[:2]
    return ids, labels


def _lines(
    held: Stretches, joined: Manifest, fates: Mapping[int, Fate], rejects: Sequence[RejectLine]
) -> list[RejectLine]:
    """What is listed of samples with a fate: the pieces of a split row, and once a row that has
    none left.

    Sources [0, 0, 1] and records [4, 4, 4]: is_first [T, F, T], so the samples are of the rows
    [0, 0, 1].
    """
    if not fates:
        return []
    names = [source.name for source in joined.sources]
    source, record, piece = map(held.of_samples, ("source", "record", "piece"))
    is_first = np.append(True, (np.diff(source) != 0) | (np.diff(record) != 0))
    row = np.cumsum(is_first) - 1  # pieces of a row stand side by side
    n_pieces = np.bincount(row)
    n_left = n_pieces - np.bincount(row[list(fates)], minlength=len(n_pieces))
    lost_before = Counter((line["source"], line["row"]) for line in rejects if "piece" in line)
    found: list[RejectLine] = []
    listed: set[int] = set()
    for i in sorted(fates):
        number, place = int(row[i]), (names[source[i]], int(record[i]))
        line: RejectLine = dict(zip(("source", "row"), place, strict=True))
        line |= {"reason": str(fates[i][0]), "detail": fates[i][1]}
        if n_pieces[number] + lost_before[place] > 1:
            found.append(line | {"piece": int(piece[i])})
        if not n_left[number] and number not in listed:
            found.append(line)
            listed.add(number)
    return found


def _ledger(left: Stretches, joined: Manifest, now: Sequence[RejectLine]) -> list[SourceEntry]:
    source, record = left.of_samples("source"), left.of_samples("record")
    n_cut, n_sources = left.summed("n_cut"), len(joined.sources)
    is_cut = n_cut > 0
    kept = _rows_by_source(source, record, n_sources)
    truncated = _rows_by_source(source[is_cut], record[is_cut], n_sources)
    n_lost = np.bincount(source, n_cut, n_sources).astype(np.int64).tolist()
    rejected = {entry.name: Counter(entry.rejected) for entry in joined.sources}
    for line in now:
        if "piece" not in line:
            rejected[line["source"]][line["reason"]] += 1
    return [
        msgspec.structs.replace(
            entry,
            n_kept=kept[number],
            rejected=dict(sorted(rejected[entry.name].items())),
            n_truncated=truncated[number],
            n_cut_tokens=n_lost[number],
        )
        for number, entry in enumerate(joined.sources)
    ]


def _rows_by_source(
    source: NDArray[np.int64], record: NDArray[np.int64], n_sources: int
) -> list[int]:
    """How many distinct rows of each source these are."""
    rows = np.unique(np.stack([source, record]), axis=1)
    found: list[int] = np.bincount(rows[0], minlength=n_sources).tolist()
    return found


def _checks(left: Stretches, joined: Manifest, now: Sequence[RejectLine]) -> dict[str, Any]:
    """The checks as they were, with what is cut and rejected counted again."""
    checks = dict(joined.checks)
    n_cut = left.summed("n_cut")
    rows = np.flatnonzero(n_cut)
    source, record = left.of_samples("source"), left.of_samples("record")
    checks["truncated"] = {
        "n": len(rows),
        "examples": [
            [joined.sources[int(source[i])].name, int(record[i])] for i in rows[:N_EXAMPLES]
        ],
        "n_tokens": int(n_cut.sum()),
        "most_tokens": int(n_cut.max(initial=0)),
    }
    for reason in {line["reason"] for line in now}:
        lines = [[line["source"], line["row"]] for line in now if line["reason"] == reason]
        entry = checks.get(reason, {"n": 0, "examples": []})
        examples = [*entry["examples"], *lines][:N_EXAMPLES]
        checks[reason] = {"n": entry["n"] + len(lines), "examples": examples}
    return checks
