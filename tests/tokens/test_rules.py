"""What of a row is trained: history, roles, empty think blocks, tool calls, system messages."""

from __future__ import annotations

from typing import Any

import pytest
from small_tokenizer import small_tokenizer

from shardkit.conversation import Conversation, Message, Part, Reason
from shardkit.errors import TemplateError, UsageError
from shardkit.tokens import ChatTemplate, Encoded, Encoder, Template, load_template, template_of
from shardkit.tokens.lost_text import Printed, lost_of_calls
from shardkit.tokens.train_rules import TrainRules

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}BODY{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALLS = "{{ m.content }}{% for c in m.tool_calls %}<call>{{ c.function | tojson }}{% endfor %}"
THINKS = (
    "{% if loop.last or m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}"
)
"""As Qwen3: the last answer has a think block, earlier ones only where they have reasoning."""
FORGETS = (
    "{% if loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
)
OPENS = PROMPT.replace("assistant\n", "assistant\n<think>\n")
CHAT = (Message("user", "one?"), Message("assistant", "first."))
MORE = (Message("user", "two?"), Message("assistant", "second."))


def _template(body: str = "{{ m.content }}", prompt: str = PROMPT, **more: Any) -> ChatTemplate:
    text = TURNS.replace("BODY", body) + prompt
    return ChatTemplate.of_text(text, small_tokenizer(), "own.jinja", **more)


def _encode(
    template: ChatTemplate | Template, *messages: Message, parts: Any = None, **rules: Any
) -> Encoded:
    encoder = Encoder(small_tokenizer(), template, max_length=None, rules=TrainRules(**rules))
    return encoder.encode([Conversation(messages)])


def _trained(encoded: Encoded) -> list[str]:
    """The text in the loss of each sample, `|` where it was interrupted."""
    samples, found = encoded.samples, []
    for start, end in zip(samples.starts[:-1].tolist(), samples.starts[1:].tolist(), strict=True):
        runs: list[list[int]] = [[]]
        for token, label in zip(samples.ids[start:end], samples.labels[start:end], strict=True):
            if label == -100:
                runs.append([])
            else:
                runs[-1].append(int(token))
        found.append("|".join(small_tokenizer().decode(run) for run in runs if run))
    return found


def _why(encoded: Encoded) -> str:
    ((_, reject),) = encoded.rejects
    return f"{reject.reason}: {reject.detail}"


def test_history_is_rejected_split_or_left() -> None:
    """A template that drops earlier think blocks: three ways, and each answer as it is seen."""
    template = _template(FORGETS)

    assert "message 1, differently" in _why(_encode(template, *CHAT, *MORE))
    split = _encode(template, *CHAT, *MORE, history="split")
    assert split.kept.tolist() == [0, 0]
    assert split.piece.tolist() == [0, 1]
    assert _trained(split) == ["first.<|im_end|>", "second.<|im_end|>"]
    last = _encode(template, *CHAT, *MORE, history="last")
    assert _trained(last) == ["second.<|im_end|>"]
    assert last.notes.history_untrained == 1
    assert _trained(_encode(template, *CHAT, history="split")) == ["first.<|im_end|>"]


def test_a_piece_that_is_lost_is_named() -> None:
    """The second answer holds only what the template does not print; the first is kept."""
    lost = Message("assistant", "second.", fields={"notes": 1}, tool_calls=({"name": "f"},))

    encoded = _encode(_template(FORGETS), *CHAT, Message("user", "two?"), lost, history="split")

    assert encoded.piece.tolist() == [0]
    ((position, reject),) = encoded.rejects
    assert (position, reject.piece, reject.reason) == (0, 1, Reason.TEMPLATE_LOST_TEXT)


def test_rows_are_tried_and_not_the_template() -> None:
    """Reasoning in every answer: the same template prints each as before, and the row is kept."""
    fields: dict[str, object] = {"reasoning_content": "hm"}
    first = Message("assistant", "first.", fields=fields)
    second = Message("assistant", "second.", fields=fields)

    encoded = _encode(_template(THINKS), CHAT[0], first, MORE[0], second)

    think = "<think>\nhm\n</think>\n\n"
    assert _trained(encoded) == [f"{think}first.<|im_end|>|{think}second.<|im_end|>"]


@pytest.mark.parametrize("prompt", [PROMPT, OPENS])
def test_empty_think_blocks_are_trained_when_asked(prompt: str) -> None:
    """Whether the prompt opens the block or the answer does."""
    template = _template(FORGETS, prompt)

    plain = _encode(template, *CHAT)
    asked = _encode(template, *CHAT, train_empty_think=True)

    assert _trained(plain) == ["first.<|im_end|>"]
    assert plain.notes.empty_thinks == 1
    assert _trained(asked)[0].endswith("</think>\n\nfirst.<|im_end|>")
    assert asked.notes.empty_thinks == 0


def test_a_prompt_that_ends_inside_the_answer() -> None:
    """R1's: the prompt opens a think block that answered conversations do not have."""
    encoded = _encode(_template(prompt=OPENS), *CHAT, *MORE)

    assert _trained(encoded) == ["first.<|im_end|>|second.<|im_end|>"]


def test_an_end_that_moves_on() -> None:
    """Phi-3's: the text ends in one more EOS, which the next message takes away."""
    end = "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"

    encoded = _encode(_template(prompt=end), *CHAT, *MORE)

    assert _trained(encoded) == ["first.<|im_end|>|second.<|im_end|>\n<|endoftext|>"]


@pytest.mark.parametrize("mark", ["[end]", ""])
def test_an_end_that_is_no_token_of_this_tokenizer(mark: str) -> None:
    """Phi-3's template over another tokenizer: what is printed behind an answer ends it; an answer
    whose only end moved away is not the one that was printed."""
    end = "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
    text = TURNS.replace("BODY", "{{ m.content }}").replace("<|im_end|>", mark) + end
    template = ChatTemplate.of_text(text, small_tokenizer(), "own.jinja")

    encoded = _encode(template, *CHAT, *MORE)

    kept = ["first.[end]\n|second.[end]\n<|endoftext|>"]
    assert _trained(encoded) == (kept if mark else [])


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("all", "first.<|im_end|>|second.<|im_end|>"),
        ("last", "second.<|im_end|>"),
        ("user", "one?|two?"),
        ("user,assistant", "one?|first.<|im_end|>|two?|second.<|im_end|>"),
        ("system", "Be brief."),
    ],
)
@pytest.mark.parametrize("name", ["qwen_chat", "own"])
def test_the_roles_that_are_trained(name: str, train_on: str, expected: str) -> None:
    """Under a named template and a chat template alike."""
    template = _template() if name == "own" else load_template(name, small_tokenizer())
    system = Message("system", "Be brief.")

    assert _trained(_encode(template, system, *CHAT, *MORE, train_on=train_on)) == [expected]


@pytest.mark.parametrize("value", ["none", "assistant,robot", ""])
def test_a_role_that_nobody_has_is_refused(value: str) -> None:
    """The error lists what there is."""
    with pytest.raises(UsageError, match="all, last"):
        TrainRules(train_on=value)


def test_an_answer_that_nobody_asked_for() -> None:
    """A chat that begins with one is rejected; the switch that the reject names leaves it out."""
    rest = (Message("user", "Q"), Message("assistant", "A2"))
    rejected = _encode(_template(), Message("assistant", "A1"), *rest)
    assert '"weight": 0' in rejected.rejects[0][1].detail
    kept = _encode(_template(), Message("assistant", "A1", supervised=False), *rest)
    assert [text.strip() for text in _trained(kept)] == ["A2<|im_end|>"]


def _call(arguments: object) -> Message:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    return Message("assistant", "", tool_calls=(call,))


def test_arguments_that_are_text_become_objects() -> None:
    """Text of an object is the object, counted; raw leaves it; other text stays."""
    template = _template(CALLS)

    normal = _encode(template, CHAT[0], _call('{"city": "Oslo"}'))
    raw = _encode(template, CHAT[0], _call('{"city": "Oslo"}'), tool_calls="raw")

    assert '"arguments": {"city": "Oslo"}' in _trained(normal)[0]
    assert normal.notes.arguments_parsed == 1
    assert r'"arguments": "{\"city\": \"Oslo\"}"' in _trained(raw)[0]
    assert '"arguments": "Oslo"' in _trained(_encode(template, CHAT[0], _call("Oslo")))[0]


@pytest.mark.parametrize(
    "text", ['{"a":' * 100_000 + "0" + "}" * 100_000, '{"a": "\ud800"}'], ids=["deep", "surrogate"]
)
@pytest.mark.parametrize("key", ["arguments", "city"])
def test_arguments_that_cannot_be_decoded_stay_text(key: str, text: str) -> None:
    """Text that is nested without end, or that no UTF-8 can spell, hurts its row at most."""
    call = _call(text if key == "arguments" else {key: text})

    encoded = _encode(_template(CALLS), CHAT[0], call)

    assert len(encoded.kept) + len(encoded.rejects) == 1
    assert encoded.notes.arguments_parsed == 0


def test_what_is_lost_of_a_call_is_found_at_any_depth() -> None:
    """Deeper than Python's own stack; the first that is lost is named."""
    value: object = ["Oslo", "Rome"]
    for _ in range(5000):
        value = {"city": value}
    call = {"name": "add", "arguments": value}

    assert lost_of_calls([call], Printed("add city Oslo Rome")) is None
    assert "'Oslo'" in str(lost_of_calls([call], Printed("add city")))


def test_a_turn_that_is_a_call() -> None:
    """A `function_call` turn is a tool call where the template prints one, else its words."""
    call = Message(
        "assistant", "", tool_calls=_call({"city": "Oslo"}).tool_calls, call_text="add(Oslo)"
    )

    printed = _encode(_template(CALLS), CHAT[0], call)

    assert _trained(printed)[0].startswith("<call>")
    assert printed.notes.calls_from_text == 1
    assert _trained(_encode(_template(), CHAT[0], call)) == ["add(Oslo)<|im_end|>"]
    raw = _encode(_template(CALLS), CHAT[0], call, tool_calls="raw")
    assert _trained(raw) == ["add(Oslo)<|im_end|>"]


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (Message("assistant", "first.", fields={"reasoning_content": "hm"}), "its reasoning 'hm'"),
        (_call({"city": "Oslo", "days": 3}), "the call of 'add'"),
    ],
)
def test_what_a_template_does_not_print_is_named(message: Message, what: str) -> None:
    """The row is rejected, not trained without it."""
    why = _why(_encode(_template(), CHAT[0], message))

    assert why.startswith("template_lost_text")
    assert what in why


def test_a_lost_tool_result_is_named_and_lost_history_counted() -> None:
    """Results count as much as answers; a system message that is not printed is a number."""
    body = TURNS.replace("BODY", CALLS).replace(
        "{% for m in messages %}",
        "{% for m in messages if m.role not in ('tool', 'system') %}",
    )
    template = ChatTemplate.of_text(body + PROMPT, small_tokenizer(), "own.jinja")
    talk = (CHAT[0], _call({"city": "Oslo"}))

    assert "message 2, of a tool" in _why(_encode(template, *talk, Message("tool", "17"), CHAT[1]))
    kept = _encode(template, Message("system", "Be brief."), *talk)
    assert kept.notes.history_dropped == 1


def test_white_space_and_escapes_are_no_loss() -> None:
    """A template may trim, and print as JSON or HTML."""
    text = ' Say "<b>", then\n\n  a \\ and 今 '
    for body in ("{{ m.content | trim }}", "{{ m.content | tojson }}", "{{ m.content | e }}"):
        assert len(_encode(_template(body), CHAT[0], Message("assistant", text)).kept) == 1
    with pytest.raises(TemplateError, match="does not print all of message 1"):
        _template("{{ m.content[3:] }}")


def test_a_system_message_goes_before_the_question_where_there_is_no_place() -> None:
    """A template that refuses it, and a named one without a text for it; others print it."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    own = ChatTemplate.of_text(
        refuses + TURNS.replace("BODY", "{{ m.content }}") + PROMPT, small_tokenizer(), "own.jinja"
    )
    system = Message("system", "Be brief.")
    for template in (own, load_template("minicpm", small_tokenizer())):
        assert _encode(template, system, *CHAT).rejects
        folded = _encode(template, system, *CHAT, fold_system=True)
        assert "Be brief.\n\none?" in small_tokenizer().decode(folded.samples.ids.tolist())
        assert folded.notes.system_folded == 1
    takes = _encode(_template(), system, *CHAT, fold_system=True)
    assert takes.notes.system_folded == 0


@pytest.mark.parametrize("train_on", ["all", "user,assistant"])
def test_a_row_is_split_after_its_system_message_was_folded(train_on: str) -> None:
    """The pieces are those of the same row without a system message, which each begins with."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    text = refuses + TURNS.replace("BODY", FORGETS) + PROMPT
    template = ChatTemplate.of_text(text, small_tokenizer(), "own.jinja")
    rules: dict[str, Any] = {"history": "split", "fold_system": True, "train_on": train_on}
    plain = _encode(template, *CHAT, *MORE, **rules)

    split = _encode(template, Message("system", "Be brief."), *CHAT, *MORE, **rules)

    assert len(split.kept) == len(plain.kept) > 1
    assert [text.removeprefix("Be brief.\n\n") for text in _trained(split)] == _trained(plain)
    assert split.notes.system_folded == len(split.kept)
    assert small_tokenizer().decode(split.samples.ids.tolist()).count("Be brief.\n\none?") == len(
        split.kept
    )


def test_xtuners_rules_for_repeated_roles_are_counted() -> None:
    """The ids stay XTuner's; the ledger says what became of the words."""
    template = load_template("qwen_chat", small_tokenizer())
    system = (Message("system", "one"), Message("system", "two"))

    encoded = _encode(template, *system, CHAT[0], CHAT[0], CHAT[1], CHAT[1])

    notes = encoded.notes
    assert (notes.system_replaced, notes.users_joined, notes.empty_questions) == (1, 1, 1)


def test_variables_of_a_template_are_part_of_its_identity() -> None:
    """They reach the template, its sha256 and the manifest; one that it has not is refused."""
    prompt = PROMPT + "{% if add_generation_prompt and mood is defined %}{{ mood }}{% endif %}"
    body = "{{ mood if mood is defined else '' }}{{ m.content }}"
    plain, set_ = _template(body, prompt), _template(body, prompt, args={"mood": "glad\n"})

    assert set_.identity["args"] == {"mood": "glad\n"}
    assert set_.identity["sha256"] != plain.identity["sha256"]
    assert _trained(_encode(set_, *CHAT)) == ["first.<|im_end|>"]
    assert "glad\nfirst." in small_tokenizer().decode(_encode(set_, *CHAT).samples.ids.tolist())
    again = template_of(set_.identity, small_tokenizer())
    assert again.identity == set_.identity
    for name in ("thinking", "messages", "add_generation_prompt"):
        with pytest.raises(TemplateError, match="no such argument"):
            _template(body, prompt, args={name: 1})
    with pytest.raises(TemplateError, match="only a chat template"):
        load_template("qwen_chat", small_tokenizer(), args={"mood": "glad"})


def test_a_template_that_prints_without_measure_is_refused_for_the_row() -> None:
    """A row that a template blows up is rejected; it does not take the memory of the machine."""
    body = "{{ m.content * (10 ** 9 if 'big' in m.content else 1) }}"

    encoded = _encode(_template(body), CHAT[0], Message("assistant", "big"))

    assert "a text or list of over" in _why(encoded)


PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<vision><image></vision>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}"
)


def test_images_stand_where_the_template_prints_them() -> None:
    """Parts go in as parts; `<image>` in a string becomes a part too."""
    text = TURNS.replace("{% else %}{{ m.content }}", "{% else %}" + PARTS, 1)
    template = ChatTemplate.of_text(
        text.replace("BODY", PARTS) + PROMPT, small_tokenizer(), "own.jinja"
    )
    assert template.form.image_text == "<vision><image></vision>"
    parts = (Part("Look: "), Part(), Part("Who?"))
    for question in (
        Message("user", "Look: <image>Who?"),
        Message("user", "Look: <image>Who?", parts=parts),
    ):
        encoder = Encoder(small_tokenizer(), template, max_length=None)
        talk = Conversation((question, CHAT[1]), images=("1.jpg",))
        encoded = encoder.encode([talk])
        shown = small_tokenizer().decode(encoded.samples.ids.tolist())
        assert "user\nLook: <vision><image></vision>Who?<|im_end|>" in shown
        assert encoded.n_images.tolist() == [1]
        assert _trained(encoded) == ["first.<|im_end|>"]


def test_a_part_without_loss_under_a_chat_template() -> None:
    """The part is printed, and has no label."""
    parts = (Part("good. "), Part("bad.", supervised=False))
    answer = Message("assistant", "good. bad.", parts=parts)

    assert _trained(_encode(_template(), CHAT[0], answer)) == ["good.|<|im_end|>"]
