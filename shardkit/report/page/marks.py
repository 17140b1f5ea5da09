"""Tokens as runs of text: with or without loss, special, or standing for a picture."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.format.samples import IGNORE_INDEX, IMAGE_PLACEHOLDER
from shardkit.report.stored_tokenizer import stored_tokenizer

Kind = Literal["text", "special", "image", "unknown"]
_KINDS: tuple[Kind, ...] = ("text", "special", "image", "unknown")
_JOINERS = "\u200c\u200d"
"""Zero width, but part of words and emoji."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens that are alike."""

    text: str
    """The text as it may be shown: control characters are escapes."""
    has_loss: bool
    kind: Kind
    n_tokens: int


class Marker:
    """Tokens to runs, offline, with the tokenizer that lies in the dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self._tokenizer = stored_tokenizer(dataset)
        images = dataset.manifest.recipe.get("images") or {}
        known = (images.get("image_token"), images.get("image_token_id"))
        self._image_ids = [one for one in known if isinstance(one, int)] + [IMAGE_PLACEHOLDER]
        self._special: NDArray[np.int64] = np.zeros(0, np.int64)
        self._lead: int | None = None
        self._lead_text = ""
        if self._tokenizer is not None:
            added = self._tokenizer.get_added_tokens_decoder()
            self._special = np.array([i for i, token in added.items() if token.special], np.int64)
            self._find_lead(self._tokenizer)

    def runs(self, ids: NDArray[np.int32], labels: NDArray[np.int32]) -> list[Run]:
        """The runs of (n,) ids and labels, in order; each special token is a run of its own."""
        if not len(ids):
            return []
        kinds, has_loss = self._kinds(ids), labels != IGNORE_INDEX
        is_new = (np.diff(kinds) != 0) | (np.diff(has_loss.astype(np.int8)) != 0)
        is_new |= kinds[1:] == _KINDS.index("special")
        is_new |= (kinds[1:] == _KINDS.index("unknown")) & (np.diff(ids) != 0)
        starts = np.concatenate([[0], np.flatnonzero(is_new) + 1])
        ends = np.append(starts[1:], len(ids))
        parts = [ids[a:b].tolist() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        names = [_KINDS[int(kinds[a])] for a in starts]
        texts = [self._text(part, kind) for part, kind in zip(parts, names, strict=True)]
        return [
            Run(visible(text), bool(has_loss[start]), kind, len(part))
            for text, start, kind, part in zip(texts, starts, names, parts, strict=True)
        ]

    def _kinds(self, ids: NDArray[np.int32]) -> NDArray[np.int8]:
        kinds = np.zeros(len(ids), np.int8)
        kinds[np.isin(ids, self._special)] = _KINDS.index("special")
        if self._tokenizer is not None:
            for one in np.unique(ids).tolist():
                if one < 0 or self._tokenizer.id_to_token(one) is None:
                    kinds[ids == one] = _KINDS.index("unknown")
        kinds[np.isin(ids, self._image_ids)] = _KINDS.index("image")
        return kinds

    def _text(self, ids: list[int], kind: Kind) -> str:
        if kind == "image":
            return "<image>" if len(ids) == 1 else f"<image> × {len(ids)}"
        if kind == "unknown":
            return f"[{ids[0]}]" if len(ids) == 1 else f"[{ids[0]}] × {len(ids)}"
        if self._tokenizer is None:
            return " ".join(map(str, ids)) + " "
        if kind == "special":
            return str(self._tokenizer.id_to_token(ids[0]))
        if self._lead is None:
            return str(self._tokenizer.decode(ids, skip_special_tokens=False))
        text = str(self._tokenizer.decode([self._lead, *ids], skip_special_tokens=False))
        return text.removeprefix(self._lead_text)

    def _find_lead(self, tokenizer: tokenizers.Tokenizer) -> None:
        """A token to decode before each run: some decoders strip the first one's space."""
        ids = tokenizer.encode("a", add_special_tokens=False).ids
        if ids:
            self._lead = ids[-1]
            self._lead_text = str(tokenizer.decode([ids[-1]], skip_special_tokens=False))


def visible(text: str) -> str:
    """The text with control characters as escapes: what stands there is what is seen.

    Among them are those that turn the direction of text, and lone surrogates. New lines, tabs
    and the joiners of words and emoji stay.
    """
    return "".join(ascii(c)[1:-1] if _is_control(c) else c for c in text)


def _is_control(c: str) -> bool:
    return c not in "\n\t" and c not in _JOINERS and unicodedata.category(c) in ("Cc", "Cf", "Cs")
