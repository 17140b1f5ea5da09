"""Conversations to ids and labels: against a slow oracle, and every way a row is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from small_tokenizer import small_tokenizer

from shardkit.conversation import IMAGE_MARK, Conversation, Exchange, Message, Part, Reason
from shardkit.errors import UsageError
from shardkit.tokens import TEMPLATES, Encoded, Encoder, Template, load_template

PLACEHOLDER = -200
Rows = list[tuple[list[int], list[int]]]


def _rows(encoded: Encoded) -> Rows:
    samples = encoded.samples
    return [
        (samples.ids[a:b].tolist(), samples.labels[a:b].tolist())
        for a, b in pairwise(samples.starts.tolist())
    ]


def _encoder(template: str | Template = "vicuna", **options: object) -> Encoder:
    chosen = TEMPLATES[template] if isinstance(template, str) else template
    return Encoder(small_tokenizer(), chosen, **{"max_length": None, "engine": "hf", **options})  # type: ignore[arg-type]


def _chat(*turns: str, **fields: object) -> Conversation:
    """Turns as `role: text` or, without a role, by turns user and assistant."""
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(turns)]  # type: ignore[arg-type]
    return Conversation(tuple(messages), **fields)  # type: ignore[arg-type]


class Oracle:
    """docs/xtuner.md word by word, a token at a time."""

    def __init__(self, template: Template, max_length: int | None, image_tokens: int) -> None:
        self.template, self.max_length, self.image_tokens = template, max_length, image_tokens
        self.tokenizer = small_tokenizer()

    def ids_of(self, text: str, has_images: bool) -> list[int]:
        ids: list[int] = []
        for k, part in enumerate(text.split(IMAGE_MARK) if has_images else [text]):
            ids += [PLACEHOLDER] if k else []
            ids += self.tokenizer.backend.encode(part, add_special_tokens=False).ids
        return ids

    def row(self, conversation: Conversation) -> tuple[list[int], list[int]] | None:
        template, has_images = self.template, bool(conversation.images)
        ids: list[int] = []
        labels: list[int] = []

        def put(new: list[int], supervised: bool) -> None:
            ids.extend(new)
            labels.extend(new if supervised else [-100] * len(new))

        system = question = ""
        n_turns, needs_bos, has_begun = 0, True, False
        for message in conversation.messages:
            has_begun |= message.role != "assistant"
            if message.role == "system":
                system = message.text
            elif message.role == "user":
                question += message.text
            elif has_begun:
                n_turns += 1
                text = template.instruction.format(input=question, round=n_turns)
                if system:
                    text = (template.system or "").format(system=system) + text
                put(list(self.tokenizer.bos_ids) if needs_bos else [], False)
                put(self.ids_of(text, has_images), False)
                put(self.ids_of(message.text + template.suffix, False), message.supervised)
                needs_bos = not template.suffix_as_eos
                put(list(self.tokenizer.eos_ids) if needs_bos else [], message.supervised)
                put(self.ids_of(template.sep, False) if template.sep else [], False)
                system = question = ""
        return self.cut(ids, labels)

    def cut(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]] | None:
        n, room = 0, self.max_length if self.max_length is not None else 1 << 60
        for token in ids:
            room -= self.image_tokens if token == PLACEHOLDER else 1
            if room < 0:
                break
            n += 1
        kept = ids[:n], labels[:n]
        return kept if any(label != -100 for label in kept[1]) else None


_TRIED = ["vicuna", "qwen_chat", "chatglm2", "gemma", "deepseek_v2", "code_llama_chat"]
_BITS = [*"abc XYZ 019.,\n{}<>", "é", "今", "😀", "<|im_end|>", "<|endoftext|>"]
_WORDS = st.lists(st.sampled_from(_BITS), max_size=20).map("".join)
_MESSAGES = st.builds(
    Message, st.sampled_from(["user", "assistant", "system"]), _WORDS, st.booleans()
)


@st.composite
def _conversations(draw: st.DrawFn) -> Conversation:
    messages = draw(st.lists(_MESSAGES, min_size=1, max_size=6))
    n_images = 0
    if draw(st.booleans()):
        for i, message in enumerate(messages):
            if message.role == "user" and draw(st.booleans()):
                text = f"{message.text}{IMAGE_MARK}{draw(_WORDS)}"
                messages[i] = replace(message, text=text)
                n_images += 1
        while messages[0].role == "assistant":
            messages.pop(0)
            if not messages:
                messages = [Message("user", "")]
    images = tuple(f"{k}.jpg" for k in range(n_images))
    return Conversation(tuple(messages), images=images)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.builds(Exchange, _WORDS, _WORDS), _conversations()), max_size=8),
    st.sampled_from([*_TRIED, "tokenizer"]),
    st.one_of(st.none(), st.integers(1, 60)),
    st.sampled_from(["parse", "literal"]),
)
def test_an_exchange_is_encoded_as_its_conversation(
    rows: list[Conversation | Exchange], name: str, max_length: int | None, special: Any
) -> None:
    """Many exchanges at once, among other rows, have the ids, labels and rejects that the same
    words have as conversations."""
    tokenizer = small_tokenizer()
    encoders = [
        Encoder(
            tokenizer,
            load_template(name, tokenizer),
            max_length=max_length,
            special_tokens_in_text=special,
            engine="hf",
        )
        for _ in range(2)
    ]
    plain = [row.conversation if isinstance(row, Exchange) else row for row in rows]

    found, expected = encoders[0].encode(rows), encoders[1].encode(plain)

    assert _rows(found) == _rows(expected)
    assert found.kept.tolist() == expected.kept.tolist()
    assert found.rejects == expected.rejects
    assert found.notes == expected.notes


@settings(deadline=None, max_examples=150)
@given(
    st.lists(_conversations(), min_size=1, max_size=6),
    st.sampled_from(_TRIED),
    st.one_of(st.none(), st.integers(1, 60)),
    st.sampled_from([1, 5]),
)
def test_rows_equal_the_oracle(
    conversations: list[Conversation], name: str, max_length: int | None, image_tokens: int
) -> None:
    """Ids, labels, truncation and what is dropped are those of the obvious program; every row is
    a sample or a reject."""
    encoder = _encoder(name, max_length=max_length, image_tokens=image_tokens)
    oracle = Oracle(TEMPLATES[name], max_length, image_tokens)

    encoded = encoder.encode(conversations)

    expected = [oracle.row(one) for one in conversations]
    kept = [i for i, row in enumerate(expected) if row is not None]
    assert _rows(encoded) == [row for row in expected if row is not None]
    assert encoded.kept.tolist() == kept
    assert [i for i, _ in encoded.rejects] == sorted(set(range(len(expected))) - set(kept))
    n_images = [row[0].count(PLACEHOLDER) for row in expected if row is not None]
    assert encoded.n_images.tolist() == n_images
    assert encoded.samples.ids.dtype == encoded.samples.labels.dtype == np.int32


def test_truncation_is_counted() -> None:
    """n_cut is how many of the row's tokens truncation removed."""
    rows = [_chat("a b c", "d e f g"), _chat("x", "y")]
    whole = _encoder().encode(rows)
    encoder = _encoder(max_length=int(whole.samples.lengths[0]) - 3)

    encoded = encoder.encode(rows)

    cut = whole.samples.lengths - encoded.samples.lengths
    assert cut.tolist() == [3, 0]
    assert encoded.samples.n_cut.tolist() == cut.tolist()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_chat("question"), Reason.NO_ANSWER),
        (Conversation(()), Reason.NO_ANSWER),
        (Conversation((Message("assistant", "unasked"),)), Reason.NO_ANSWER),
        (
            Conversation((Message("user", "q"), Message("tool", "{}"), Message("assistant", "a"))),
            Reason.UNKNOWN_ROLE,
        ),
        (
            Conversation((Message("user", "q"), Message("assistant", "", tool_calls=({},)))),
            Reason.TEMPLATE_LOST_TEXT,
        ),
        (
            Conversation((Message("user", "q"), Message("assistant", "a", supervised=False))),
            Reason.NO_SUPERVISED_TOKENS,
        ),
        (_chat("q" * 500, "a"), Reason.NO_SUPERVISED_TOKENS),
        (_chat("no mark", "a", images=("1.jpg",)), Reason.PLACEHOLDER_MISMATCH),
        (_chat("<image><image>", "a", images=("1.jpg",)), Reason.PLACEHOLDER_MISMATCH),
        (_chat("half \ud800", "a"), Reason.BAD_RECORD),
        (Conversation((Message("assistant", ""),), kind="text"), Reason.EMPTY_TEXT),
        (Conversation((), kind="tokens", ids=(1, 2), labels=(1,)), Reason.BAD_TOKENS),
        (Conversation((), kind="tokens", ids=(1, 2048), labels=(1, 2048)), Reason.BAD_TOKENS),
        (Conversation((), kind="tokens", ids=(1, -1), labels=(1, -100)), Reason.BAD_TOKENS),
        (Conversation((), kind="tokens", ids=(1, 2), labels=(1, 3)), Reason.BAD_TOKENS),
        (Conversation((), kind="tokens", ids=(1, 2**40), labels=(1, 1)), Reason.BAD_TOKENS),
        (Conversation((), kind="tokens", ids=(-200, 1), labels=(-200, 1)), Reason.BAD_TOKENS),
        (
            Conversation((), kind="tokens", ids=(1, 2), labels=(1, 2), cuts=(0, 3)),
            Reason.BAD_TOKENS,
        ),
        (Conversation((), kind="tokens", ids=(1,), labels=(-100,)), Reason.NO_SUPERVISED_TOKENS),
        (
            Conversation((), kind="tokens", ids=(1, 2), labels=(1, 2), images=("1.jpg",)),
            Reason.PLACEHOLDER_MISMATCH,
        ),
    ],
)
def test_a_bad_row_is_rejected_and_its_neighbours_are_not(
    row: Conversation, reason: Reason
) -> None:
    """Each bad row has its reason; the rows around it come out as if it were not there."""
    good = [_chat("one", "two"), _chat("three", "four")]
    expected = _rows(_encoder().encode(good))

    encoded = _encoder(max_length=200).encode([good[0], row, good[1]])

    assert [(i, reject.reason) for i, reject in encoded.rejects] == [(1, reason)]
    assert _rows(encoded) == expected
    assert encoded.kept.tolist() == [0, 2]


def test_a_template_without_a_system_prompt_rejects_one() -> None:
    """minicpm has no place for a system text; XTuner crashes, we reject the row."""
    row = Conversation((Message("system", "s"), Message("user", "q"), Message("assistant", "a")))

    encoded = _encoder("minicpm").encode([row])

    assert encoded.rejects[0][1].reason == Reason.TEMPLATE_FAILED


def test_what_is_left_out_of_kept_rows_is_counted() -> None:
    """Skipped answers and unanswered last words: each is a number."""
    messages = (Message("assistant", "hi"), *_chat("q", "a", "and?").messages)
    encoder = _encoder()

    encoded = encoder.encode([Conversation(messages), _chat("q", "a")])

    notes = encoded.notes
    assert (notes.leading_assistant, notes.trailing_user) == (1, 1)
    first, second = _rows(encoded)
    assert first == second


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (Conversation(_chat("q", "a").messages, tools=({"name": "f"},)), "tools"),
        (
            Conversation(
                (Message("user", "q"), Message("assistant", "a", fields={"thinking": "hm"}))
            ),
            "thinking",
        ),
    ],
)
def test_what_a_named_template_would_lose_is_refused_by_name(row: Conversation, named: str) -> None:
    """Tools, reasoning: it prints texts of turns alone."""
    ((_, reject),) = _encoder().encode([row]).rejects
    assert reject.reason == Reason.UNSUPPORTED_FIELD
    assert named in reject.detail


def test_a_part_without_loss_is_masked() -> None:
    """The tokens of an answer are those of its whole text; the switched part has no loss."""
    parts = (Part("first part, "), Part("second part", False), Part(" and a third."))
    text = "".join(part.text or "" for part in parts)
    row = Conversation((Message("user", "q"), Message("assistant", text, parts=parts)))

    ((ids, labels),) = _rows(_encoder().encode([row]))

    assert ids == _rows(_encoder().encode([_chat("q", text)]))[0][0]
    trained = [label for label in labels if label != -100]
    assert small_tokenizer().decode(trained).startswith("first part, and a third.")


def test_a_call_that_stands_as_text_is_printed_as_text() -> None:
    """A `function_call` turn under a template without tool calls is what the record says."""
    call = Message("assistant", "", tool_calls=({"function": {"name": "f"}},), call_text="f()")
    found = _encoder().encode([Conversation((Message("user", "q"), call))])
    assert _rows(found) == _rows(_encoder().encode([_chat("q", "f()")]))


def test_images_whose_placeholder_is_cut_are_dropped_and_counted() -> None:
    """The head that fits is kept, with its images; the others are counted."""
    row = Conversation(
        (
            *_chat("one <image>", "a").messages,
            *_chat("two <image> and a long tail of words", "b").messages,
        ),
        images=("1.jpg", "2.jpg"),
    )
    length = _encoder(image_tokens=50).encode([row]).samples.lengths[0]

    whole = _encoder(image_tokens=50, max_length=int(length) + 98).encode([row])
    encoded = _encoder(image_tokens=50, max_length=100).encode([row])

    assert whole.n_images.tolist() == [2]
    assert encoded.n_images.tolist() == [1]
    assert encoded.notes.images_cut == 1
    ids, _ = _rows(encoded)[0]
    assert ids == _rows(whole)[0][0][: len(ids)]
    assert len(ids) + 49 < 100


def test_an_answer_may_say_image_in_words() -> None:
    """When the questions' marks are all images, `<image>` in an answer is text."""
    encoded = _encoder(image_placeholder=-7).encode(
        [_chat("<image> what?", "an <image> of", images=("1.jpg",))]
    )

    ids, labels = _rows(encoded)[0]
    assert ids.count(-7) == 1
    assert labels[ids.index(-7)] == -100
    token = small_tokenizer().backend.token_to_id(IMAGE_MARK)
    assert token in labels


def test_text_that_spells_the_image_token_is_no_image() -> None:
    """With --image-token the token of `<image>` stands for an image: a row that only spells it
    would take the next row's image, so it is rejected."""
    token = small_tokenizer().backend.token_to_id(IMAGE_MARK)
    rows = [_chat("a", "b"), _chat("the tag <image>", "c"), _chat("<image>", "d", images=("1",))]

    encoded = _encoder(image_placeholder=token).encode(rows)

    assert encoded.kept.tolist() == [0, 2]
    assert encoded.n_images.tolist() == [0, 1]
    assert encoded.rejects[0][1].reason == Reason.PLACEHOLDER_MISMATCH


def test_text_rows() -> None:
    """Pretraining text: BOS masked, all of the text in the loss, no EOS."""
    text = "Once upon a time."
    ids = small_tokenizer().backend.encode(text, add_special_tokens=False).ids
    row = Conversation((Message("assistant", text),), kind="text")

    encoded = _encoder().encode([row])

    assert _rows(encoded) == [([*small_tokenizer().bos_ids, *ids], [-100, *ids])]


def test_token_rows_are_taken_as_they_are() -> None:
    """Ids and labels of tokenised input come back, cut to max_length, images counted."""
    row = Conversation(
        (),
        kind="tokens",
        ids=(5, -200, 6, 7, 8, 9),
        labels=(-100, -100, 6, -100, 8, 9),
        images=("1.jpg",),
    )

    encoded = _encoder(max_length=8, image_tokens=4).encode([row, row])

    assert _rows(encoded) == [([5, -200, 6, 7, 8], [-100, -100, 6, -100, 8])] * 2
    assert encoded.samples.n_cut.tolist() == [1, 1]
    assert encoded.n_images.tolist() == [1, 1]


def test_borders_of_packed_token_rows_are_kept() -> None:
    """A row that was packed elsewhere keeps its segments; others have one."""
    packed = Conversation(
        (), kind="tokens", ids=(1, 2, 3, 4, 5), labels=(1, 2, 3, 4, 5), cuts=(0, 2, 5)
    )
    plain = Conversation((), kind="tokens", ids=(6, 7), labels=(6, 7))

    samples = _encoder(max_length=4).encode([plain, packed]).samples

    assert samples.segments is not None
    found = samples.segments[["sample", "start", "length", "first"]].tolist()
    assert found == [(0, 0, 2, 0), (1, 0, 2, 0), (1, 2, 2, 2)]


def test_an_empty_batch() -> None:
    """No conversations give no samples."""
    encoded = _encoder().encode([])

    assert len(encoded.samples) == 0
    assert encoded.rejects == []


def test_one_batch_or_many_give_the_same() -> None:
    """Where a batch begins changes nothing."""
    rows = [_chat("word " * k, "answer " * (20 - k)) for k in range(20)]
    whole = _encoder(max_length=40).encode(rows)
    encoder = _encoder(max_length=40)

    parts = [encoder.encode(rows[i : i + 3]) for i in range(0, 20, 3)]

    assert [row for part in parts for row in _rows(part)] == _rows(whole)


@pytest.mark.parametrize(
    "options",
    [{"max_length": 0}, {"image_tokens": 0}, {"special_tokens_in_text": "maybe"}],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    """Before any row is read."""
    with pytest.raises(UsageError):
        _encoder(**options)


@settings(deadline=None, max_examples=60)
@given(st.lists(_conversations(), min_size=1, max_size=4), st.sampled_from(_TRIED))
def test_the_short_way_of_plain_chats_is_the_long_one(
    conversations: list[Conversation], name: str
) -> None:
    """A key that no template reads sends a message the long way: nothing else changes."""
    others = [
        replace(one, messages=tuple(replace(m, fields={"unread": 1}) for m in one.messages))
        for one in conversations
    ]

    short, long = _encoder(name).encode(conversations), _encoder(name).encode(others)

    assert _rows(short) == _rows(long)
    assert [(i, one.reason) for i, one in short.rejects] == [
        (i, one.reason) for i, one in long.rejects
    ]
    assert short.notes == long.notes
