"""Two ranks of one sequence-parallel group under DeepSpeed's adapter; the rows go into JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import (
    UlyssesSPAttentionHF,
    UlyssesSPDataLoaderAdapter,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from tiny_models import tiny_llama

from shardkit import ShardLoader
from shardkit.errors import UsageError
from shardkit.integrations.deepspeed import SequenceRows, without_shm_build


def loss_of(model: Any, row: dict[str, torch.Tensor]) -> float:
    """The sum over a row's labels, of which this rank has its part."""
    with torch.no_grad():
        logits = model(
            input_ids=row["input_ids"], position_ids=row["position_ids"], use_cache=False
        ).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), row["shift_labels"].flatten(), ignore_index=-100, reduction="sum"
    )
    torch.distributed.all_reduce(loss)
    return loss.item()


def main() -> None:
    dataset, folder = sys.argv[1], Path(sys.argv[2])
    without_shm_build()
    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    loader = ShardLoader(dataset, 1, seed=1, pad_to_multiple_of=128)
    sequence_rows = SequenceRows(loader, across_documents=True)
    rows = UlyssesSPDataLoaderAdapter(
        sequence_rows, rank, torch.distributed.group.WORLD, 2, torch.device("cpu")
    )
    epochs: list[list[dict[str, object]]] = []
    losses: list[float] = []
    model = tiny_llama()
    model.set_attn_implementation("sdpa")
    UlyssesSPAttentionHF.register_with_transformers(model, "sdpa", 2, 1)
    for epoch in range(2):
        epochs.append([])
        for row in rows:
            epochs[-1].append({name: value.tolist() for name, value in row.items()})
            if epoch == 0:
                losses.append(loss_of(model, row))
    refused = ""
    try:
        next(iter(SequenceRows(loader)))
    except UsageError as err:
        refused = str(err)
    report = {
        "refused": refused,
        "epochs": epochs,
        "losses": losses,
        "len": len(rows),
        "state": loader.state_dict(),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
