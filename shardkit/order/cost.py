"""What a sample costs a model: integers, from lengths alone.

A decoder of P parameters a layer and attention of width h takes, for documents of lengths l,
about `P * sum(l) + h * sum(l ** 2)` multiplications a layer (causal attention), and a picture what
its patches cost the vision tower. Only the ratios count.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.order.permute import U64

Weights = tuple[int, int, int]
"""What a token, a squared token of a document, and an image token cost."""

DEFAULT_WEIGHTS: Weights = (12 * 2048, 1, 0)
"""A dense decoder of hidden size 2,048: a small one, in which attention weighs much."""
_LARGEST = 1 << 28
"""The weight of a model's token, or image token, whichever costs more: 2**20 tokens then cost less
than 2**60."""


def costs_of(index: NDArray[np.void] | Mapping[str, NDArray[Any]], weights: Weights) -> U64:
    """(n,) uint64: the cost of each index row. Raises UsageError where one needs more bits."""
    names = ("length", "cost2", "n_image_tokens")
    numbers = [index[name].astype(np.uint64) for name in names]
    highest = [int(column.max(initial=0)) for column in numbers]
    if sum(map(operator.mul, highest, weights)) >= 1 << 64:
        raise UsageError(
            "cost_model has weights that are too large for samples as long as these",
            expected="costs below 2**64",
            found=f"{weights} for {highest[0]} tokens, {highest[1]} squared",
            fix="Only the ratios count: divide all three by the same number.",
        )
    length, squares, images = numbers
    token, square, image = map(np.uint64, weights)
    costs: U64 = np.asarray(length * token + squares * square + images * image, np.uint64)
    return costs


def weights_of(model: object) -> Weights:
    """The weights for `model`: three whole numbers, a model, or its transformers config.

    None gives DEFAULT_WEIGHTS. Raises UsageError.
    """
    if model is None:
        return DEFAULT_WEIGHTS
    if isinstance(model, Sequence) and not isinstance(model, str):
        return _checked(model)
    config: Any = getattr(model, "config", model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not isinstance(getattr(text, "hidden_size", None), int):
        raise UsageError(
            "cost_model has a wrong value",
            expected="a model, its config, or three whole numbers from 0",
            found=type(model).__name__,
            fix="Give the costs of a token, a squared token and an image token: (24576, 1, 0).",
        )
    return _scaled(*_of_decoder(text), _of_vision(config, text))


def _checked(given: Sequence[Any]) -> Weights:
    is_whole = all(isinstance(one, int) and not isinstance(one, bool) for one in given)
    if len(given) != 3 or not is_whole or not all(0 <= one < 1 << 32 for one in given):
        raise UsageError(
            "cost_model has a wrong value",
            expected="three whole numbers from 0 to 2**32 - 1",
            found=repr(given)[:80],
            fix="Give the costs of a token, a squared token and an image token: (24576, 1, 0).",
        )
    return int(given[0]), int(given[1]), int(given[2])


def _of_decoder(text: Any) -> tuple[float, float]:
    """Parameters that a token meets in a layer, its share of the head too; width of attention."""
    hidden = text.hidden_size
    heads = getattr(text, "num_attention_heads", None) or 1
    size = getattr(text, "head_dim", None) or hidden // heads
    pairs = getattr(text, "num_key_value_heads", None) or heads
    width = heads * size
    mlp = getattr(text, "intermediate_size", None) or 4 * hidden
    active = getattr(text, "num_experts_per_tok", None)
    if active:
        mlp = active * (getattr(text, "moe_intermediate_size", None) or mlp)
    layers = getattr(text, "num_hidden_layers", None) or 1
    head = (getattr(text, "vocab_size", None) or 0) * hidden / layers
    return hidden * (2 * width + 2 * pairs * size) + 3 * hidden * mlp + head, width


def _of_vision(config: Any, text: Any) -> float:
    """The cost of an image token: its patches in the vision tower, per layer of the decoder."""
    vision = getattr(config, "vision_config", None)
    if vision is None or not getattr(vision, "hidden_size", None):
        return 0.0
    hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
    depth = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None) or 1
    patches = (getattr(vision, "spatial_merge_size", None) or 1) ** 2
    layers = getattr(text, "num_hidden_layers", None) or 1
    return float(12 * hidden * hidden * depth * patches / layers)


def _scaled(token: float, square: float, image: float) -> Weights:
    """Whole numbers in these ratios, so small that no cost leaves 64 bits."""
    unit = max(token, image, 1.0) / _LARGEST
    return round(token / unit), max(1, round(square / unit)), round(image / unit)
