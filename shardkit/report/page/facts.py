"""What a dataset says of itself: identity, ledger, checks, first rejected rows."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardkit.dataset import Dataset
from shardkit.format.builds import builds_of
from shardkit.format.manifest import Manifest
from shardkit.report.page.charts import words
from shardkit.report.page.marks import visible
from shardkit.report.reject_lines import lines_of, open_rejects

N_ROWS_SHOWN = 5
"""First rejected rows of each reason."""
N_FIELDS_SHOWN = 12
"""Names of unread fields."""
N_SOURCES_SHOWN = 200
"""Source files in the table of them."""

CHECK_WORDS = {
    "truncated": "rows were cut at max length",
    "duplicate": "rows are equal to an earlier row, token by token",
    "empty_answer": "rows have an empty answer",
    "unread_fields": "fields of rows were not read",
    "no_supervised_tokens": "rows had no label left and were rejected",
    "placeholder_mismatch": "rows had other placeholders than pictures and were rejected",
}


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A line of rejects.jsonl."""

    source: str
    row: int
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A check of the manifest: how many, and the first rows."""

    name: str
    words: str
    n: int
    more: str = ""
    examples: list[str] = field(default_factory=list)


def identity_rows(dataset: Dataset) -> list[tuple[str, str]]:
    """Names and values of what the dataset is."""
    manifest = dataset.manifest
    recipe = manifest.recipe
    tokenizer, template = recipe.get("tokenizer", {}), recipe.get("template", {})
    rows: list[tuple[str, Any]] = [
        ("fingerprint", manifest.fingerprint),
        ("content", manifest.content),
        (
            "tokenizer",
            f"{tokenizer.get('sha256', '-')[:12]}, {tokenizer.get('vocab_size', 0):,} ids",
        ),
        ("template", f"{template.get('name', '-')} ({template.get('sha256', '-')[:12]})"),
        ("max length", f"{recipe['max_length']:,}" if recipe.get("max_length") else "no limit"),
        ("packing", recipe.get("packing", "none")),
        ("source format", recipe.get("source_format", "-")),
        ("task", recipe.get("task")),
        ("system", recipe.get("system")),
    ]
    rows += [(f"pictures: {words(k)}", v) for k, v in (recipe.get("images") or {}).items()]
    builds = builds_of(manifest)
    if len(builds) > 1:
        rows.append(("builds", f"{len(builds):,} (appended or merged)"))
    rows.append(("compression", manifest.compression))
    rows.append(("made by", f"{manifest.writer}, tokenizer engine {manifest.engine}"))
    return [(name, visible(_text(value))) for name, value in rows if value is not None]


def findings(manifest: Manifest) -> list[Finding]:
    """The checks of the manifest, and the notes that found something; zeros last."""
    found = []
    for name, entry in manifest.checks.items():
        if name == "notes" and isinstance(entry, dict):
            found += [Finding(key, words(key), n) for key, n in entry.items() if isinstance(n, int)]
        elif isinstance(entry, dict) and isinstance(entry.get("n"), int):
            found.append(_finding(name, entry))
    found = [one for one in found if one.n or one.name in CHECK_WORDS]
    return sorted(found, key=lambda one: (one.n == 0, one.name not in CHECK_WORDS, -one.n))


def first_rejects(dataset: Dataset) -> dict[str, list[RejectedRow]]:
    """The first rejected rows of each reason; the file is read only as far as it needs to be."""
    missing: dict[str, int] = {}
    for source in dataset.manifest.sources:
        for reason, n in source.rejected.items():
            missing[reason] = min(N_ROWS_SHOWN, missing.get(reason, 0) + n)
    found: dict[str, list[RejectedRow]] = {reason: [] for reason, n in missing.items() if n}
    file = open_rejects(dataset)
    if file is None:
        return found
    with file:
        for line, _ in lines_of(file):
            rows = found.get(line.reason) if line else None
            if line and rows is not None and len(rows) < missing[line.reason]:
                rows.append(RejectedRow(visible(line.source), line.row, visible(line.detail)))
                if all(len(found[reason]) >= missing[reason] for reason in found):
                    break
    return found


def commands(root: str) -> list[tuple[str, str]]:
    """How to load, prove and look at the dataset: what it does, and what to type."""
    name = shlex.quote(visible(root))
    python = (
        f"from shardkit import ShardLoader\n\nloader = ShardLoader({visible(root)!r}, batch_size=4)"
    )
    python += "\nfor batch in loader:\n    ...  # input_ids, labels, attention_mask, ..."
    return [
        ("load it in Python", python),
        ("prove that it is whole", f"shardkit verify {name}"),
        ("look at all samples", f"shardkit view {name}"),
    ]


def plan_command(root: str) -> str:
    """The command that plans other runs."""
    return f"shardkit plan {shlex.quote(visible(root))} --world-size 8,64 --batch-size 1,4"


def sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes, the longest row, and how many shards, sources, rows and kept rows there are."""
    return {
        "n_bytes": sum(shard.n_bytes for shard in manifest.shards),
        "longest": int(max((shard.longest for shard in manifest.shards), default=0)),
        "n_shards": len(manifest.shards),
        "n_sources": len(manifest.sources),
        "n_rows": int(np.sum([source.n_rows for source in manifest.sources], dtype=np.int64)),
        "n_kept": int(np.sum([source.n_kept for source in manifest.sources], dtype=np.int64)),
    }


def _finding(name: str, entry: dict[str, Any]) -> Finding:
    more = ""
    if entry.get("n_tokens"):
        most = entry.get("most_tokens", 0)
        more = f"{entry['n_tokens']:,} tokens were cut, at most {most:,} of a row"
    if isinstance(entry.get("fields"), dict):
        names = dict.fromkeys(name for fields in entry["fields"].values() for name in fields)
        more = visible(", ".join(list(names)[:N_FIELDS_SHOWN]))
    examples = [
        f"{source} row {row}" for source, row, *_ in entry.get("examples", ()) if source is not None
    ]
    text = CHECK_WORDS.get(name, f"rows rejected or noted: {words(name)}")
    return Finding(name, text, entry["n"], more, [visible(e) for e in examples[:N_ROWS_SHOWN]])


def _text(value: object) -> str:
    return f"{value:,}" if type(value) is int and value > 9999 else str(value)
