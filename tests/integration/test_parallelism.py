"""Sequence parallelism: under DeepSpeed's adapter each row is trained on once, cut in two."""

from __future__ import annotations

from contextlib import nullcontext as calm
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import reports
from ranks import run_ranks
from records import TOKENIZER, alpaca_rows, write_json
from tiny_models import tiny_llama

from shardkit import ShardLoader, pack
from shardkit.errors import UsageError
from shardkit.integrations.deepspeed import SequenceRows

NAMES = ("input_ids", "position_ids")
SCRIPT = Path(__file__).with_name("run_ulysses.py")


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_the_ulysses_adapter_reads_every_row_once(tmp_path: Path, packing: str) -> None:
    """The halves of the two ranks, put together, are the rows of a plain loader; two epochs.

    A model with Ulysses' attention has the loss that one process has of the whole row; of a pack,
    under SDPA, that of documents that attend to the ones before them: it drops every mask.
    """
    pack(
        write_json(tmp_path / "rows.json", alpaca_rows(24)),
        tmp_path / "out",
        tokenizer=TOKENIZER,
        template="qwen_chat",
        max_length=128,
        packing=packing,
    )
    run_ranks(2, SCRIPT, tmp_path / "out", tmp_path)
    first, second = reports(tmp_path, 2)
    alone = ShardLoader(tmp_path / "out", 1, seed=1, rank=0, world_size=1, pad_to_multiple_of=128)
    for epoch in range(2):
        halves = zip(first["epochs"][epoch], second["epochs"][epoch], strict=True)
        joined = [
            tuple(tuple(left[name][0] + right[name][0]) for name in NAMES) for left, right in halves
        ]
        expected = [tuple(tuple(batch[name][0].tolist()) for name in NAMES) for batch in alone]
        n_steps = len(alone) // 2 * 2
        assert len(joined) == n_steps == first["len"]
        if epoch == 0:
            assert sorted(joined) == sorted(expected[:n_steps])
        assert len(set(joined)) == n_steps
    assert first["state"] == second["state"]
    assert first["losses"] == second["losses"]
    assert ("sdpa" in first["refused"]) == (packing != "none")
    with calm() if packing == "none" else pytest.raises(UsageError, match="batch_size=2"):
        SequenceRows(ShardLoader(tmp_path / "out", 2, rank=0, world_size=1))
    alone.set_epoch(0)
    model = tiny_llama()
    plain = {key_of(batch): loss_of(model, alone.model_inputs(batch)) for batch in alone}
    found = {
        tuple(left["input_ids"][0] + right["input_ids"][0]): loss
        for left, right, loss in zip(
            first["epochs"][0], second["epochs"][0], first["losses"], strict=True
        )
    }
    assert found == pytest.approx({key: plain[key] for key in found}, rel=1e-5)


def key_of(batch: dict[str, Any]) -> tuple[int, ...]:
    return tuple(batch["input_ids"][0].tolist())


def loss_of(model: Any, inputs: dict[str, Any]) -> float:
    """The sum over a row's labels, attention being causal and nothing else."""
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    labels = inputs.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    ).item()
