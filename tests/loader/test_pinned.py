"""Page-locked batches where CUDA is in use, and no CUDA where it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from synthetic import make_dataset

from shardkit.loader import ShardLoader

HAS_CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 samples."""
    path = tmp_path_factory.mktemp("data")
    make_dataset(path, [30, 10])
    return path


READ = """
import sys, torch
from shardkit.loader import ShardLoader
for workers in (0, 1):
    for pin in (None, False):
        loader = ShardLoader(
            sys.argv[1], 4, rank=0, world_size=1, num_workers=workers, pin_memory=pin
        )
        for batch in loader:
            assert not any(getattr(value, "is_pinned", bool)() for value in batch.values())
print(torch.cuda.is_initialized())
"""


@pytest.mark.parametrize("is_hidden", [True, False])
def test_reading_does_not_start_cuda(dataset: Path, is_hidden: bool) -> None:
    """A process that does not use a GPU does not come to use one, whether there is one or not."""
    hide = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n" if is_hidden else ""
    command = [sys.executable, "-c", hide + READ, str(dataset)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"
    assert found.stderr == ""


@pytest.mark.skipif(HAS_CUDA, reason="only where there is no GPU")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_without_a_gpu_pinning_is_left_out(dataset: Path, prefetch: int) -> None:
    """pin_memory=True in a script that also runs elsewhere is no error."""
    loader = ShardLoader(dataset, 4, rank=0, world_size=1, pin_memory=True, prefetch=prefetch)
    assert len([batch["input_ids"] for batch in loader]) == 10


@pytest.mark.skipif(not HAS_CUDA, reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_with_a_gpu_in_use_batches_are_pinned(dataset: Path, workers: int) -> None:
    """By default, and not when told otherwise."""
    torch.zeros(1, device="cuda")
    for pin, expected in [(None, True), (True, True), (False, False)]:
        loader = ShardLoader(dataset, 4, rank=0, world_size=1, num_workers=workers, pin_memory=pin)
        for batch in loader:
            assert batch["input_ids"].is_pinned() == expected
            assert torch.equal(batch["input_ids"].to("cuda").cpu(), batch["input_ids"])


@pytest.mark.skipif(HAS_CUDA, reason="a stand-in for the GPU that is not there")
@pytest.mark.parametrize(
    ("pin", "in_use", "expected"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_who_pins_and_on_which_device(
    dataset: Path,
    pin: bool | None,
    in_use: bool,
    expected: bool,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every tensor once, in this process, on the GPU that it uses, also in the thread."""
    pinned: list[tuple[int, int]] = []
    inside: list[int] = []

    @contextmanager
    def device(number: int) -> Iterator[None]:
        inside.append(number)
        yield
        inside.remove(number)

    def pin_memory(self: torch.Tensor) -> torch.Tensor:
        pinned.append((self.data_ptr(), inside[-1]))
        return self

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    loader = ShardLoader(
        dataset, 4, rank=0, world_size=1, num_workers=workers, pin_memory=pin, prefetch=2
    )

    n_tensors = sum(isinstance(v, torch.Tensor) for batch in loader for v in batch.values())

    assert len(pinned) == (n_tensors if expected else 0)
    assert {number for _, number in pinned} <= {3}
