"""What every engine in `ENGINES` promises: the ids of `tokenizers`, text by text."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from shared import shared
from small_tokenizer import metaspace_tokenizer, small_tokenizer

from shardkit.builder import PackOptions
from shardkit.conversation import Conversation, Message
from shardkit.errors import MissingPackage, TokenizerError
from shardkit.options import choices_of, hints_of
from shardkit.tokens import ENGINES, Encoder, load_template, load_tokenizer
from shardkit.tokens.identity import PROBE_TEXT
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.tokenizer_engines import (
    REFERENCE,
    CheckedEngine,
    Flat,
    without_metaspace,
)

_ALPHABET = [
    *"aeiou nrst THE 0129 .,!?\n\t",
    *["é", "ß", "今", "😀", "\u0301", "\u200d", " ", "▁", "\r\n", "<|im_end|>", "</s>", "<image>"],
]


def _fuzz(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(_ALPHABET, k=rng.randrange(60))) for _ in range(n)]


def _make(name: str, tokenizer: Tokenizer) -> Any:
    try:
        return ENGINES[name].make(tokenizer)
    except MissingPackage as error:
        pytest.skip(str(error))


def _expected(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.backend.encode(text, add_special_tokens=False).ids for text in texts]


def _lists(flat: Flat) -> list[list[int]]:
    ids, starts = flat
    return [ids[a:b].tolist() for a, b in pairwise(starts.tolist())]


@pytest.mark.parametrize("name", ENGINES)
def test_ids_equal_tokenizers(name: str) -> None:
    """Every text alone has the ids that `tokenizers` gives it, special-token text included."""
    tokenizer = small_tokenizer()
    texts = [*PROBE_TEXT, *_fuzz(2000, seed=3)]

    ids, starts = flat = _make(name, tokenizer)(texts)

    assert _lists(flat) == _expected(tokenizer, texts)
    assert ids.dtype == np.int32
    assert starts.dtype == np.int64
    assert starts[0] == 0
    assert starts[-1] == len(ids)


@pytest.mark.parametrize("name", ["auto", *ENGINES])
def test_no_thread_is_left(name: str) -> None:
    """The process that has loaded engines, and used them, can be forked."""
    before = threading.active_count()
    _make(REFERENCE if name == "auto" else name, small_tokenizer())
    engine = CheckedEngine(small_tokenizer(), name)
    assert threading.active_count() == before
    assert _lists(engine.encode(["the"])) == _expected(small_tokenizer(), ["the"])


@pytest.mark.parametrize("name", ENGINES)
def test_no_texts_and_empty_texts(name: str) -> None:
    """No text gives no ids; an empty text gives an empty stretch in its place."""
    encode = _make(name, small_tokenizer())

    assert _lists(encode([])) == []
    assert _lists(encode(["", "a", ""]))[::2] == [[], []]


@pytest.mark.parametrize("name", ENGINES)
def test_a_lone_surrogate_is_a_unicode_error(name: str) -> None:
    """Half a character is refused by the same exception in every engine."""
    encode = _make(name, small_tokenizer())

    with pytest.raises(UnicodeEncodeError):
        encode(["fine", "\ud800"])


@pytest.mark.parametrize("scheme", ["always", "never"])
@pytest.mark.parametrize("name", [name for name in ENGINES if name != REFERENCE])
def test_ids_equal_tokenizers_with_metaspace(name: str, scheme: str) -> None:
    """Llama-2 as transformers 5 loads it has a Metaspace pre-tokenizer: a space before the text
    and after every special token, unless there is one."""
    tokenizer = metaspace_tokenizer(prepend_scheme=scheme)
    texts = [*PROBE_TEXT, " ", "  a", "▁a", "</s> a", "</s>a", "\n▁▁a", *_fuzz(2000, seed=6)]

    assert _lists(_make(name, tokenizer)(texts)) == _expected(tokenizer, texts)


@pytest.mark.parametrize(
    "change",
    [{"prepend_scheme": "first"}, {"split": True}, {"normalized": True}, {"normalizer": True}],
)
def test_a_metaspace_that_cannot_be_rewritten_stays(change: dict[str, Any]) -> None:
    """Where it would not be the same, the fast engine is left to refuse it, and auto takes hf."""
    tokenizer = metaspace_tokenizer(**change)

    assert without_metaspace(tokenizer.backend_json) == tokenizer.backend_json
    assert CheckedEngine(tokenizer, "auto").name == "hf"


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    "folder", ["qwen2_5", "llama3_2", "internlm2", "llama2", "llama2/tokenizer.json", "gpt2"]
)
@pytest.mark.parametrize("name", [name for name in ENGINES if name != REFERENCE])
def test_ids_equal_tokenizers_on_real_vocabularies(name: str, folder: str) -> None:
    """The same on the vocabularies that people train with."""
    tokenizer = load_tokenizer(shared(f"data/tokenizers/{folder}"))
    texts = [*PROBE_TEXT, *_fuzz(500, seed=4)]

    assert _lists(_make(name, tokenizer)(texts)) == _expected(tokenizer, texts)


def test_auto_gives_up_an_engine_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is wrong on one checked text of the input is replaced by `tokenizers`: the
    ids of the batch are right, and the difference is told."""
    tokenizer = small_tokenizer()
    right = ENGINES[REFERENCE].make(tokenizer)

    def wrong(texts: list[str]) -> Flat:
        ids, starts = right(texts)
        ids = ids.copy()
        for i, text in enumerate(texts):
            if "swap me" in text:
                ids[starts[i]] += 1
        return ids, starts

    monkeypatch.setattr(
        "shardkit.tokens.tokenizer_engines._fastest", lambda _: ("fastokens", wrong)
    )
    engine = CheckedEngine(tokenizer, "auto")
    assert engine.name == "fastokens"
    texts = ["good", "swap me", "good too"]

    first = engine.encode(texts)

    assert _lists(first) == _expected(tokenizer, texts)
    assert engine.name == "hf"
    assert engine.difference is not None
    assert engine.difference.text == "swap me"
    assert _lists(engine.encode(texts)) == _expected(tokenizer, texts)


def test_auto_gives_up_an_engine_that_differs_on_the_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that is wrong on the probe text is not used at all."""
    tokenizer = small_tokenizer()
    right = ENGINES[REFERENCE].make(tokenizer)
    monkeypatch.setattr(
        "shardkit.tokens.tokenizer_engines._fastest",
        lambda _: ("fastokens", lambda texts: (right(texts)[0] + 1, right(texts)[1])),
    )

    engine = CheckedEngine(tokenizer, "auto")

    assert engine.name == "hf"
    assert engine.difference is not None


def test_auto_keeps_checking_a_share() -> None:
    """Later batches are checked too: at least one text of every 1,024, whatever their sizes."""
    pytest.importorskip("fastokens")
    engine = CheckedEngine(small_tokenizer(), "auto")
    engine.encode(["x"] * 100)
    before = engine.n_checked

    for _ in range(64):
        engine.encode(["some words"] * 100)

    assert 6 <= engine.n_checked - before <= 7


def test_samples_do_not_depend_on_the_engine() -> None:
    """P2: the engine decides how long it takes, not what comes out."""
    pytest.importorskip("fastokens")
    tokenizer = small_tokenizer()
    texts = _fuzz(300, seed=5)
    rows = [Conversation((Message("user", t), Message("assistant", t[::-1]))) for t in texts]
    encoded = [
        Encoder(tokenizer, load_template(template, tokenizer), max_length=64, engine=engine)
        .encode(rows)
        .samples
        for template in ("vicuna", "tokenizer")
        for engine in ("hf", "fastokens", "auto")
    ]

    for first, *others in (encoded[:3], encoded[3:]):
        for other in others:
            assert np.array_equal(first.ids, other.ids)
            assert np.array_equal(first.labels, other.labels)
            assert np.array_equal(first.starts, other.starts)


def test_the_table_and_the_choices_agree() -> None:
    """One reference; every engine can be chosen by name, and nothing else but auto."""
    assert [name for name in ENGINES if ENGINES[name].is_reference] == [REFERENCE]
    assert choices_of(hints_of(PackOptions)["engine"]) == ["auto", *ENGINES]


def test_an_unknown_engine_is_refused() -> None:
    """The error lists the engines there are."""
    with pytest.raises(TokenizerError, match="auto, hf, fastokens"):
        CheckedEngine(small_tokenizer(), "warp")
