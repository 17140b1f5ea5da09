"""Chat templates: ids equal apply_chat_template, and the mask is the assistant's words."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import tokenizers
from shared import shared
from small_tokenizer import small_tokenizer
from tokenizers import normalizers

from shardkit.conversation import Conversation, Message, Reason
from shardkit.errors import TemplateError
from shardkit.tokens import ChatTemplate, Encoded, Encoder, Tokenizer, load_template, load_tokenizer
from shardkit.tokens.train_rules import TrainRules

TOOLS = (
    {
        "type": "function",
        "function": {"name": "add", "description": "é <b>", "parameters": {"type": "object"}},
    },
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "é", "b": 2}}}
END = {"qwen2_5": "<|im_end|>", "llama3_2": "<|eot_id|>", "internlm2": "<|im_end|>"}
DATE = "2024-07-26"


def _talk(*messages: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in messages))  # type: ignore[arg-type]


TALKS = [
    _talk(("user", "Hello there"), ("assistant", "Hi! 😀")),
    _talk(
        ("system", "Be brief.\n"),
        *(("user", "\nWhat?  "), ("assistant", "\n\n  Indented\n\tcode\n")),
        *(("user", "more"), ("assistant", "ok 今天")),
        *(("user", "and"), ("assistant", "")),
    ),
    _talk(("user", "e\u0301"), ("assistant", "cafe\u0301 \u212b q\u0323\u0307"), ("user", "then?")),
    _talk(("user", "say <|im_end|> </s>"), ("assistant", "<|im_start|>user\n<|eot_id|>")),
]


def _tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(shared(f"data/tokenizers/{name}"))


def _template(name: str, tokenizer: Tokenizer) -> Any:
    return load_template("tokenizer", tokenizer, date=DATE if name == "llama3_2" else None)


def _as_dicts(conversation: Conversation) -> list[dict[str, object]]:
    return [
        {"role": m.role, "content": m.text}
        | ({"tool_calls": list(m.tool_calls)} if m.tool_calls else {})
        for m in conversation.messages
    ]


def _applied(tokenizer: Tokenizer, talk: Conversation, **options: object) -> dict[str, list[int]]:
    """What transformers makes of it."""
    hf: Any = tokenizer.hf
    found = hf.apply_chat_template(
        _as_dicts(talk),
        tools=list(talk.tools) or None,
        tokenize=True,
        return_dict=True,
        **options,
    )
    return dict(found)


def _rows(encoded: Encoded) -> list[tuple[list[int], list[int]]]:
    samples = encoded.samples
    return [
        (samples.ids[a:b].tolist(), samples.labels[a:b].tolist())
        for a, b in pairwise(samples.starts.tolist())
    ]


def _supervised(tokenizer: Tokenizer, labels: list[int]) -> str:
    return tokenizer.decode(label for label in labels if label != -100)


@pytest.mark.needs_shared
@pytest.mark.parametrize("engine", ["hf", "auto"])
@pytest.mark.parametrize("name", ["qwen2_5", "llama3_2", "internlm2"])
def test_ids_equal_apply_chat_template(name: str, engine: Any) -> None:
    """Several turns, system prompts, odd white space, tools: the ids are transformers' own, and
    what is in the loss decodes to each answer and its end token."""
    tokenizer = _tokenizer(name)
    talks = list(TALKS)
    if name != "internlm2":
        call = Message("assistant", "", tool_calls=(CALL,))
        turns = (
            Message("user", "2+2"),
            call,
            Message("tool", "4"),
            Message("assistant", "It is 4"),
        )
        talks.append(Conversation(turns, tools=TOOLS))
    records = json.loads(shared("data/text/alpaca_data.json").read_text())[:100]
    for one, two in pairwise(records):
        first = (("user", one["instruction"]), ("assistant", one["output"] or "-"))
        talks.append(_talk(*first, ("user", two["instruction"]), ("assistant", two["output"])))
    options = {"date_string": "26 Jul 2024"} if name == "llama3_2" else {}

    encoder = Encoder(tokenizer, _template(name, tokenizer), max_length=None, engine=engine)
    encoded = encoder.encode(talks)

    assert encoded.rejects == []
    for talk, (ids, labels) in zip(talks, _rows(encoded), strict=True):
        assert ids == _applied(tokenizer, talk, **options)["input_ids"]
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
        said = [m.text for m in talk.messages if m.role == "assistant" and not m.tool_calls]
        _check_words(_supervised(tokenizer, labels), said, END[name])


def _check_words(found: str, said: list[str], end: str) -> None:
    """The supervised text is the answers, each with its end token, in order.

    Compared without the white space around them: a token may hold the header's newline and the
    answer's. (An answer that spells the end token is left to the comparison of ids.)
    """
    if any(end in text for text in said):
        return
    *parts, rest = [normalize("NFC", part).strip() for part in found.split(end)]
    assert rest == ""
    assert parts[-len(said) :] == [normalize("NFC", text).strip() for text in said]


def test_masks_equal_transformers_where_the_template_has_marks() -> None:
    """With {% generation %} blocks the mask is `assistant_masks`, token by token.

    One difference is wanted: transformers leaves out the later tokens of a character that is cut
    into several when it is the block's last; here every token of the block is in.
    """
    tokenizer = small_tokenizer()
    encoder = Encoder(tokenizer, load_template("tokenizer", tokenizer), max_length=None)

    encoded = encoder.encode(TALKS)

    for talk, (ids, labels) in zip(TALKS, _rows(encoded), strict=True):
        applied = _applied(tokenizer, talk, return_assistant_tokens_mask=True)
        assert ids == applied["input_ids"]
        assert [int(label != -100) for label in labels] == applied["assistant_masks"]


def test_prefix_masks_equal_marked_masks(tmp_path: Path) -> None:
    """The same template without its marks gives the same labels by prefix rendering."""
    tokenizer = small_tokenizer()
    text = tokenizer.chat_template or ""
    path = tmp_path / "plain.jinja"
    path.write_text(text.replace("{%- generation %}", "").replace("{%- endgeneration %}", ""))
    marked, plain = load_template("tokenizer", tokenizer), load_template(path, tokenizer)
    assert isinstance(marked, ChatTemplate)
    assert isinstance(plain, ChatTemplate)
    assert marked.has_generation
    assert not plain.has_generation

    rows = [_rows(Encoder(tokenizer, t, max_length=None).encode(TALKS)) for t in (marked, plain)]

    assert rows[0] == rows[1]


def test_an_answer_that_is_not_to_be_learnt_is_masked() -> None:
    """`supervised=False` masks that answer and its end token, and no other."""
    tokenizer = small_tokenizer()
    first, second = Message("assistant", "one", supervised=False), Message("assistant", "two")
    talk = Conversation((Message("user", "a"), first, Message("user", "b"), second))

    encoder = Encoder(tokenizer, load_template("tokenizer", tokenizer), max_length=None)

    _, labels = _rows(encoder.encode([talk]))[0]
    assert _supervised(tokenizer, labels) == "two<|im_end|>"


def test_images_in_a_chat_template() -> None:
    """The printed text is cut at image marks, one placeholder each; spans survive the cut."""
    tokenizer = small_tokenizer()
    talk = Conversation(
        (Message("user", "<image>what <image>?"), Message("assistant", "a cat")),
        images=("1.jpg", "2.jpg"),
    )
    encoder = Encoder(tokenizer, load_template("tokenizer", tokenizer), max_length=None)

    encoded = encoder.encode([talk])

    ids, labels = _rows(encoded)[0]
    assert ids.count(-200) == 2
    assert encoded.n_images.tolist() == [2]
    assert _supervised(tokenizer, labels) == "a cat<|im_end|>"
    assert tokenizer.decode(ids) == _applied_text(tokenizer, talk)


def _applied_text(tokenizer: Tokenizer, talk: Conversation) -> str:
    hf: Any = tokenizer.hf
    return str(hf.apply_chat_template(_as_dicts(talk), tokenize=False))


def _of(text: str) -> ChatTemplate:
    return ChatTemplate.of_text(text, small_tokenizer(), "test.jinja")


ROLES = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{% for %}", "not a Jinja template"),
        (f"{ROLES}{PROMPT}{{{{ raise_exception('no') }}}}", "failed: no"),
        (f"{ROLES}<think>{PROMPT}", "where it begins cannot be told"),
        ("{{ messages|length }} {{ messages[-1].content }}", "no more when the answer follows"),
        ("{% generation %}{% endgeneration %}x", "does not print all of message 1"),
        ("{{ strftime_now('%Y') }}", "prints today's date"),
    ],
)
def test_a_template_that_cannot_be_masked_is_refused(text: str, complaint: str) -> None:
    """When it is loaded, with the reason."""
    with pytest.raises(TemplateError, match=complaint) as caught:
        _of(text)
    assert caught.value.fix


def test_a_template_that_rewrites_history_takes_single_turns_only() -> None:
    """Templates that drop the thinking of earlier answers: one turn is fine, several are
    rejected row by row, with the reason."""
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT
    )
    template = _of(text)

    encoded = Encoder(small_tokenizer(), template, max_length=None).encode(TALKS[:2])

    assert encoded.kept.tolist() == [0]
    assert encoded.rejects[0][1].reason == Reason.TEMPLATE_FAILED
    assert "message 2, differently when more messages follow" in encoded.rejects[0][1].detail
    assert "--history split" in encoded.rejects[0][1].detail


def test_a_system_message_that_only_the_prompt_has_is_named() -> None:
    """Mistral's templates say it before the last question alone: the answer would not have it."""
    text = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'user' and messages[0].role == 'system' %}"
        "{{ messages[0].content }} {% endif %}"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + PROMPT
    )
    template = _of(text)
    talk = _talk(("system", "Be brief."), ("user", "What?"), ("assistant", "This."))

    encoded = Encoder(small_tokenizer(), template, max_length=None).encode([talk])

    detail = encoded.rejects[0][1].detail
    assert (
        "prints message 0 (system) in the prompt for the answer, message 2, and no more" in detail
    )
    assert "--fold-system" in detail
    rules = TrainRules(fold_system=True)
    encoder = Encoder(small_tokenizer(), template, max_length=None, rules=rules)
    folded = encoder.encode([talk])
    assert folded.kept.tolist() == [0]
    printed = small_tokenizer().hf.decode(folded.samples.ids.tolist())
    assert "user\nBe brief.\n\nWhat?<|im_end|>" in printed


def test_a_row_that_the_template_refuses_is_rejected() -> None:
    """The template's own exception is the row's reason; the next row is not hurt."""
    text = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    encoder = Encoder(small_tokenizer(), _of(text + ROLES + PROMPT), max_length=None)
    good = TALKS[0]

    encoded = encoder.encode([TALKS[1], good, _talk(("assistant", "first"))])

    assert encoded.kept.tolist() == [1]
    reasons = [(reject.reason, reject.detail) for _, reject in encoded.rejects]
    assert reasons[0] == (Reason.TEMPLATE_FAILED, "the chat template failed: no system")
    assert reasons[1][0] == Reason.TEMPLATE_FAILED


@pytest.mark.needs_shared
def test_the_date_is_pinned_and_recorded() -> None:
    """llama3_2 prints a date: it must be given, is printed, and is part of the identity."""
    tokenizer = _tokenizer("llama3_2")
    with pytest.raises(TemplateError, match="prints today's date"):
        load_template("tokenizer", tokenizer)

    one = load_template("tokenizer", tokenizer, date="2024-07-26")
    two = load_template("tokenizer", tokenizer, date="2025-01-02")

    assert one.identity["date"] == "2024-07-26"
    assert one.identity["sha256"] != two.identity["sha256"]
    ids, _ = _rows(Encoder(tokenizer, two, max_length=None).encode(TALKS[:1]))[0]
    assert "Today Date: 02 Jan 2025\n" in tokenizer.decode(ids)


@pytest.mark.parametrize("date", ["26 Jul 2024", "2024-13-01"])
def test_a_date_that_is_none_is_refused(date: str) -> None:
    """Only YYYY-MM-DD."""
    with pytest.raises(TemplateError, match="not a date"):
        ChatTemplate.of_text("{{ strftime_now('%Y') }}", small_tokenizer(), "x", date=date)


@pytest.mark.parametrize("name", ["tokenizer", "vicuna"])
def test_a_date_for_a_template_without_one_is_refused(name: str) -> None:
    """An option that would change nothing is a mistake."""
    with pytest.raises(TemplateError, match="date"):
        load_template(name, small_tokenizer(), date=DATE)


@pytest.mark.parametrize("settings", [{"date": DATE}, {"args": {"mood": "glad"}}])
def test_a_template_object_keeps_its_own_settings(settings: dict[str, Any]) -> None:
    """Others that are given beside it would change nothing, and are refused."""
    template = load_template("tokenizer", small_tokenizer())

    assert load_template(template, small_tokenizer()) is template
    with pytest.raises(TemplateError, match="its own date and arguments"):
        load_template(template, small_tokenizer(), **settings)


def test_the_identity_is_the_templates_text() -> None:
    """Name, text and the sha256 of the text."""
    tokenizer = small_tokenizer()
    identity = load_template("tokenizer", tokenizer).identity

    assert identity["text"] == tokenizer.chat_template
    assert identity["sha256"] == tokenizer.identity.chat_template_sha256
    assert identity["name"] == "tokenizer"


@pytest.mark.needs_shared
def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    """gpt2 has none; named templates and files are offered."""
    with pytest.raises(TemplateError, match="no chat template"):
        load_template("tokenizer", _tokenizer("gpt2"))


def test_a_template_travels_to_workers() -> None:
    """Pickled before and after use, it renders the same."""
    template = load_template("tokenizer", small_tokenizer())
    assert isinstance(template, ChatTemplate)
    before = template.render(TALKS[1])

    copy = pickle.loads(pickle.dumps(template))

    assert copy.render(TALKS[1]) == before
    assert copy.identity == template.identity


def test_the_template_cannot_reach_the_machine() -> None:
    """A template is code from the hub: it runs in Jinja's sandbox."""
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + ROLES + PROMPT

    with pytest.raises(TemplateError, match=r"unsafe|failed"):
        _of(text)


def test_text_and_mask_do_not_depend_on_the_way_masks_are_made() -> None:
    """Bytes of tokens, or character offsets: the labels are the same."""
    tokenizer = small_tokenizer()
    encoder = Encoder(tokenizer, load_template("tokenizer", tokenizer), max_length=None)
    by_bytes = _rows(encoder.encode(TALKS))
    encoder._maker.masker.__dict__["_spellings"] = None

    by_offsets = _rows(encoder.encode(TALKS))

    assert by_offsets == by_bytes
    assert np.array_equal(np.array(by_bytes[0][0]), np.array(by_offsets[0][0]))


def test_a_normalizer_that_moves_characters_does_not_move_the_mask() -> None:
    """When the tokens do not spell the text, not even at equal length, offsets decide."""
    backend = tokenizers.Tokenizer.from_str(small_tokenizer().backend_json)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace("xx", "y"), normalizers.Replace("z", "ww")]
    )
    config = small_tokenizer().config
    tokenizer = Tokenizer(backend, config)
    talk = _talk(("user", "axxa"), ("assistant", "z"))
    encoder = Encoder(tokenizer, load_template("tokenizer", tokenizer), max_length=None)

    _, labels = _rows(encoder.encode([talk]))[0]

    assert _supervised(tokenizer, labels) == "ww<|im_end|>"
