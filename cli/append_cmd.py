"""shardkit append: new files become new shards of a dataset."""

from __future__ import annotations

import argparse
import time

from shardkit.builder import append
from shardkit.builder.build_engines import engine_options
from shardkit.builder.options import AppendOptions

from . import remote, render
from .options import add_options, add_sources, given, path
from .pack_cmd import Watch, add_engine, going_on
from .pack_summary import show_packed

MAY_FORK = True
"""Workers may be forked from the command itself: it has no thread then."""
DESCRIPTION = """\
Pack more files into a finished dataset: with the recipe in its manifest, the
tokenizer that lies in it, into new shards. Its own shards are not touched, and
it stays as it was until the manifest is replaced, last. An append that was
killed continues when the same command is run again."""

EXAMPLES = """\
examples:
  shardkit append alpaca more.jsonl
  shardkit append llava new/*.json --image-root images --workers 8"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `append`."""
    parser.add_argument("dataset", type=path, metavar="DIR", help="the dataset")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="as of pack")
    add_sources(parser)
    parser.add_argument(
        "--discard", action="store_true", help="throw away an unfinished append of other files"
    )
    add_options(parser, AppendOptions)
    add_engine(parser)
    remote.add_storage_option(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    render.add_progress_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `append`."""
    begun = time.monotonic()
    building = args.dataset / ".building" / "append"
    with going_on(args, building), render.meter("appending", args) as meter:
        watch = Watch(meter, "appending")
        manifest = append(
            args.dataset,
            args.inputs,
            image_root=args.image_root,
            tokenizer=args.tokenizer,
            processor=args.processor,
            discard=args.discard,
            storage_options=dict(args.storage_options),
            on_progress=watch.show,
            **given(args, AppendOptions, *engine_options()),
        )
    return show_packed(manifest, args.dataset, args, time.monotonic() - begun, watch.rate)
