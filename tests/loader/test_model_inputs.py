"""What a model is called with: documents of a pack stay apart under every attention."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers.modeling_flash_attention_utils as flash
from records import alpaca_dataset
from tiny_models import tiny_llama

from shardkit import ShardLoader


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_inputs")
    return alpaca_dataset(folder, 60, max_length=128, packing="best-fit")


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of (T, heads, size), as the kernel computes it."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1)


def fixed_kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **more: Any) -> torch.Tensor:
    return torch.stack([attend(*one) for one in zip(q, k, v, strict=True)])


def varlen_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, **more: Any
) -> torch.Tensor:
    ends = cu_seqlens_q.tolist()
    pieces = [attend(q[a:b], k[a:b], v[a:b]) for a, b in pairwise(ends)]
    return torch.cat(pieces)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention's kernels written in torch, under transformers' own choice among them."""
    with_kvcache = hasattr(flash, "_process_with_kvcache_kwargs_fn")  # from transformers 5.24 on
    no_more: Any = (lambda **_: {}, lambda **_: {}) if with_kvcache else lambda **_: {}
    loaded: Any = (fixed_kernel, varlen_kernel, None, None, None), no_more
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: loaded)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("is_flat", [False, True])
def test_no_document_sees_another(
    packed: Path, attention: str, batch_size: int, is_flat: bool
) -> None:
    """Another token in the first document changes no logit of any other one, in any row."""
    model: Any = tiny_llama()
    model.eval()
    model.config._attn_implementation = attention
    batch = next(iter(ShardLoader(packed, batch_size, seed=1)))
    inputs = ShardLoader.model_inputs(batch, model, flat=is_flat)
    first = int(batch["cu_seqlens"][1])
    assert 3 < first < batch["input_ids"].shape[1]
    with torch.no_grad():
        before = model(**inputs).logits.flatten(0, 1)
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][0, 3] += 7
        after = model(**inputs).logits.flatten(0, 1)
    differ = (before - after).abs().amax(1) > 0
    assert differ[3:first].all()
    assert not differ[first:].any()


def test_each_document_has_the_logits_that_it_has_alone(packed: Path) -> None:
    """The oracle is the model on one document, without packing."""
    model: Any = tiny_llama()
    model.eval()
    batch = next(iter(ShardLoader(packed, 3, seed=1)))
    ends = batch["cu_seqlens"].tolist()
    with torch.no_grad():
        together = model(**ShardLoader.model_inputs(batch, model, flat=True)).logits[0]
        for begin, end in pairwise(ends):
            ids = batch["input_ids"].flatten()[begin:end]
            alone = model(input_ids=ids[None], use_cache=False).logits[0]
            torch.testing.assert_close(together[begin:end], alone, atol=1e-5, rtol=1e-5)


def test_the_number_of_a_tokens_document(packed: Path) -> None:
    """`seq_idx` counts the documents of each row from 0, and its steps are the borders."""
    batch = next(iter(ShardLoader(packed, 2, seed=1)))
    inputs = ShardLoader.model_inputs(batch, seq_idx=True, borders=False)
    assert inputs["seq_idx"].dtype == torch.int32
    for row, numbers in enumerate(inputs["seq_idx"].tolist()):
        begins = [i for i, p in enumerate(batch["position_ids"][row].tolist()) if p == 0]
        assert numbers == [sum(b <= i for b in begins) - 1 for i in range(len(numbers))]
    assert "cu_seq_lens_q" not in inputs


def test_only_what_the_model_takes(packed: Path) -> None:
    """A forward without **kwargs is not given names that it lacks."""

    class Narrow(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return input_ids

    batch = next(iter(ShardLoader(packed, 2, sample_keys=True)))
    assert set(ShardLoader.model_inputs(batch, Narrow())) == {"input_ids", "labels"}
    wide = ShardLoader.model_inputs(batch, tiny_llama())
    assert "keys" not in wide
    assert wide["use_cache"] is False
