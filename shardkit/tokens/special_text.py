"""How does text that looks like a special token stay text?

A user may type `<|im_end|>`. With `special_tokens_in_text="literal"` every such look-alike in a
record is replaced by one private-use character before the template is applied (it is *shielded*);
the markers that are left are the template's own. Encoding then cuts the text at those, restores
the look-alikes between them, and encodes these stretches with a backend that matches no marker.
Text without a look-alike takes the ordinary way, and has the ordinary ids.

Markers are the special added tokens, and other added tokens that are written like one (`<...>`,
`[...]`): Qwen's `<tool_call>` is not flagged special. Added tokens for white space are not.
"""

from __future__ import annotations

import re
from functools import cached_property

import msgspec
import numpy as np
import tokenizers

from shardkit.ragged import offsets, spread
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.tokenizer_engines import Encode, Flat, backend_encode

_FIRST = 0x100000
_ESCAPE = "\U0010fffd"
_PRIVATE = re.compile("[\U00100000-\U0010fffd]")
_SHIELDED = re.compile("\U0010fffd([0-9a-f]{6})|([\U00100000-\U0010fffc])")
_LOOKS_LIKE_MARKER = re.compile(r"<[^\s].*>|\[[^\s].*\]", re.DOTALL)

Segment = tuple[str, bool]
"""Text, and whether markers in it are only text."""


class Shield:
    """Hides look-alikes of one tokenizer's markers, and brings them back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend_json = tokenizer.backend_json
        added = tokenizer.backend.get_added_tokens_decoder().values()
        chosen = [t for t in added if t.special or _LOOKS_LIKE_MARKER.fullmatch(t.content)]
        chosen.sort(key=lambda token: (-len(token.content), token.content))
        self._markers = [token.content for token in chosen]
        self._number = {content: k for k, content in enumerate(self._markers)}
        any_marker = "|".join(map(re.escape, self._markers)) or "(?!)"
        self._any = re.compile(f"{_PRIVATE.pattern}|{any_marker}")
        self._template_marker = re.compile("|".join(map(_with_strip, chosen)) or "(?!)")

    def shield(self, text: str) -> str:
        """The text with every marker in it replaced by a private-use character.

        Characters of that range that the text has itself are escaped.
        """
        return self._any.sub(self._hide, text) if self._any.search(text) else text

    def restore(self, text: str) -> str:
        """The text as it was before `shield`."""
        return _SHIELDED.sub(self._show, text)

    def is_shielded(self, text: str) -> bool:
        """Was anything replaced in it?"""
        return not text.isascii() and _PRIVATE.search(text) is not None

    def segments(self, text: str) -> list[Segment]:
        """A shielded text, restored, cut at the template's own markers."""
        segments, end = list[Segment](), 0
        for match in self._template_marker.finditer(text):
            segments.append((self.restore(text[end : match.start()]), True))
            segments.append((match.group(), False))
            end = match.end()
        segments.append((self.restore(text[end:]), True))
        return [segment for segment in segments if segment[0]]

    @cached_property
    def literal_backend(self) -> tokenizers.Tokenizer:
        """A copy of the backend in which every marker is text."""
        raw = msgspec.json.decode(self._backend_json)
        for token in raw["added_tokens"]:
            token["special"] = token["content"] in self._number
        backend = tokenizers.Tokenizer.from_str(msgspec.json.encode(raw).decode())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return backend

    def encode(self, texts: list[str], encode: Encode) -> Flat:
        """The ids of texts, shielded ones among them, with `encode` for all that is ordinary."""
        shielded = [i for i, text in enumerate(texts) if self.is_shielded(text)]
        if not shielded:
            return encode(texts)
        ordinary = list(texts)
        literal: list[str] = []
        parts: dict[int, list[int]] = {}
        for i in shielded:
            parts[i] = []
            ordinary[i] = ""
            for text, is_literal in self.segments(texts[i]):
                parts[i].append(-1 - len(literal) if is_literal else len(ordinary))
                (literal if is_literal else ordinary).append(text)
        order = [k for i in range(len(texts)) for k in parts.get(i, [i])]
        counts = [len(parts[i]) if i in parts else 1 for i in range(len(texts))]
        joined = _concatenate(encode(ordinary), backend_encode(self.literal_backend)(literal))
        return _reorder(joined, np.array(order, np.int64), counts, len(ordinary))

    def _hide(self, match: re.Match[str]) -> str:
        number = self._number.get(match.group())
        if number is None:
            return f"{_ESCAPE}{ord(match.group()):06x}"
        return chr(_FIRST + number)

    def _show(self, match: re.Match[str]) -> str:
        if match.group(1):
            return chr(int(match.group(1), 16))
        return self._markers[ord(match.group(2)) - _FIRST]


def _with_strip(token: tokenizers.AddedToken) -> str:
    """A marker of the template, with the white space that its token swallows."""
    left, right = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
    return f"{left}{re.escape(token.content)}{right}"


def _concatenate(first: Flat, second: Flat) -> Flat:
    ids = np.concatenate([first[0], second[0]])
    return ids, np.concatenate([first[1], second[1][1:] + first[1][-1]])


def _reorder(flat: Flat, order: np.ndarray, counts: list[int], n_ordinary: int) -> Flat:
    """The pieces `order` after each other, `counts` of them a text (-1 - k: the k-th literal).

    Literal pieces lie behind the ordinary ones: of 3 ordinary, order [0, -1, 2] is [0, 3, 2].
    """
    ids, starts = flat
    piece = np.where(order >= 0, order, n_ordinary - 1 - order)
    length = np.diff(starts)[piece]
    return ids[spread(starts[piece], length)], offsets(length)[offsets(counts)]
