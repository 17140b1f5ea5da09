"""What a pack, an append or a merge made, in a terminal or as JSON."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.tokens.tokenizer_engines import REFERENCE, missing_engines

from . import render

if TYPE_CHECKING:
    from shardkit.format.manifest import Manifest


def show_made(manifest: Manifest, out: str | Path, args: argparse.Namespace) -> int:
    """What a merge or a repack made, as its options ask for; the exit code."""
    if args.json:
        render.print_json({"fingerprint": manifest.fingerprint, "sources": manifest.sources})
        return 0
    if args.quiet:
        return 0
    show_ledger(manifest)
    kind = "pack" if manifest.is_packed else "sample"
    n_samples = render.count(manifest.n_samples, kind)
    print(f"{out}: {n_samples} in {render.count(len(manifest.shards), 'shard')}")
    render.note(f"Next: shardkit verify {shlex.quote(str(out))}")
    return 0


def show_packed(
    manifest: Manifest, out: str | Path, args: argparse.Namespace, took: float, rate: float | None
) -> int:
    """Show the ledger and the end of a pack or an append, as --json and --quiet say; exit 0."""
    if args.json:
        render.print_json(summary(manifest))
    elif not args.quiet:
        show_ledger(manifest)
        show_end(manifest, out, took, rate)
    return 0


def show_ledger(manifest: Manifest) -> None:
    """What became of every row, by source, as a table."""
    sources = manifest.sources
    reasons = sorted({reason for source in sources for reason in source.rejected})
    columns = [("source", "left"), ("rows", "right"), ("kept", "right"), ("rejected", "right")]
    columns += [(reason.replace("_", " "), "right") for reason in reasons]
    columns += [("truncated", "right")]
    rows = [
        [
            source.name,
            *map(render.number, (source.n_rows, source.n_kept, sum(source.rejected.values()))),
            *(render.number(source.rejected.get(reason, 0)) for reason in reasons),
            render.number(source.n_truncated),
        ]
        for source in sources
    ]
    total = None
    if len(sources) > 1:
        sums = [
            sum(int(str(row[i]).replace(",", "")) for row in rows) for i in range(1, len(columns))
        ]
        total = ["all", *map(render.number, sums)]
    render.table("rows", columns, rows, total=total)


def show_end(manifest: Manifest, out: str | Path, took: float, rate: float | None) -> None:
    """What came out, what is worth a look, and what to do next.

    `took`: seconds from start to end; `rate`: rows a second while rows were built, where known.
    """
    kind = "packs" if manifest.is_packed else "samples"
    rows: list[tuple[str, object]] = [
        (kind, render.number(manifest.n_samples)),
        (
            "tokens",
            f"{render.number(manifest.n_tokens)}, "
            f"{render.share(manifest.n_supervised, manifest.n_tokens)} supervised",
        ),
        ("shards", _sizes(manifest)),
    ]
    max_length = manifest.recipe.get("max_length")
    if manifest.is_packed and max_length:
        images = manifest.recipe.get("images") or {}
        expanded = manifest.n_tokens + manifest.n_images * ((images.get("image_tokens") or 1) - 1)
        filled = render.share(expanded, manifest.n_samples * max_length)
        rows.append(("packs filled", filled))
    if manifest.n_images:
        rows.append(("images", render.number(manifest.n_images)))
    rows += check_rows(manifest, with_zeros=False)
    rows += note_rows(manifest)
    built = f"; {render.number(rate)} rows a second once it ran" if rate else ""
    rows.append(("took", render.seconds(took) + built))
    rows.append(("tokenizer engine", manifest.engine))
    render.facts(str(out), rows)
    missing = missing_engines() if manifest.engine == REFERENCE else []
    if manifest.n_images and importlib.util.find_spec("simplejpeg") is None:
        missing.append("simplejpeg")
    if missing:
        faster = "A faster tokenizer engine or JPEG decoder is not installed"
        render.note(f"{faster}: pip install {' '.join(missing)}")
    if manifest.rejects and manifest.rejects.n_bytes:
        render.note(f"Rejected rows are listed in {out}/{manifest.rejects.name}")
    render.note(f"Next: shardkit verify {shlex.quote(str(out))}")


def _sizes(manifest: Manifest) -> str:
    """How much the shards hold; bytes a token only where all bytes are those of tokens."""
    n_bytes = sum(shard.n_bytes for shard in manifest.shards)
    text = f"{render.number(len(manifest.shards))}, {render.size(n_bytes)}"
    if manifest.n_images:
        return text
    return f"{text}, {n_bytes / max(manifest.n_tokens, 1):.2f} bytes a token"


def check_rows(manifest: Manifest, *, with_zeros: bool) -> list[tuple[str, object]]:
    """Rows worth a look, each kind with its first examples; `with_zeros`: also what was not found.

    Kinds are those of CHECK_WORDS, then the other reasons of rejected rows.
    """
    checks = {name: entry for name, entry in manifest.checks.items() if name not in _APART}
    names = [*CHECK_WORDS, *(name for name in checks if name not in CHECK_WORDS)]
    rows: list[tuple[str, object]] = []
    for name in names:
        entry = checks.get(name, {"n": 0, "examples": []})
        if entry["n"] or (with_zeros and name in CHECK_WORDS):
            words = CHECK_WORDS.get(name, f"rejected: {name.replace('_', ' ')}")
            rows.append((words, _found(entry, manifest)))
    fields = manifest.checks.get("unread_fields", {}).get("fields", {})
    rows += [
        (f"read by nobody, {source}", ", ".join(_most(unread))) for source, unread in fields.items()
    ]
    return rows


def _most(unread: dict[str, int]) -> list[str]:
    """The keys that nobody read, the most frequent first."""
    ordered = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{path} ({render.number(n)})" for path, n in ordered[:_FIELDS_SHOWN]]
    n_more = len(ordered) - len(shown)
    return [*shown, f"and {n_more} more"] if n_more else shown


def note_rows(manifest: Manifest) -> list[tuple[str, object]]:
    """What was left out of rows that were kept."""
    notes = manifest.checks.get("notes", {}).items()
    return [
        (NOTE_WORDS.get(name, name.replace("_", " ")), render.number(n)) for name, n in notes if n
    ]


def _found(entry: dict[str, Any], manifest: Manifest) -> str:
    text: str = render.number(entry["n"])
    if entry.get("n_tokens"):
        n_kept = sum(source.n_kept for source in manifest.sources)
        whole = manifest.n_tokens + entry["n_tokens"]
        text += (
            f" ({render.share(entry['n'], n_kept)} of the kept ones): "
            f"{render.number(entry['n_tokens'])} tokens cut "
            f"({render.share(entry['n_tokens'], whole)}), "
            f"at most {render.number(entry['most_tokens'])} of a row"
        )
    rows: dict[str, list[str]] = {}
    for source, row in entry["examples"][:_EXAMPLES_SHOWN]:
        rows.setdefault(source, []).append(str(row))
    places = [
        f"{source} row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        for source, numbers in rows.items()
    ]
    return f"{text}; first: {', '.join(places)}" if places else text


CHECK_WORDS = {
    "truncated": "rows truncated",
    "no_supervised_tokens": "rejected: no label left",
    "placeholder_mismatch": "rejected: placeholders",
    "empty_answer": "empty answers",
    "duplicate": "duplicate rows",
}
"""Checks of the manifest in words; a pack makes them all, whatever they find."""
NOTE_WORDS = {
    "documents_without_eos": "documents without EOS (--append-eos adds it)",
    "rows_without_append_eos": "rows that --append-eos leaves as they are (no documents)",
    "documents_split": "documents split (--overlong split)",
}
"""Notes whose name alone does not say what to do."""
_APART = ("notes", "unread_fields")
_EXAMPLES_SHOWN = 3
_FIELDS_SHOWN = 12


def summary(manifest: Manifest) -> dict[str, object]:
    """What `pack` and its kin made, for programs (`--json`)."""
    names = (
        "fingerprint",
        "content",
        "n_samples",
        "n_tokens",
        "n_supervised",
        "n_images",
        "engine",
    )
    summary: dict[str, object] = {name: getattr(manifest, name) for name in names}
    return summary | {
        "n_shards": len(manifest.shards),
        "n_bytes": sum(shard.n_bytes for shard in manifest.shards),
        "sources": manifest.sources,
        "checks": manifest.checks,
    }
