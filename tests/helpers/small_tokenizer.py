"""The small tokenizer of tests/data/tokenizer, loaded once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from shardkit.tokens import Tokenizer, load_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "data" / "tokenizer"


@cache
def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of 2,048 ids with ChatML markers."""
    return load_tokenizer(FOLDER)
