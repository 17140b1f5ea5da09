"""Rows that are longer than max_length, and the end of documents: against the uncut row."""

from __future__ import annotations

import random
from itertools import chain, pairwise

import numpy as np
import pytest
from small_tokenizer import small_tokenizer

from shardkit.conversation import Conversation, Message, Reason
from shardkit.errors import UsageError
from shardkit.tokens import Encoded, Encoder, load_template
from shardkit.tokens.train_rules import TrainRules

PLACEHOLDER = -200


def _document(text: str, n_images: int = 0) -> Conversation:
    images = tuple(f"{k}.png" for k in range(n_images))
    return Conversation((Message("assistant", text),), images=images, kind="text")


def _encode(
    *rows: Conversation,
    max_length: int | None = None,
    image_tokens: int = 1,
    special: str = "parse",
    **rules: object,
) -> Encoded:
    tokenizer = small_tokenizer()
    encoder = Encoder(
        tokenizer,
        load_template("qwen_chat", tokenizer),
        max_length=max_length,
        image_tokens=image_tokens,
        special_tokens_in_text=special,  # type: ignore[arg-type]
        rules=TrainRules(**rules),  # type: ignore[arg-type]
    )
    return encoder.encode(rows)


def _ids(encoded: Encoded) -> list[list[int]]:
    return [encoded.samples.ids[a:b].tolist() for a, b in pairwise(encoded.samples.starts.tolist())]


def _texts(n: int, seed: int, n_images: int = 0) -> list[Conversation]:
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        words = [f"w{rng.randrange(99)}" for _ in range(rng.randrange(1, 30))]
        k = rng.randrange(n_images + 1)
        for _ in range(k):
            words.insert(rng.randrange(len(words) + 1), "<image>")
        rows.append(_document(" ".join(words), k))
    return rows


@pytest.mark.parametrize("max_length", [2, 3, 7, 16])
@pytest.mark.parametrize("append_eos", [False, True])
def test_the_pieces_of_a_document_are_the_document(max_length: int, append_eos: bool) -> None:
    """End to end they are the uncut ids; each is full but the last, which has two tokens."""
    rows = _texts(40, seed=max_length)
    whole, (bos,) = _ids(_encode(*rows, append_eos=append_eos)), small_tokenizer().bos_ids

    encoded = _encode(*rows, max_length=max_length, append_eos=append_eos, overlong="split")

    found: dict[int, list[list[int]]] = {}
    for row, number, ids in zip(encoded.kept, encoded.piece, _ids(encoded), strict=True):
        assert number == len(found.setdefault(int(row), []))
        found[int(row)].append(ids)
    assert [list(chain(*found[row])) for row in range(len(rows))] == whole
    for pieces in found.values():
        lengths = [len(piece) for piece in pieces]
        assert all(length == max_length for length in lengths[:-2])
        assert all(length >= max_length - 1 for length in lengths[:-1])
        assert len(pieces) == -(-sum(lengths) // max_length)
        assert lengths[-1] > 1 or max_length < 3 or len(pieces) == 1
    assert not encoded.rejects
    assert np.array_equal(encoded.samples.labels == -100, encoded.samples.ids == bos)
    assert not encoded.samples.n_cut.any()
    assert encoded.notes.documents_split == sum(len(pieces) > 1 for pieces in found.values()) > 5


@pytest.mark.parametrize("image_tokens", [1, 4])
def test_a_picture_is_never_cut(image_tokens: int) -> None:
    """It goes whole into the next piece, and each piece knows its own pictures; one that no piece
    has room for rejects the row."""
    rows = _texts(40, seed=3, n_images=3)
    whole = _ids(_encode(*rows, image_tokens=image_tokens))

    encoded = _encode(*rows, max_length=9, image_tokens=image_tokens, overlong="split")

    joined: dict[int, list[int]] = {}
    seen: dict[int, int] = {}
    lost = {(position, reject.piece) for position, reject in encoded.rejects}
    for i, (row, ids) in enumerate(zip(encoded.kept.tolist(), _ids(encoded), strict=True)):
        weight = sum(image_tokens if token == PLACEHOLDER else 1 for token in ids)
        assert weight <= 9
        joined.setdefault(row, []).extend(ids)
        assert encoded.n_images[i] == ids.count(PLACEHOLDER)
        if all(position != row for position, _ in lost):
            assert encoded.first_image[i] == seen.get(row, 0)
        seen[row] = int(encoded.first_image[i] + encoded.n_images[i])
    for row, ids in joined.items():
        if all(position != row for position, _ in lost):
            assert ids == whole[row]
    assert all(reject.reason == Reason.NO_SUPERVISED_TOKENS for _, reject in encoded.rejects)
    (reject,) = [
        reject
        for _, reject in _encode(
            _document("a <image> b c d e f", 1), max_length=3, image_tokens=4, overlong="split"
        ).rejects
    ]
    assert (reject.reason, reject.detail) == (
        Reason.IMAGE_TOO_LONG,
        "a picture of 4 tokens, max length 3",
    )


def test_long_rows_are_left_out() -> None:
    """`drop` rejects what `cut` would cut, with both numbers, and keeps all else as it is."""
    chat = Conversation((Message("user", "one?"), Message("assistant", "first. " * 9)))
    rows = [chat, *_texts(30, seed=5)]
    cut = _encode(*rows, max_length=24)

    dropped = _encode(*rows, max_length=24, overlong="drop")

    is_cut = cut.samples.n_cut > 0
    lengths = np.diff(cut.samples.starts) + cut.samples.n_cut
    assert dropped.rejects == [
        (row, reject)
        for row, reject in dropped.rejects
        if reject.reason == Reason.TOO_LONG
        and reject.detail == f"{lengths[row]} tokens, max length 24"
    ]
    assert [row for row, _ in dropped.rejects] == cut.kept[is_cut].tolist()
    assert _ids(dropped) == [ids for ids, gone in zip(_ids(cut), is_cut, strict=True) if not gone]
    assert 2 < is_cut.sum() < 28


def test_answers_are_never_split() -> None:
    """A chat that is too long under `split`, which only the encoder itself can be given."""
    chat = Conversation((Message("user", "one?"), Message("assistant", "first. " * 9)))

    encoded = _encode(chat, max_length=12, overlong="split")

    assert [reject.reason for _, reject in encoded.rejects] == [Reason.TOO_LONG]


def test_the_end_of_a_document() -> None:
    """EOS, in the loss, once; not where the text has it, not after an answer, and cut with the
    tail of what is too long."""
    end = small_tokenizer().eos_ids[0]
    spelled = small_tokenizer().backend.id_to_token(end)
    chat = Conversation((Message("user", "one?"), Message("assistant", "first.")))
    rows = [_document("lamp"), _document(f"lamp{spelled}"), chat]

    plain, ended = _encode(*rows), _encode(*rows, append_eos=True)

    assert _ids(ended)[0] == [*_ids(plain)[0], end]
    assert _ids(ended)[1:] == _ids(plain)[1:]
    assert _ids(plain)[1] == _ids(ended)[0]
    assert ended.samples.labels[1 : len(_ids(ended)[0])].tolist() == _ids(ended)[0][1:]
    assert (plain.notes.documents_without_eos, ended.notes.documents_without_eos) == (1, 0)
    assert (plain.notes.rows_without_append_eos, ended.notes.rows_without_append_eos) == (0, 1)
    literal = _encode(rows[1], append_eos=True, special="literal")
    assert _ids(literal)[0][-1] == end
    assert _ids(literal)[0].count(end) == 1
    short = _encode(_document("lamp " * 20), max_length=5, append_eos=True)
    assert end not in _ids(short)[0]
    assert short.samples.n_cut.tolist() == [
        len(_ids(_encode(_document("lamp " * 20), append_eos=True))[0]) - 5
    ]


def test_a_rule_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no such rule of overlong"):
        TrainRules(overlong="chop")  # type: ignore[arg-type]
