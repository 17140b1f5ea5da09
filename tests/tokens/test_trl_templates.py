"""Ids and masks of the published chat templates that TRL ships, against transformers.

Templates that TRL has a training twin for are compared with the twin's `{% generation %}` marks
too, where it prints the same text. No template is stored here: they are read from the package.
"""

from __future__ import annotations

import copy
import datetime
import importlib.util
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import msgspec.structs
import numpy as np
import pytest
import tokenizers
from small_tokenizer import FOLDER

from shardkit.conversation import Conversation, Message, Reason
from shardkit.tokens import ChatTemplate, Encoder, Tokenizer, load_tokenizer
from shardkit.tokens.train_rules import TrainRules

SPEC = importlib.util.find_spec("trl")
if SPEC is None or SPEC.origin is None:
    pytest.skip("trl is not installed", allow_module_level=True)
TEMPLATES = Path(SPEC.origin).parent / "chat_templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
MARKERS = re.compile(
    r"<[|｜][^<>\s|｜]+[|｜]>|<\|\w+>|<\w+\|>|</?(?:start_of_turn|end_of_turn|start_of_image|think|tool_call"
    r"|tool_response|s|bos|eos)>|\[/?(?:INST|TOOL_CALLS)\]"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "one"},
                    "b": {"type": "string", "description": "two"},
                },
                "required": ["a"],
            },
        },
    }
]
Row = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _call(arguments: object, number: int = 1) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    return {"id": f"call{number:05d}", "type": "function", "function": function}


def _result(text: str, number: int = 1) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"call{number:05d}", "name": "add"}


SYSTEM = {"role": "system", "content": "Be brief."}
SUM = {"a": 41, "b": "x é"}
ROWS: dict[str, Row] = {
    "one": ([_user("Hello there"), _answer("Hi! 😀")], None),
    "multi": ([_user("What?"), _answer("This."), _user("And?"), _answer("That <b>.")], None),
    "system": ([SYSTEM, _user("What?"), _answer("This."), _user("and"), _answer("ok")], None),
    "reasoning": ([_user("What?"), _answer("This.", reasoning_content='See "it".\nYes')], None),
    "thinking": ([_user("What?"), _answer("This.", thinking="Let me see.")], None),
    "reasoning twice": (
        [
            *[_user("What?"), _answer("This.", reasoning_content="Let me see.")],
            *[_user("And?"), _answer("That.", reasoning_content="A second thought.")],
        ],
        None,
    ),
    "tool": (
        [_user("Sum?"), _answer("", tool_calls=[_call(SUM)]), _result('{"n": 3}'), _answer("3.")],
        TOOLS,
    ),
    "tool, reasoning": (
        [
            *[_user("Sum?"), _answer("", reasoning_content="Call it.", tool_calls=[_call(SUM)])],
            *[_result("three"), _answer("It is 3.", reasoning_content="Done.")],
        ],
        TOOLS,
    ),
    "parallel tools": (
        [
            *[_user("Sums?"), _answer("", tool_calls=[_call(SUM), _call({"a": 57, "b": "y"}, 2)])],
            *[_result("three"), _result("seven", 2), _answer("3 and 7.")],
        ],
        TOOLS,
    ),
    "string arguments": (
        [
            *[_user("Sum?"), _answer("", tool_calls=[_call(json.dumps(SUM))])],
            *[_result("three"), _answer("It is 3.")],
        ],
        TOOLS,
    ),
    "words and a call": (
        [_user("Sum?"), _answer("I call.", tool_calls=[_call(SUM)]), _result("3"), _answer("3.")],
        TOOLS,
    ),
    "no answer to the last": ([_user("What?"), _answer("This."), _user("And?")], None),
}
NOT_AS_THE_TWIN = {
    "diffusion_gemma": {"<|tool_response>"},
    "glm4moe": {"<|user|>"},
}
"""Tokens that stop the model and stand after an answer: in the loss of one of the two."""


@cache
def _tokenizer(name: str) -> Tokenizer:
    """The small tokenizer with the markers of a template and its twin as special tokens."""
    transformers: Any = importlib.import_module("transformers")
    texts = [path.read_text() for path in (_path(name), _twin(name)) if path.exists()]
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json")),
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    markers = sorted({marker for text in texts for marker in MARKERS.findall(text)})
    hf.add_special_tokens({"additional_special_tokens": markers})
    return load_tokenizer(hf)


def _path(name: str) -> Path:
    return TEMPLATES / f"{name}.jinja"


def _twin(name: str) -> Path:
    return TEMPLATES / f"{name}_training.jinja"


def _template(name: str) -> ChatTemplate:
    text = _path(name).read_text()
    date = datetime.date.today().isoformat() if "strftime_now" in text else None
    return ChatTemplate.of_text(text, _tokenizer(name), name, date=date)


def _conversation(row: Row) -> Conversation:
    messages, tools = row
    known = ("role", "content", "tool_calls", "name")
    return Conversation(
        tuple(
            Message(
                message["role"],
                message["content"],
                tool_calls=tuple(message.get("tool_calls", ())),
                name=message.get("name"),
                fields={key: value for key, value in message.items() if key not in known},
            )
            for message in messages
        ),
        tools=tuple(tools or ()),
    )


def _normalised(row: Row, template: ChatTemplate) -> list[dict[str, Any]]:
    """The messages as a user of transformers must write them for this template."""
    messages = copy.deepcopy(row[0])
    for message in messages:
        for call in message.get("tool_calls", ()):
            given = call["function"]["arguments"]
            if isinstance(given, str) and template.form.takes_objects:
                call["function"]["arguments"] = json.loads(given)
        reasoning = message.get("thinking", message.get("reasoning_content"))
        if reasoning is not None:  # transformers does so itself from 5.24 on
            message |= {"thinking": reasoning, "reasoning_content": reasoning}
        if message["role"] not in template.form.text_roles and template.form.part_roles:
            message["content"] = [{"type": "text", "text": message["content"]}]
    return messages


def _applied(name: str, row: Row, template: ChatTemplate, **more: Any) -> Any:
    hf: Any = _tokenizer(name).hf
    options = {"chat_template": template.text, "return_dict": True} | more
    return hf.apply_chat_template(_normalised(row, template), tools=row[1], **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_what_transformers_prints_or_is_rejected_with_the_reason(name: str) -> None:
    """Kept rows have the ids of apply_chat_template, and no row is kept that it refuses."""
    template = _template(name)
    rules = TrainRules(train_empty_think=True)
    encoder = Encoder(_tokenizer(name), template, max_length=None, rules=rules)
    outcome = Counter[str]()
    for title, row in ROWS.items():
        encoded = encoder.encode([_conversation(row)])
        outcome["kept" if len(encoded.kept) else "rejected"] += 1
        for _, reject in encoded.rejects:
            assert reject.reason in (Reason.TEMPLATE_FAILED, Reason.TEMPLATE_LOST_TEXT), title
            assert reject.detail, title
        if not len(encoded.kept):
            continue
        applied = _applied(name, row, template)
        assert encoded.samples.ids.tolist() == applied["input_ids"], title
        _compare_with_the_twin(name, title, row, template, encoded.samples.labels)
    assert outcome["kept"] >= 1


def _compare_with_the_twin(
    name: str, title: str, row: Row, template: ChatTemplate, labels: np.ndarray
) -> None:
    """The loss is that of the training twin, where it prints the same.

    But for what the prompt of the template itself prints, which a twin may have in the loss
    (`<|start|>assistant`, `<think>`), for white space after an end token, and NOT_AS_THE_TWIN.
    """
    if not _twin(name).exists():
        return
    try:
        found = _applied(
            name,
            row,
            template,
            chat_template=_twin(name).read_text(),
            return_assistant_tokens_mask=True,
        )
    except Exception:  # the twin refuses what the template takes
        return
    hf: Any = _tokenizer(name).hf
    prompt = hf.apply_chat_template(
        _normalised(([_user("What?")], None), template),
        chat_template=template.text,
        add_generation_prompt=True,
        tokenize=False,
    )
    tail = prompt[prompt.rfind("What?") :] + "<｜tool▁outputs▁end｜>"
    ids = found["input_ids"]
    if len(ids) != len(labels):
        return
    mine, theirs = labels != -100, np.array(found["assistant_masks"], bool)
    for at in np.flatnonzero(mine != theirs).tolist():
        token = hf.decode([ids[at]])
        is_of_prompt = theirs[at] and token in tail
        is_space = theirs[at] and not token.strip()
        assert is_of_prompt or is_space or token in NOT_AS_THE_TWIN.get(name, ()), (title, token)


def test_what_is_rejected_is_rejected_for_what_the_template_is() -> None:
    """Reasons that a user acts on, for templates that are widely used."""
    expected = {
        ("llama3", "tool"): "does not print all of message 1: the call of 'add'",
        ("llama3_1", "words and a call"): "its words 'I call.'",
        ("phi3", "reasoning"): "its reasoning",
        ("qwen3", "multi"): "--history split",
        ("gptoss", "multi"): "--history split",
        ("gptoss", "parallel tools"): "the call of 'add': '57'",
        ("deepseek_r1_distill", "tool"): "the call of 'add'",
        ("gemma", "system"): "System role not supported",
    }
    for (name, title), words in expected.items():
        encoder = Encoder(_tokenizer(name), _template(name), max_length=None)
        encoded = encoder.encode([_conversation(ROWS[title])])
        assert [words in reject.detail for _, reject in encoded.rejects] == [True], (name, title)


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "qwen3_5_think"])
def test_split_rows_are_what_inference_sees(name: str) -> None:
    """Each piece is the prompt that the template makes of the messages before, and the answer."""
    template = _template(name)
    rules = TrainRules(history="split")
    encoder = Encoder(_tokenizer(name), template, max_length=None, rules=rules)
    row = ROWS["multi"]

    encoded = encoder.encode([_conversation(row), _conversation(ROWS["one"])])

    assert encoded.kept.tolist() == [0, 0, 1]
    assert encoded.piece.tolist() == [0, 1, 0]
    hf: Any = _tokenizer(name).hf
    for piece, last in enumerate((2, 4)):
        start, end = encoded.samples.starts[piece : piece + 2]
        ids, labels = encoded.samples.ids[start:end], encoded.samples.labels[start:end]
        applied = _applied(name, (row[0][:last], None), template)
        assert ids.tolist() == applied["input_ids"]
        prompt = hf.apply_chat_template(
            row[0][: last - 1], chat_template=template.text, add_generation_prompt=True
        )["input_ids"]
        assert (labels[: len(prompt)] == -100).all()
        trained = hf.decode(ids[labels != -100])
        assert row[0][last - 1]["content"] in trained


PAIRS: dict[str, tuple[Row, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "one": (([_user("Hello there")], None), [_answer("Hi! 😀")], [_answer("\nNo.")]),
    "multi": (
        ([_user("What?"), _answer("This."), _user("And?")], None),
        [_answer("That <b>.")],
        [_answer("Those", reasoning_content="Let me see.")],
    ),
    "tool": (
        ([_user("Sum?")], TOOLS),
        [_answer("", tool_calls=[_call(SUM)]), _result("3"), _answer("It is 3.")],
        [_answer("I cannot.")],
    ),
}
PREFERRED = [
    *("deepseek_r1_distill", "gemma3", "gptoss", "llama3_1", "nemotron_3_nano", "phi3_training"),
    *("qwen2_5_training", "qwen3", "qwen3_5_nothink_training"),
]


@pytest.mark.parametrize("name", sorted({*PREFERRED} & {*NAMES}))
def test_pairs_part_where_trls_trainers_part_them(name: str) -> None:
    """Ids of prompt and answers, and where the answers begin, as DPOTrainer tokenises a row."""
    template, n_equal = _template(name), 0
    encoder = Encoder(_tokenizer(name), template, max_length=None, task="preference")
    for title, ((prompt, tools), *answers) in PAIRS.items():
        talks = [_conversation(([*prompt, *answer], tools)) for answer in answers]
        n = len(prompt)
        pair = msgspec.structs.replace(talks[0], n_prompt=n, rejected=talks[1].messages[n:])
        encoded = encoder.encode([pair])
        if encoded.rejects:
            assert encoded.rejects[0][1].detail.startswith(("chosen: ", "rejected: ")), title
            continue
        before = _applied(name, (prompt, tools), template, add_generation_prompt=True)["input_ids"]
        expected = [
            _applied(name, ([*prompt, *answer], tools), template)["input_ids"] for answer in answers
        ]
        border = min(
            next(i for i, id in enumerate(ids) if before[i : i + 1] != [id]) for ids in expected
        )
        samples, segments = encoded.samples, encoded.samples.segments
        assert segments is not None
        for start, length, ids in zip(segments["start"], segments["length"], expected, strict=True):
            assert samples.ids[start : start + length].tolist() == ids, title
            labels = samples.labels[start : start + length].tolist()
            assert labels == [-100] * border + ids[border:], title
        n_equal += 1
    assert n_equal
