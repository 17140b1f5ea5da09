"""Rows that are added to fill the last global batch add nothing to the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import make_dataset
from transformers import LlamaConfig, LlamaForCausalLM

from shardkit import ShardLoader


def summed(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The loss of a batch, summed over its supervised tokens, and their number."""
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    logits = model(**inputs, use_cache=False).logits
    labels = batch["labels"][:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels, reduction="sum", ignore_index=-100
    )
    return loss, int((labels != -100).sum())


@pytest.mark.parametrize("packed", [False, True])
def test_padding_rows_add_nothing(tmp_path: Path, packed: bool) -> None:
    """Loss, tokens and gradients of 3 ranks with padding equal those of 1 rank without any."""
    make_dataset(tmp_path, (7,), packed=packed)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12_000, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    def epoch(world_size: int, batch_size: int) -> tuple[float, int, torch.Tensor, int]:
        model.zero_grad()
        total, n_tokens, n_added = 0.0, 0, 0
        for rank in range(world_size):
            options = {"rank": rank, "world_size": world_size, "drop_last": False}
            for batch in ShardLoader(tmp_path, batch_size, **options):  # type: ignore[arg-type]
                loss, n = summed(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                total, n_tokens = total + loss.item(), n_tokens + n
                n_added += batch["n_padding_rows"]
        grad = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return total, n_tokens, grad, n_added

    alone, shared = epoch(1, 1), epoch(3, 2)
    assert (alone[3], shared[3]) == (0, 5)  # rank 2's second batch is nothing but added rows
    assert shared[1] == alone[1]
    assert shared[0] == pytest.approx(alone[0], rel=1e-5)
    torch.testing.assert_close(shared[2], alone[2], rtol=1e-3, atol=1e-5)
