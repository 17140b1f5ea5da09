"""How do rows without turns become pieces: plain text, and ids that are there already?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Conversation, Reason, Reject
from shardkit.format.samples import IGNORE_INDEX
from shardkit.tokens.pieces import BOS, Pieces, mismatch, shielded


class TextPieces:
    """Pretraining text: BOS, then the text, all of it in the loss, and no EOS (as XTuner does)."""

    def __init__(self, *, has_bos: bool, shield: Callable[[str], str] | None = None) -> None:
        self._has_bos = has_bos
        self._shield = shield

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the text's pieces, or give the reason why it has none."""
        text = "".join(message.text for message in conversation.messages)
        if not text:
            return Reject(Reason.EMPTY_TEXT)
        if self._shield is not None:
            text = shielded(text, self._shield, keeps_marks=bool(conversation.images))
        if self._has_bos:
            pieces.add_constant(BOS)
        pieces.add_text(text, supervised=1, has_images=bool(conversation.images))
        return None


class TokenPieces:
    """Rows of ids and labels, taken as they are once they fit the vocabulary."""

    def __init__(self, vocab_size: int, image_placeholder: int) -> None:
        self._vocab_size = vocab_size
        self._placeholder = image_placeholder

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the row, or give the reason why it cannot be used."""
        try:
            ids = np.array(conversation.ids, np.int32)
            labels = np.array(conversation.labels, np.int32)
        except (OverflowError, ValueError, TypeError) as error:
            return Reject(Reason.BAD_TOKENS, str(error))
        detail = self._problem(ids, labels)
        if detail is None:
            detail = _cuts_problem(conversation.cuts, len(ids))
        if detail is not None:
            return Reject(Reason.BAD_TOKENS, detail)
        n_marks = int(np.count_nonzero(ids == self._placeholder))
        if conversation.images and n_marks != len(conversation.images):
            return mismatch(n_marks, len(conversation.images))
        if conversation.cuts:
            pieces.cuts[pieces.n_rows] = conversation.cuts
        pieces.order.append(-1 - len(pieces.token_rows))
        pieces.supervised.append(1)
        pieces.token_rows.append((ids, labels))
        return None

    def _problem(self, ids: NDArray[np.int32], labels: NDArray[np.int32]) -> str | None:
        if ids.ndim != 1 or len(ids) != len(labels):
            return f"{len(ids)} ids, {len(labels)} labels"
        is_image = ids == self._placeholder
        bad = np.flatnonzero(((ids < 0) | (ids >= self._vocab_size)) & ~is_image)
        if len(bad):
            at = int(bad[0])
            return f"id {ids[at]} at {at} is not in the vocabulary of {self._vocab_size}"
        wrong = np.flatnonzero((labels != ids) & (labels != IGNORE_INDEX))
        if len(wrong):
            at = int(wrong[0])
            return f"label {labels[at]} at {at} is neither the id {ids[at]} nor {IGNORE_INDEX}"
        if np.any(is_image & (labels != IGNORE_INDEX) & (ids < 0)):
            return "an image placeholder has a label"
        return None


def _cuts_problem(cuts: tuple[int, ...], length: int) -> str | None:
    """Borders of an already packed row: 0, ascending, the length."""
    if not cuts:
        return None
    is_ascending = all(a < b for a, b in pairwise(cuts))
    if not is_ascending or cuts[0] != 0 or cuts[-1] != length:
        return f"the borders of the packed row are not 0, ascending, {length}: {cuts[:8]}"
    return None
