"""Which tokens belong to the supervised characters of a text?

A token is in the loss when at least one of its bytes is in a supervised span. For byte-level
vocabularies the bytes of every token are known, so all texts of a batch are masked at once, after
a proof that the tokens' bytes, joined, are the text's. Any other text (another kind of vocabulary,
a normalizer that changed it) is masked by the character offsets that `tokenizers` gives.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property

import msgspec
import numpy as np
import tokenizers
from numpy.typing import NDArray

from shardkit.ragged import offsets, spread
from shardkit.tokens.answers import Span
from shardkit.tokens.special_text import Segment, Shield
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.tokenizer_engines import Flat

_UNKNOWN = 1 << 40
"""The length of a token whose bytes are not known: no text is as long."""


class SpanMasker:
    """Turns supervised characters into a mask over tokens."""

    def __init__(self, tokenizer: Tokenizer, shield: Shield | None) -> None:
        self._tokenizer = tokenizer
        self._shield = shield

    def mask(
        self, texts: list[str], spans: dict[int, tuple[Span, ...]], flat: Flat
    ) -> NDArray[np.bool_] | None:
        """Per token of `flat`: is it in the loss? None when no text has spans.

        Tokens of a text without an entry in `spans` are in the loss.
        """
        if not spans:
            return None
        mask = np.ones(len(flat[0]), bool)
        left = sorted(spans)
        if self._spellings is not None:
            left = self._mask_by_bytes(mask, texts, spans, flat, left)
        for i, (begin, end) in zip(left, self._offsets([texts[i] for i in left]), strict=True):
            mask[flat[1][i] : flat[1][i + 1]] = _overlaps(
                begin, end, self._chars(texts[i], spans[i])
            )
        return mask

    def _mask_by_bytes(
        self,
        mask: NDArray[np.bool_],
        texts: list[str],
        spans: dict[int, tuple[Span, ...]],
        flat: Flat,
        chosen: list[int],
    ) -> list[int]:
        """Mask those of the chosen texts whose tokens spell them; give back the others.

        A token is in the loss when one of its bytes is. Tokens of 2, 3 and 1 bytes, a span of bytes
        2 to 4: tokens begin at [0, 2, 5] and end at [2, 5, 6]; the last span that begins before
        each end is [none, 0, 0], and its end 5 is behind 2 but not behind 5: [False, True, False].
        """
        ids, starts = flat
        data = [self._restored(texts[i]).encode() for i in chosen]
        token = spread(starts[chosen], np.diff(starts)[chosen])
        spelled = self._spelled(ids[token], np.diff(starts)[chosen], data)
        good = [i for i, is_good in zip(chosen, spelled, strict=True) if is_good]
        token = token[np.repeat(spelled, np.diff(starts)[chosen])]
        end = np.cumsum(self._lengths[ids[token]])
        begin = end - self._lengths[ids[token]]
        first, last = self._byte_spans(texts, spans, good)
        at = np.searchsorted(first, end, side="left") - 1
        inside = np.zeros(len(token), bool)
        is_after = at >= 0
        inside[is_after] = last[at[is_after]] > begin[is_after]
        mask[token] = inside
        return [i for i, is_good in zip(chosen, spelled, strict=True) if not is_good]

    def _byte_spans(
        self, texts: list[str], spans: dict[int, tuple[Span, ...]], chosen: list[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First bytes and ends of the spans, in the bytes of the chosen texts after each other."""
        first, last, start = list[int](), list[int](), 0
        for i in chosen:
            text = texts[i]
            if text.isascii():
                first += [start + a for a, _ in spans[i]]
                last += [start + b for _, b in spans[i]]
                start += len(text)
                continue
            first += [start + self._n_bytes(text[:a]) for a, _ in spans[i]]
            last += [start + self._n_bytes(text[:b]) for _, b in spans[i]]
            start += self._n_bytes(text)
        return np.array(first, np.int64), np.array(last, np.int64)

    def _spelled(
        self, ids: NDArray[np.int32], n_tokens: NDArray[np.int64], data: list[bytes]
    ) -> NDArray[np.bool_]:
        """(len(data),) are the bytes of the tokens, joined, those of the data?

        First all lengths are compared, then all bytes at once: a wrong byte at place 7 of texts
        whose bytes end at [5, 9] is of text 1.
        """
        owner = np.repeat(np.arange(len(data)), n_tokens)
        size = np.array([len(one) for one in data], np.int64)
        total = np.bincount(owner, self._lengths[ids], len(data)).astype(np.int64)
        spelled = total == size
        ids = ids[spelled[owner]]
        written = self._table[spread(self._starts[ids], self._lengths[ids])]
        good = [one for one, is_good in zip(data, spelled, strict=True) if is_good]
        wrong = np.flatnonzero(written != np.frombuffer(b"".join(good), np.uint8))
        ends = np.cumsum(size[spelled])
        spelled[np.flatnonzero(spelled)[np.searchsorted(ends, wrong, side="right")]] = False
        return np.asarray(spelled, bool)

    def _offsets(self, texts: list[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Per text: the first characters and the ends of its tokens, in the restored text."""
        segments = [self._segments(text) for text in texts]
        every = [segment for one in segments for segment in one]
        found = {}
        for is_literal in {is_literal for _, is_literal in every}:
            batch = [text for text, literal in every if literal == is_literal]
            backend = self._backend(is_literal)
            found[is_literal] = iter(backend.encode_batch(batch, add_special_tokens=False))
        bounds = []
        for one in segments:
            rows, start = [np.empty((0, 2), np.int64)], 0
            for text, is_literal in one:
                rows.append(np.array(next(found[is_literal]).offsets, np.int64).reshape(-1, 2))
                rows[-1] += start
                start += len(text)
            joined = np.concatenate(rows)
            bounds.append((joined[:, 0], joined[:, 1]))
        return bounds

    def _segments(self, text: str) -> list[Segment]:
        if self._shield is not None and self._shield.is_shielded(text):
            return self._shield.segments(text)
        return [(text, False)]

    def _backend(self, is_literal: bool) -> tokenizers.Tokenizer:
        if is_literal and self._shield is not None:
            return self._shield.literal_backend
        return self._untrimmed

    def _chars(self, text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        """The spans in the restored text."""
        if self._shield is None or not self._shield.is_shielded(text):
            return spans
        restore = self._shield.restore
        return tuple((len(restore(text[:a])), len(restore(text[:b]))) for a, b in spans)

    @cached_property
    def _untrimmed(self) -> tokenizers.Tokenizer:
        """The backend, with offsets that keep the white space of a token."""
        text = self._tokenizer.backend_json
        if '"trim_offsets":true' not in text:
            return self._tokenizer.backend
        backend = tokenizers.Tokenizer.from_str(
            text.replace('"trim_offsets":true', '"trim_offsets":false')
        )
        backend.no_truncation()
        backend.no_padding()
        return backend

    def _restored(self, text: str) -> str:
        return self._shield.restore(text) if self._shield is not None else text

    def _n_bytes(self, text: str) -> int:
        return len(self._restored(text).encode())

    @cached_property
    def _spellings(self) -> list[bytes | None] | None:
        """The bytes of every id; None when the vocabulary is not byte-level."""
        raw = msgspec.json.decode(self._tokenizer.backend_json)
        if '"ByteLevel"' not in msgspec.json.encode(raw.get("decoder")).decode():
            return None
        spellings: list[bytes | None] = [None] * self._tokenizer.vocab_size
        for token, i in self._tokenizer.backend.get_vocab(with_added_tokens=False).items():
            with suppress(KeyError):
                spellings[i] = bytes([_BYTE_OF[char] for char in token])
        for i, added in self._tokenizer.backend.get_added_tokens_decoder().items():
            spellings[i] = added.content.encode()
        return spellings

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """(vocab_size,) bytes of each id; _UNKNOWN where they are not known."""
        spellings = self._spellings or []
        return np.array([_UNKNOWN if s is None else len(s) for s in spellings], np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """(vocab_size,) where the bytes of each id begin in `_table`."""
        return offsets([len(spelling or b"") for spelling in self._spellings or []])[:-1]

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        """The bytes of all ids after each other."""
        return np.frombuffer(b"".join(s or b"" for s in self._spellings or []), np.uint8)


def _overlaps(
    begin: NDArray[np.int64], end: NDArray[np.int64], spans: tuple[Span, ...]
) -> NDArray[np.bool_]:
    """Which of the tokens begin:end have a character in a span? (An empty one counts as one.)"""
    inside: NDArray[np.bool_] = np.zeros(len(begin), bool)
    for a, b in spans:
        inside |= (begin < b) & (np.maximum(end, begin + 1) > a)
    return inside


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's rule)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + k): byte for k, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()
