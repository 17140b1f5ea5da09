"""Small tokenizers: the one of tests/data/tokenizer, loaded once, and one of Llama-2's kind."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import tokenizers

from shardkit.tokens import Tokenizer, load_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "data" / "tokenizer"


@cache
def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of 2,048 ids with ChatML markers."""
    return load_tokenizer(FOLDER)


def metaspace_tokenizer(
    *,
    prepend_scheme: str = "always",
    split: bool = False,
    normalized: bool = False,
    normalizer: bool = False,
) -> Tokenizer:
    """A BPE with byte fallback whose spaces are `▁`, put there by a pre-tokenizer.

    `normalized`: its special tokens are found after the normalizer; `normalizer`: it has one.
    """
    special = ["<unk>", "<s>", "</s>"]
    merges = "▁ ▁|▁▁ ▁▁|▁ t|h e|▁t he|▁ a|i n|e r|o u|n r|H E|T HE|▁ THE|0 1|2 9|01 29|. ,|a ▁"
    pairs = [(first, second) for first, _, second in (m.partition(" ") for m in merges.split("|"))]
    letters = sorted(
        {
            *"".join(first + second for first, second in pairs),
            *"abcdefghijklmnopqrstuvwxyzTHE0129.,!?▁\n",
        }
    )
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens += [first + second for first, second in pairs]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
            merges=pairs,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
        prepend_scheme=prepend_scheme, split=split
    )
    if normalizer:
        backend.normalizer = tokenizers.normalizers.NFC()
    added = [tokenizers.AddedToken(t, special=True, normalized=normalized) for t in special]
    backend.add_special_tokens(added)
    return load_tokenizer(backend)
