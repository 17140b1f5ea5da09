"""What a transformers model is called with: a batch, less what is for the script alone.

The borders of packed documents reach FlashAttention under four names, `cu_seq_lens_q`,
`cu_seq_lens_k`, `max_length_q` and `max_length_k`. Without them transformers looks for borders in
`position_ids`, and only where a batch has one row: with more rows it calls the plain causal
kernel, and documents attend to the ones before them (transformers PR 31629, trl PR 3526).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from shardkit.errors import UsageError
from shardkit.loader.collate import Batch

_FOR_THE_SCRIPT = frozenset(
    {
        *("keys", "images", "image_rows", "cu_seqlens", "max_seqlen", "loss_weights"),
        *("completion_mask", "label"),
    }
)
"""Names of a batch that no model takes."""
_PER_TOKEN = ("input_ids", "labels", "position_ids")
"""Names with the shape (B, T)."""


def model_inputs(
    batch: Batch,
    model: torch.nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
    borders: bool = True,
    flat: bool = False,
    seq_idx: bool = False,
) -> Batch:
    """The keyword arguments of `model(**model_inputs(batch))` for a transformers model.

    Tensors of the batch that models take, as they are. A packed batch also gets
    `use_cache=False` (with a cache, documents of a row attend to each other) and, with `borders`,
    `cu_seq_lens_q`, `cu_seq_lens_k` (int32, the borders of the documents in the flattened batch)
    and `max_length_q`, `max_length_k` (int): FlashAttention then keeps the documents apart for any
    number of rows, and other attentions ignore them.

    `flat` lays the rows of a packed batch end to end: (1, B * T). `seq_idx` adds the number of
    each token's document, int32 (B, T), for hybrid models (Mamba layers). `model`: leave out what
    its `forward` does not take. `device`: where the tensors go. Unpacked batches keep their
    `attention_mask` and are never laid end to end. Raises UsageError for a batch of pairs that
    stand apart.
    """
    if "chosen_input_ids" in batch:
        raise UsageError(
            "a batch of pairs is no input of one model call",
            fix="Give a loss of pairs its chosen_ and rejected_ tensors, or make the loader with "
            'pair_layout="stacked".',
        )
    inputs = {name: value for name, value in batch.items() if name not in _FOR_THE_SCRIPT}
    inputs.pop("n_padding_rows", None)
    if "cu_seqlens" in batch:
        inputs["use_cache"] = False
        if borders:
            inputs |= _borders(batch)
        if seq_idx:
            inputs["seq_idx"] = document_numbers(batch)
        if flat:
            names = (*_PER_TOKEN, "seq_idx")
            inputs |= {name: _end_to_end(inputs[name]) for name in names if name in inputs}
    if model is not None:
        inputs = _accepted(inputs, model)
    return inputs if device is None else {n: _moved(value, device) for n, value in inputs.items()}


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def with_borders(batch: Batch) -> Batch:
    """The batch; a packed one also with `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and
    `max_length_k`, the names that transformers models take."""
    return batch | _borders(batch) if "cu_seqlens" in batch else batch


def document_numbers(batch: Batch) -> torch.Tensor:
    """The number of each token's document in a packed batch: int32 (B, T), from 0 in every row.

    With cu_seqlens [0, 3, 5, 10] and two rows of five tokens: [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]].
    """
    positions: torch.Tensor = batch["position_ids"]
    positions = positions[0] if positions.dim() == 3 else positions
    return (positions.eq(0).cumsum(1) - 1).to(torch.int32)


def _end_to_end(rows: torch.Tensor) -> torch.Tensor:
    """(..., B, T) as (..., 1, B * T)."""
    return rows.reshape(*rows.shape[:-2], 1, -1)


def _borders(batch: Batch) -> Batch:
    lengths, longest = batch["cu_seqlens"], batch["max_seqlen"]
    return {
        "cu_seq_lens_q": lengths,
        "cu_seq_lens_k": lengths,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _accepted(inputs: Batch, model: torch.nn.Module) -> Batch:
    """The inputs that the model's `forward` names, or all where it takes any."""
    names = accepted_names(model)
    return inputs if names is None else {name: inputs[name] for name in inputs if name in names}


def accepted_names(model: Any) -> Iterable[str] | None:
    """The parameters of a model's `forward`; None where it takes any name."""
    inside = getattr(model, "module", model)  # of DistributedDataParallel and DeepSpeed's engine
    inside = inside.get_base_model() if hasattr(inside, "get_base_model") else inside  # of peft
    parameters = inspect.signature(inside.forward).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return None
    return parameters.keys()
