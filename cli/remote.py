"""Options of commands that read a dataset behind a URL."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from . import render
from .options import path

if TYPE_CHECKING:
    from shardkit.dataset import Dataset

WHERE = "the dataset: a folder, or a URL (s3://, gs://, hf://, https:// ...)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what reaching a URL may need."""
    group = parser.add_argument_group("for a URL")
    add_storage_option(group)
    group.add_argument(
        "--cache-dir",
        type=path,
        metavar="DIR",
        help="where shards are kept (default: $SHARDKIT_CACHE)",
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
    """The parsed options of `add_options` as the library's keyword arguments."""
    return {"storage_options": dict(args.storage_options), "cache_dir": args.cache_dir}


@contextmanager
def fetching_shown(args: argparse.Namespace) -> Iterator[None]:
    """While it lasts, a bar shows what is fetched, when no other bar is there."""
    from shardkit.storage.fetch_progress import fetch_progress_to

    with ExitStack() as stack:
        bar = _FetchBar(args)
        stack.callback(bar.end)
        stack.enter_context(fetch_progress_to(bar.show))
        yield


class _FetchBar:
    """A bar that is there while files are on their way, from several threads perhaps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = argparse.Namespace(
            log_json=getattr(args, "log_json", False), quiet=getattr(args, "quiet", False)
        )
        self._lock = Lock()
        self._files: dict[str, tuple[int, int]] = {}
        self._stack: ExitStack | None = None
        self._meter: render.Meter | None = None

    def show(self, name: str, n_done: int, n_total: int) -> None:
        """Show how much of a file is here."""
        with self._lock:
            self._files[name] = (n_done, n_total)
            if self._meter is None:
                if render.is_metered():
                    self._files.clear()  # the bar that is there counts them
                    return
                self._stack = ExitStack()
                self._meter = self._stack.enter_context(render.meter("fetching", self._args))
            done, total = map(sum, zip(*self._files.values(), strict=True))
            self._meter.update(done, total, "bytes")
            if done >= total:
                self._close()

    def end(self) -> None:
        """Take the bar away."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = self._meter = None
        self._files.clear()


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
