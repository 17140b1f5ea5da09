"""Memory of batches is used again, and never while anything still refers to it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import make_dataset

from shardkit import ShardLoader
from shardkit.loader.collate import MAX_KEPT, Buffers


def address(array: np.ndarray) -> int:
    """Where the array lies."""
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    """The array that was let go of comes back, also for a smaller shape."""
    buffers = Buffers()
    first = buffers.take(4, 8, 100)
    where = address(first)
    del first

    assert address(buffers.take(2, 8, 90)) == where


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array,
        lambda array: array[1:, ::2],
        torch.from_numpy,
        lambda array: torch.from_numpy(array).unbind()[2][:, 3:],
        lambda array: torch.from_numpy(array)[0].numpy()[:1],
        lambda array: torch.from_numpy(array).view(-1).untyped_storage(),
    ],
    ids=["array", "view", "tensor", "tensor view", "array of a tensor", "storage"],
)
def test_memory_that_is_held_is_not_given_out(keep: object) -> None:
    """By an array, a view, a tensor, a view of one, an array of one, or its storage."""
    buffers = Buffers()
    array = buffers.take(3, 4, 50)
    where = address(array)
    held = keep(array)  # type: ignore[operator]
    del array
    gc.collect()

    taken = [buffers.take(3, 4, 50) for _ in range(MAX_KEPT + 3)]

    assert where not in {address(each) for each in taken}
    assert len({address(each) for each in taken}) == len(taken)
    del held
    assert address(buffers.take(3, 4, 50)) == where


def test_arrays_that_became_too_small_are_let_go() -> None:
    """Growing batches do not fill the memory with arrays that fit none of them."""
    buffers = Buffers()
    for n in range(100, 5000, 100):
        buffers.take(n)

    assert len(buffers._kept) == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_that_are_kept_do_not_change(tmp_path: Path, packed: bool, prefetch: int) -> None:
    """All batches of an epoch, kept, still hold at its end what they held when they came."""
    make_dataset(tmp_path / "data", [150, 90], packed=packed)
    loader = ShardLoader(tmp_path / "data", 4, prefetch=prefetch, rank=0, world_size=1)
    kept, copies = [], []
    for i, batch in enumerate(loader):
        tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
        copies.append({name: value.clone() for name, value in tensors.items()})
        kept.append({"labels": tensors["labels"][1:]} if i % 2 else tensors)

    for held, copy in zip(kept, copies, strict=True):
        for name, value in held.items():
            expected = copy[name][1:] if len(held) == 1 else copy[name]
            assert torch.equal(value, expected), name
