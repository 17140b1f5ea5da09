"""DeepSpeed: environment variables, rows for sequence parallelism, and a build without a use."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator

import torch

from shardkit.errors import UsageError
from shardkit.format.recipe import SFT
from shardkit.loader import ShardLoader
from shardkit.loader.collate import Batch
from shardkit.loader.world import SLURM

_NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")


def slurm_to_env(port: int = 29500) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from Slurm's variables.

    DeepSpeed reads only the former, and otherwise looks for MPI. Variables that are set already
    (by torchrun inside srun, say) stay. Outside a step of Slurm (srun) nothing is done, and so
    neither in a batch script, which is one process.
    """
    if SLURM["WORLD_SIZE"] not in os.environ or "RANK" in os.environ:
        return
    for name, slurm in SLURM.items():
        if slurm in os.environ:
            os.environ.setdefault(name, os.environ[slurm])
    nodes = next((os.environ[name] for name in _NODE_LISTS if name in os.environ), "")
    os.environ.setdefault("MASTER_ADDR", first_node(nodes))
    os.environ.setdefault("MASTER_PORT", str(port))


class SequenceRows:
    """A loader for DeepSpeed's UlyssesSPDataLoaderAdapter: only what is shared out by token.

    The adapter takes one batch from every rank of a sequence-parallel group and deals each out
    along the sequence, so **each rank of the group must read its own rows** (no `group=` of the
    loader): with equal rows on all of them every row is trained on several times. It reads the
    second dimension of every tensor, which the borders of packed rows do not have: batches hold
    `input_ids`, `labels`, `position_ids` alone, (B, T), and `loss_weights` where the loader makes
    them; documents are told apart by their positions. Make rows equally long with
    `pad_to_multiple_of`, a multiple of the group's size.

    Positions keep documents apart under FlashAttention alone, and only in a batch of one row:
    packed rows are refused in larger batches, and, when the first batch is asked for, where
    Ulysses took the place of another attention. `across_documents=True` lets documents of a pack
    attend to the ones before them.

    Raises UsageError for rows of preferences and for datasets with pictures, which have no place
    in it.
    """

    def __init__(self, loader: ShardLoader, *, across_documents: bool = False) -> None:
        if loader.dataset.task != SFT:
            raise UsageError(
                "rows of preferences are not shared out by token",
                where=loader.dataset.members[0].root,
                fix="Train them without sequence parallelism.",
            )
        for member in loader.dataset.members:
            if member.manifest.n_images:
                raise UsageError(
                    "pictures are not shared out by token: their rows would be trained on blind",
                    where=member.root,
                    found=f"{member.manifest.n_images} pictures",
                    fix="Train them without sequence parallelism.",
                )
        self.loader = loader
        self._must_be_apart = loader.dataset.is_packed and not across_documents
        if self._must_be_apart and loader.batch_size > 1:
            raise _leak("a batch of several packed rows", f"batch_size={loader.batch_size}", "1")

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        leaking = _attentions_without_borders() if self._must_be_apart else []
        if leaking:
            raise _leak("packed rows under this attention", leaking[0], "flash_attention_2")
        for batch in self.loader:
            width = batch["input_ids"].shape
            yield {
                name: value
                for name, value in batch.items()
                if name != "attention_mask"
                and isinstance(value, torch.Tensor)
                and value.shape == width
            }


def _attentions_without_borders() -> list[str]:
    """The attentions of transformers in whose place Ulysses stands, and which see no borders."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS

    found = {name: getattr(ATTENTIONS[name], "__qualname__", "") for name in ATTENTIONS}
    return [
        name
        for name, function in found.items()
        if function.startswith("UlyssesSPAttentionHF.") and "flash" not in name
    ]


def _leak(what: str, found: str, expected: str) -> UsageError:
    return UsageError(
        f"{what}: Ulysses drops masks and borders, so documents would attend to the ones before",
        expected=expected,
        found=found,
        fix='Register it with core_attn_implementation="flash_attention_2" and use batch_size=1, '
        "train on unpacked rows, or allow it: SequenceRows(loader, across_documents=True).",
    )


def without_shm_build() -> None:
    """On a CPU, keep DeepSpeed from compiling its shared-memory op, which training never calls.

    It is compiled in every `initialize` otherwise: two minutes, and g++ and ninja must be there.
    (deepspeed 0.19; where the internal name is another one, nothing is changed.)
    """
    try:
        ops = importlib.import_module("deepspeed.ops").__compatible_ops__
        ops["deepspeed_shm_comm"] = False
    except (ImportError, AttributeError, TypeError):
        return


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list, as rack[1-2]n[07-09,12],login: rack1n07.

    Read here, because scontrol is missing in most containers. This host when there is none.
    """
    first = re.match(r"(?:[^,[]|\[[^]]*\])*", nodes)
    name = re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0] if first else "")
    return name or "127.0.0.1"
