"""Which program turns text into ids, and how do we know that it is right?

An engine encodes many texts at once into one flat array. `hf` is the `tokenizers` library, the
reference. `fastokens` is an optional package, 8 to 50 times faster a core, and equal in every
comparison made so far; `auto` takes a fast engine only where it agrees on the probe text, and keeps
checking a share of the texts it encodes against the reference. A difference ends its use.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.errors import MissingPackage, TokenizerError
from shardkit.ragged import offsets
from shardkit.tokens.identity import PROBE_TEXT
from shardkit.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

Flat = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Ids of all texts after each other, and n + 1 offsets into them."""

Encode = Callable[[list[str]], Flat]

_FIRST_CHECKED = 64
"""Texts of a large first batch that are checked: so many, or up to twice as many."""
_CHECKED_SHARE = 1024
"""Later, one text of so many."""


def encode_with_tokenizers(tokenizer: Tokenizer) -> Encode:
    """The reference: `tokenizers` itself."""
    return backend_encode(tokenizer.backend)


def backend_encode(backend: tokenizers.Tokenizer) -> Encode:
    """An engine around a `tokenizers` backend (no truncation, no padding)."""

    def encode(texts: list[str]) -> Flat:
        try:
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            for text in texts:  # a lone surrogate is a TypeError there: make it the right one
                text.encode()
            raise
        lists = [encoding.ids for encoding in encodings]
        starts = offsets([len(ids) for ids in lists])
        ids = np.fromiter(chain.from_iterable(lists), np.int32, count=int(starts[-1]))
        return ids, starts

    return encode


def encode_with_fastokens(tokenizer: Tokenizer) -> Encode:
    """The optional fast engine. Raises MissingPackage, or TokenizerError where it cannot load."""
    try:
        fastokens = importlib.import_module("fastokens")
    except ImportError as error:
        raise MissingPackage(
            "the fastokens engine needs the package fastokens",
            fix="pip install 'shardkit[fast]', or use the engine hf.",
        ) from error
    try:
        fast = fastokens.Tokenizer.from_json_str(without_metaspace(tokenizer.backend_json))
    except Exception as error:  # a Rust error of any kind
        raise TokenizerError(
            f"fastokens cannot load this tokenizer: {error}", fix="Use the engine hf."
        ) from error

    def encode(texts: list[str]) -> Flat:
        ids, starts = fast.encode_batch_flat(texts, False, False)
        return np.frombuffer(ids, np.int32), np.frombuffer(starts, np.uint64).astype(np.int64)

    return encode


def without_metaspace(backend_json: str) -> str:
    """A backend's JSON with its Metaspace pre-tokenizer written as a normalizer: the ids are equal.

    transformers 5 loads Llama-2 with one, and fastokens knows none. Both put a mark for each space
    and one before the text (`always`: unless it begins with one), between the added tokens.
    A backend for which that does not hold is given back as it is.
    """
    if '"Metaspace"' not in backend_json:
        return backend_json
    raw = msgspec.json.decode(backend_json)
    metaspace = raw["pre_tokenizer"] or {}
    scheme, mark = metaspace.get("prepend_scheme"), str(metaspace.get("replacement"))
    is_alone = raw["normalizer"] is None and not any(t["normalized"] for t in raw["added_tokens"])
    is_metaspace = metaspace.get("type") == "Metaspace" and metaspace.get("split") is False
    if not (is_metaspace and is_alone and scheme in ("always", "never")):
        return backend_json
    steps: list[dict[str, object]] = [_replace({"String": " "}, mark)]
    if scheme == "always":
        twice = {"Regex": rf"\A{re.escape(2 * mark)}"}
        steps += [{"type": "Prepend", "prepend": mark}, _replace(twice, mark)]
    raw.update(pre_tokenizer=None, normalizer={"type": "Sequence", "normalizers": steps})
    return msgspec.json.encode(raw).decode()


def _replace(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@dataclass(frozen=True, slots=True)
class Engine:
    """One way to turn texts into the ids that `tokenizers` gives, each text alone."""

    make: Callable[[Tokenizer], Encode]
    """The engine for a tokenizer. Raises MissingPackage, or TokenizerError where it cannot."""
    is_reference: bool = False
    """Is it right by definition? Exactly one is; `auto` compares the others with it."""
    package: str | None = None
    """`auto` tries the engine where this package is installed."""


ENGINES: Mapping[str, Engine] = {
    "hf": Engine(encode_with_tokenizers, is_reference=True),
    "fastokens": Engine(encode_with_fastokens, package="fastokens"),
}
"""Every engine, by name; of the fast ones `auto` takes the first that works."""

REFERENCE = next(name for name, engine in ENGINES.items() if engine.is_reference)
"""The engine that is right by definition."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A text that two engines encode differently."""

    engine: str
    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]

    def describe(self) -> str:
        """One line for the log and the manifest."""
        return f"{self.engine} differs from tokenizers on {self.text[:60]!r}"


class CheckedEngine:
    """The engine that `name` chooses, with the checks that `auto` makes.

    `name` is what encodes now; `difference` says why a fast engine was given up.
    """

    def __init__(self, tokenizer: Tokenizer, name: str = "auto") -> None:
        if name != "auto" and name not in ENGINES:
            raise TokenizerError(
                "there is no such engine",
                found=name,
                fix=f"Choose one of: auto, {', '.join(ENGINES)}.",
            )
        self.difference: Difference | None = None
        self.n_checked = 0
        self._reference = ENGINES[REFERENCE].make(tokenizer)
        self._turn = 0
        self._is_checking = False
        self.name: str = name
        if name != "auto":
            self._encode = ENGINES[name].make(tokenizer)
            return
        self.name, self._encode = _fastest(tokenizer) or (REFERENCE, self._reference)
        self._is_checking = self.name != REFERENCE
        if self._is_checking:
            self._check(list(PROBE_TEXT), range(len(PROBE_TEXT)), self._encode(list(PROBE_TEXT)))

    def encode(self, texts: list[str]) -> Flat:
        """The ids of every text, each encoded alone, no special tokens added.

        Raises UnicodeEncodeError when a text holds a lone surrogate.
        """
        if not texts:
            return np.empty(0, np.int32), np.zeros(1, np.int64)
        flat = self._encode(texts)
        if not self._is_checking:
            return flat
        if self._check(texts, self._sample(len(texts)), flat):
            return flat
        return self._encode(texts)

    def _sample(self, n: int) -> Sequence[int]:
        """Which of n texts to check: many of the first batch, then every 1024th of all."""
        if self._turn == 0:
            self._turn = n
            return range(0, n, max(1, n // _FIRST_CHECKED))
        first = -self._turn % _CHECKED_SHARE
        self._turn += n
        return range(first, n, _CHECKED_SHARE)

    def _check(self, texts: list[str], chosen: Sequence[int], flat: Flat) -> bool:
        """Compare the chosen texts with the reference; at a difference, go over to it."""
        if not len(chosen):
            return True
        ids, starts = flat
        expected_ids, expected_starts = self._reference([texts[i] for i in chosen])
        self.n_checked += len(chosen)
        for k, i in enumerate(chosen):
            found = ids[starts[i] : starts[i + 1]]
            expected = expected_ids[expected_starts[k] : expected_starts[k + 1]]
            if not np.array_equal(found, expected):
                self._give_up(texts[i], expected, found)
                return False
        return True

    def _give_up(self, text: str, expected: NDArray[np.int32], found: NDArray[np.int32]) -> None:
        self.difference = Difference(
            self.name, text, tuple(expected.tolist()), tuple(found.tolist())
        )
        self.name, self._encode, self._is_checking = REFERENCE, self._reference, False


def missing_engines() -> list[str]:
    """The packages of fast engines that are not installed here."""
    packages = [engine.package for engine in ENGINES.values() if engine.package is not None]
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _fastest(tokenizer: Tokenizer) -> tuple[str, Encode] | None:
    """The first fast engine that is installed and can load this tokenizer."""
    for name, engine in ENGINES.items():
        if engine.package is None or importlib.util.find_spec(engine.package) is None:
            continue
        with suppress(MissingPackage, TokenizerError):
            return name, engine.make(tokenizer)
    return None
