"""shardkit itself: ShardLoader with its defaults, hash check on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import SIZE, Case, Opener

from shardkit import ShardLoader, ShardTable

label = "shardkit"
packages = ("shardkit", "numpy", "torch", "simplejpeg")


_loaders: dict[tuple[str, int], ShardLoader] = {}


def write(case: Case, folder: Path) -> None:
    """read.py packed it: the samples of all others come from here."""


def loader(case: Case, folder: Path, n_workers: int = 0) -> ShardLoader:
    """One rank."""
    options: dict[str, Any] = {}
    if case.decode:
        from shardkit.images import ImageTransform

        options["image_transform"] = ImageTransform(SIZE)
    return ShardLoader(
        folder, case.batch_size, num_workers=n_workers, rank=0, world_size=1, **options
    )


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """The default shuffle; a second epoch goes on with the same loader, as in training."""
    key = (case.name, n_workers)
    if epoch == 0:
        _loaders.clear()
        _loaders[key] = loader(case, folder, n_workers)
    _loaders[key].set_epoch(epoch)
    return iter(_loaders[key])


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """The state that a run would have saved there."""
    before = loader(case, folder)
    steps = iter(before)
    for _ in range(n_batches):
        next(steps)
    state = before.state_dict()

    def opened() -> Iterator[Any]:
        made = loader(case, folder)
        made.load_state_dict(state)
        return iter(made)

    return opened


def items(case: Case, folder: Path) -> Any:
    """Through ShardTable."""
    return ShardTable(folder).__getitem__


def lists(case: Case, folder: Path) -> Any:
    """As a DataLoader asks for a batch."""
    return ShardTable(folder).__getitems__
