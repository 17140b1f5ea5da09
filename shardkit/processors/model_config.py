"""A model's config.json as an object, with what it leaves out where transformers knows that."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any


def config_of(fields: Mapping[str, Any]) -> Any:
    """The config of these fields of a config.json; `get_text_config()` is that of its decoder.

    A config like LLaVA-1.5's leaves out whatever is a default of its language model, also the
    hidden size: that comes from transformers, where it is installed and knows the model.
    """
    inner = fields.get("text_config", fields)
    if not (isinstance(inner, dict) and "hidden_size" in inner) and "model_type" in fields:
        with suppress(Exception):  # not installed, or of any kind where the fields do not fit
            from transformers import AutoConfig

            return AutoConfig.for_model(**fields)
    config = _as_object(fields)
    text = getattr(config, "text_config", config)
    return SimpleNamespace(**vars(config), get_text_config=lambda: text)


def _as_object(value: object) -> Any:
    """Objects of JSON with their fields as attributes."""
    if not isinstance(value, Mapping):
        return value
    return SimpleNamespace(**{name: _as_object(one) for name, one in value.items()})
