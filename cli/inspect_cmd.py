"""shardkit inspect: show a dataset, or a sample."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.format.builds import builds_of
from shardkit.format.canonical import sha256_hex, sha256_of
from shardkit.format.codec import is_shard_name
from shardkit.format.manifest import Manifest
from shardkit.format.recipe import RowRules

from . import remote, render
from .options import path, place, positive
from .pack_summary import check_rows, note_rows, show_ledger

if TYPE_CHECKING:
    from shardkit.dataset import Dataset
    from shardkit.report import SampleView, Summary

DESCRIPTION = """\
Show what a dataset is and holds: identity, the account of every row, shards,
lengths. With --sample, show one sample as the model sees it, loss mask
included. What a run over it will be like: shardkit plan."""

EXAMPLES = """\
examples:
  shardkit inspect alpaca
  shardkit inspect alpaca --sample 0
  shardkit inspect alpaca --sample shard-00002/00000017
  shardkit inspect alpaca --sample 3:6
  shardkit inspect alpaca --sample alpaca.json:20431
  shardkit inspect llava --sample 5 --save-images /tmp/images
  shardkit inspect alpaca/shard-00000.tar --json"""

_SHARDS_SHOWN = 20


def _settings(settings: dict[str, object]) -> str:
    """The settings of a processor that users change, such as limits of pixels and sizes of patches;
    how many settings there are when it has none of these."""
    shown = ("min_pixels", "max_pixels", "size", "patch_size", "merge_size", "max_patches")
    named = [f"{name} {settings[name]}" for name in shown if name in settings]
    return ", ".join(named) or f"{len(settings)} settings"


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `inspect`."""
    parser.add_argument(
        "dataset", type=place, metavar="DIR|SHARD|URL", help=f"{remote.WHERE}; or one shard"
    )
    parser.add_argument(
        "--sample",
        type=place,
        metavar="WHICH",
        help="show samples: N, -1 (the last), 3:6, SHARD/KEY or FILE:ROW",
    )
    parser.add_argument("--head", type=positive, metavar="N", help="show the first N samples")
    parser.add_argument(
        "--save-images", type=path, metavar="DIR", help="with --sample: write its images there"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    remote.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `inspect`."""
    if is_shard_name(args.dataset):
        return _shard(args)
    dataset = remote.open_dataset(args)
    manifest = dataset.manifest
    if args.sample is not None or args.head is not None:
        return _sample(args, dataset)
    from shardkit.report import summarize

    summary = summarize(dataset)
    if args.json:
        names = ("fingerprint", "content", "identity", "writer", "engine", "sources", "checks")
        fields: dict[str, Any] = {name: getattr(manifest, name) for name in names}
        render.print_json(fields | {"summary": summary, "shards": manifest.shards})
        return 0
    _show_identity(dataset.root, manifest)
    show_ledger(manifest)
    _show_checks(manifest)
    _show_shards(manifest)
    _show_summary(summary, manifest)
    return 0


def _show_identity(title: str, manifest: Manifest) -> None:
    recipe = manifest.recipe
    tokenizer, template = recipe["tokenizer"], recipe["template"]
    images = recipe.get("images")
    rows = [
        ("fingerprint", manifest.fingerprint[:16]),
        ("tokenizer", f"{tokenizer['sha256'][:12]}, {render.number(tokenizer['vocab_size'])} ids"),
        ("template", f"{template['name']} ({template['sha256'][:12]})"),
        ("max length", recipe["max_length"] or "no limit"),
        ("packing", recipe["packing"]),
        ("source format", recipe["source_format"]),
    ]
    if recipe.get("task"):
        rows.append(("task", recipe["task"]))
    if recipe.get("system"):
        rows.append(("system", render.visible(recipe["system"])))
    if images:
        size = (
            f"{images['image_size']} px, {images['image_fit']}"
            if images["image_size"]
            else "as they are"
        )
        if images.get("store_max_pixels"):
            size = f"at most {render.number(images['store_max_pixels'])} pixels"
        processor = images.get("processor")
        if processor is None:
            rows.append(("images", f"{size}; {images['image_tokens']} tokens each"))
        else:
            rows.append(("images", f"{size}; tokens as {processor['family']} makes them"))
            rows.append(("processor", render.visible(_settings(processor["settings"]))))
    builds = builds_of(manifest)
    seeds = dict.fromkeys(str(build.identity.get("shuffle_seed")) for build in builds)
    if list(seeds) != ["None"]:
        rows.append(("rows shuffled", f"seed {', '.join(seeds)}"))
    if len(builds) > 1:
        sizes = ", ".join(render.number(build.n_shards) for build in builds[:8])
        more = ", ..." if len(builds) > 8 else ""
        rows.append(("builds", f"{len(builds)}, of {sizes}{more} shards (appended or merged)"))
    rows.append(("made by", f"{manifest.writer}, tokenizer engine {manifest.engine}"))
    render.facts(title, rows)


def _show_checks(manifest: Manifest) -> None:
    render.facts("worth a look", check_rows(manifest, with_zeros=True) + note_rows(manifest))


def _show_shards(manifest: Manifest) -> None:
    columns = [
        ("shard", "left"),
        ("samples", "right"),
        ("tokens", "right"),
        ("supervised", "right"),
    ]
    columns += [("images", "right")] if manifest.n_images else []
    columns += [("longest", "right"), ("size", "right")]

    def row(name: str, of: Any, longest: int, n_bytes: int) -> list[str]:
        images = [render.number(of.n_images)] if manifest.n_images else []
        counts = [render.number(of.n_samples), render.number(of.n_tokens)]
        shares = [render.share(of.n_supervised, of.n_tokens), *images]
        return [name, *counts, *shares, render.number(longest), render.size(n_bytes)]

    shards = manifest.shards
    rows = [row(s.name, s, s.longest, s.n_bytes) for s in shards[:_SHARDS_SHOWN]]
    longest = max((s.longest for s in shards), default=0)
    total = row(f"all {len(shards)}", manifest, longest, sum(s.n_bytes for s in shards))
    render.table("shards", columns, rows, total=total)
    if len(shards) > _SHARDS_SHOWN:
        print(f"  and {len(shards) - _SHARDS_SHOWN} more (all of them with --json)")


def _show_summary(summary: Summary, manifest: Manifest) -> None:
    inner = {name: n for name, n in summary.percentiles.items() if name not in ("p0", "p100")}
    points = "  ".join(f"{name} {render.number(n)}" for name, n in inner.items())
    ends = " to ".join(render.number(summary.percentiles.get(name, 0)) for name in ("p0", "p100"))
    kind = "pack" if manifest.is_packed else "sample"
    rows: list[tuple[str, object]] = [
        ("mean", f"{summary.mean_length:,.1f} tokens a {kind}"),
        ("from, to", ends),
        ("percentiles", points),
        ("supervised", render.share(summary.n_supervised, summary.n_tokens)),
        ("bytes a token", f"{summary.n_bytes / max(summary.n_tokens, 1):.2f}"),
    ]
    if summary.filled is not None:
        rows.append(("packs filled", f"{100 * summary.filled:.2f} %"))
        per_pack = summary.n_segments / max(summary.n_samples, 1)
        rows.append(
            (
                "segments",
                f"{render.number(summary.n_segments)}, {per_pack:.1f} a pack, "
                f"{render.number(summary.n_split)} continue in another pack",
            )
        )
    render.facts("lengths", rows)
    most = max((bar.n for bar in summary.histogram), default=1)
    widest = max(8, min(40, render.console().width - 32))
    bars = [
        (
            f"{bar.low:,} - {bar.high - 1:,}",
            render.number(bar.n),
            "█" * round(widest * bar.n / most) or "▏",
        )
        for bar in summary.histogram
        if bar.n
    ]
    render.table(None, [("tokens", "right"), (f"{kind}s", "right"), ("", "left")], bars)


def _sample(args: argparse.Namespace, dataset: Dataset) -> int:
    from shardkit.report import find_samples, save_images, view_sample

    wanted = f"0:{args.head}" if args.sample is None else args.sample
    places = find_samples(dataset, wanted)
    if args.json:
        views = [view_sample(dataset, number, row) for number, row in places]
        render.print_json(views if len(views) > 1 or ":" in wanted else views[0])
    else:
        for number, row in places:
            _show_sample(view_sample(dataset, number, row))
        legend = "bold green" if render.console().is_terminal else "⟦...⟧"
        render.note(f"(loss on {legend})")
    if args.save_images is not None:
        for number, row in places:
            for path in save_images(dataset, number, row, args.save_images):
                render.note(f"wrote {path}")
    return 0


def _show_sample(view: SampleView) -> None:
    supervised = render.share(view.n_supervised, view.n_tokens)
    rows = [("tokens", f"{render.number(view.n_tokens)}, {supervised} supervised")]
    if view.n_cut:
        rows.append(("truncated", f"{render.number(view.n_cut)} tokens cut"))
    for i, image in enumerate(view.images):
        size = f"{image.width} x {image.height}, {image.extension}, {render.size(image.n_bytes)}"
        if image.tokens is not None:
            grid = f", grid {' x '.join(map(str, image.grid))}" if image.grid else ""
            size += f"; {render.number(image.tokens)} tokens{grid}"
        rows.append((f"image {i}", f"{render.visible(image.name)} ({size})"))
    render.facts(f"{view.shard} {view.key}", rows)
    out = render.console()
    for segment in view.segments:
        where = f"{segment.source} row {segment.row}" + (f", id {segment.id}" if segment.id else "")
        where += f", {segment.answer}" if segment.answer else ""
        goes_on = f", goes on from token {segment.first}" if segment.first else ""
        title = f"── {render.visible(where)}: {segment.n_tokens} tokens{goes_on}"
        out.print(title, style="bold", markup=False)
        out.print(render.masked(segment.pieces))


def _shard(args: argparse.Namespace) -> int:
    from shardkit.format.shard import Shard
    from shardkit.storage.open import open_store, split
    from shardkit.storage.store import File

    folder, name = split(args.dataset)
    store = open_store(folder, **remote.options(args))
    with store.examine(File(name, 0, sha256_hex(args.dataset.encode()))) as path:
        shard = Shard.open(path, where=store.url(name))
    index = shard.index
    found: dict[str, Any] = {
        "name": name,
        "recipe_sha256": sha256_of(shard.recipe),
        "n_samples": shard.n_samples,
        "n_tokens": int(index["n_tokens"].sum(dtype=np.int64)),
        "n_supervised": int(index["n_supervised"].sum(dtype=np.int64)),
        "n_images": int(index["n_images"].sum(dtype=np.int64)),
        "is_packed": RowRules.of(shard.recipe).is_packed,
        "recipe": shard.recipe,
    }
    if args.json:
        render.print_json(found)
        return 0
    recipe = shard.recipe
    render.facts(
        store.url(name),
        [
            ("recipe", found["recipe_sha256"][:16]),
            ("template", recipe.get("template", {}).get("name", "-")),
            ("max length", recipe.get("max_length") or "no limit"),
            ("packing", recipe.get("packing")),
            ("samples", render.number(shard.n_samples)),
            (
                "tokens",
                f"{render.number(found['n_tokens'])}, "
                f"{render.share(found['n_supervised'], found['n_tokens'])} supervised",
            ),
            ("images", render.number(found["n_images"])),
        ],
    )
    render.note("A sample is shown from its dataset: shardkit inspect DIR --sample SHARD/KEY")
    return 0
