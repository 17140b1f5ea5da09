"""Megatron-Energon: webdataset's tars with its index, a cooker, and its savable loader."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rival_webdataset
from common import Case, Opener, after
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_savable_loader,
    get_train_dataset,
    stateless,
)

label = "Megatron-Energon"
packages = ("megatron-energon",)


@edataclass
class Tokens(Sample):  # type: ignore[misc]
    """What the cooker makes of the members of a sample."""

    rows: list[Any]
    image: bytes | None


def write(case: Case, folder: Path) -> None:
    """Tars, and `energon prepare`."""
    rival_webdataset.write(case, folder, picture="bytes")  # jpg would be decoded, not by us
    command = "energon prepare --non-interactive --split-ratio 1,0,0 --sample-type CrudeWebdataset"
    program = str(Path(sys.executable).with_name("energon"))
    subprocess.run(
        [program, *command.split()[1:], "--num-workers", "1", str(folder)],
        check=True, capture_output=True,
    )  # fmt: skip


def loader(case: Case, folder: Path, n_workers: int) -> Any:
    """Endless, with a shuffle buffer of 1,000."""

    @stateless
    def cook(sample: dict[str, Any]) -> Tokens:
        rows = [sample[f"{name}.npy"] for name in case.fields]
        return Tokens(**basic_sample_keys(sample), rows=rows, image=sample.get("bytes"))

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc, type-arg]
        cookers = [Cooker(cook)]  # noqa: RUF012

        @stateless
        def encode_sample(self, sample: Tokens) -> Tokens:
            return sample

        @stateless
        def batch(self, samples: list[Tokens]) -> dict[str, Any]:
            return case.collate([(sample.rows, sample.image) for sample in samples])

        @stateless
        def encode_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    dataset = get_train_dataset(
        str(folder), batch_size=case.batch_size, shuffle_buffer_size=1000,
        max_samples_per_sequence=100, task_encoder=Encoder(),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=n_workers),
    )  # fmt: skip
    return get_savable_loader(dataset)


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """As many batches as an epoch has."""
    steps = iter(loader(case, folder, n_workers))
    return (next(steps) for _ in range(len(case) // case.batch_size))


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """Its own state."""
    before = loader(case, folder, 0)
    after(n_batches, iter(before))
    state = before.save_state_rank()

    def opened() -> Iterator[Any]:
        made = loader(case, folder, 0)
        made.restore_state_rank(state)
        return iter(made)

    return opened


items = None
