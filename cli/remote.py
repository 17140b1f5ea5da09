"""Options of commands that read a dataset behind a URL."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardkit.dataset import Dataset

WHERE = "the dataset: a folder, or a URL (s3://, gs://, hf://, https:// ...)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what reaching a URL may need."""
    group = parser.add_argument_group("for a URL")
    add_storage_option(group)
    group.add_argument(
        "--cache-dir", metavar="DIR", help="where shards are kept (default: $SHARDKIT_CACHE)"
    )


def add_storage_option(group: argparse._ActionsContainer) -> None:
    """Add the option that fsspec's file system is given."""
    group.add_argument(
        "--storage-option",
        dest="storage_options",
        action="append",
        type=_option,
        default=[],
        metavar="NAME=VALUE",
        help="for fsspec's file system, as endpoint_url=http://minio:9000 (VALUE may be JSON)",
    )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The options as the library takes them."""
    return {"storage_options": dict(args.storage_options), "cache_dir": args.cache_dir}


def open_dataset(args: argparse.Namespace) -> Dataset:
    """The dataset that the command was given."""
    from shardkit import dataset

    return dataset.open_dataset(args.dataset, **options(args))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
