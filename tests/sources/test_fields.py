"""Every key of a record is used, counted, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from records import pack_small, write_json
from row_fuzz import lost, make

from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.errors import BadInput
from shardkit.sources import SOURCES, ReadOptions, Unread, detect, scan

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def read(record: Any, kind: str = "chat", **options: Any) -> tuple[Any, dict[str, int]]:
    """What a record becomes, and which of its keys nobody read."""
    unread = Unread()
    return SOURCES[kind].read(record, ReadOptions(**options), unread), dict(unread)


@pytest.mark.parametrize("seeds", [range(k, k + 250) for k in range(0, 1000, 250)])
def test_no_meaning_is_lost_in_silence(seeds: range) -> None:
    """Keys that are known to matter, put anywhere in a record in any type: the value is in the
    conversation, or the row is rejected."""
    assert [problem for problem in map(lost, map(make, seeds)) if problem] == []


def test_what_nobody_reads_is_counted_by_its_path() -> None:
    """In the record, in a message, in a content part, in an image's object; null is nothing."""
    record = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Q", "cache": 1}], "at": 3},
            {"role": "assistant", "content": "A", "at": 4},
        ],
        "source": "here",
        "nothing": None,
        "empty": "",
        "none": [],
    }
    found, unread = read(record)
    assert isinstance(found, Conversation)
    assert unread == {"$.source": 1, "$.messages[].at": 2, "$.messages[].content[].cache": 1}


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"chosen": "A"}, "$.chosen"),
        ({"label": False}, "$.label"),
        ({"id": [TURNS[0]]}, "$.id"),
        ({"videos": ["a.mp4"]}, "$.videos"),
        ({"audio": "a.wav"}, "$.audio"),
        ({"weight": 0.5}, "$.weight"),
        ({"train": False}, "$.train"),
        ({"toolChoice": "f"}, "$.toolChoice"),
        ({"score": 1, "chosen": "A"}, "$.score"),
        ({"response_rejected": "B"}, "$.response_rejected"),
        ({"is_chosen": False}, "$.is_chosen"),
        ({"Complex_CoT": "hm"}, "$.Complex_CoT"),
        ({"source_image": "a.jpg"}, "$.source_image"),
        ({"jpg": "a.jpg"}, "$.jpg"),
        ({"available_tools": '[{"name": "f"}]'}, "$.available_tools"),
        ({"thumb": "data:image/png;base64,AAAA"}, "$.thumb"),
        ({"thumb": [{"bytes": b"\x89PNG....", "path": None}]}, "$.thumb"),
        ({"clip": b"\0\0\0 ftypisom"}, "$.clip"),
        ({"conversation_b": [TURNS[0], {"role": "assistant", "content": "B"}]}, "$.conversation_b"),
        ({"conversations": [{"from": "human", "value": "other"}]}, "$.conversations"),
    ],
)
def test_a_key_that_matters_rejects_its_row_by_name(extra: dict[str, Any], named: str) -> None:
    """The reason names path and key; --ignore-field makes it one more key that nobody reads."""
    found, _ = read({"messages": TURNS, **extra})
    assert isinstance(found, Reject)
    assert found.reason == Reason.UNSUPPORTED_FIELD
    assert found.detail.startswith(tuple(f"$.{key}" for key in extra))
    found, unread = read({"messages": TURNS, **extra}, ignored=frozenset(extra))
    assert isinstance(found, Conversation)
    assert set(unread) == {f"$.{key}" for key in extra}
    assert named in unread


@pytest.mark.parametrize(
    "extra",
    [
        {"weight": 1},
        {"train": True},
        {"label": "greeting"},
        {"score": 0.5},
        {"image_id": 7},
        {"tools": []},
        {"chosen": None},
        {"n_images": 3},
        {"num_tools": 2},
        {"has_image": False},
        {"media_type": "web"},
        {"test_function": "def f(): ..."},
        {"tags": ["a"], "meta": {"bytes": 3}, "embedding": b"\0\1\2"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    ],
)
def test_what_changes_nothing_rejects_nothing(extra: dict[str, Any]) -> None:
    """Neutral switches, labels that are no booleans, facts about a picture, empty values."""
    found, _ = read({"messages": TURNS, **extra})
    assert isinstance(found, Conversation)


def test_a_message_and_a_part_are_switched_off() -> None:
    """By any of the published names, on a message of either shape, and on a content part."""
    for key, value in (("weight", 0), ("train", False), ("trainable", 0), ("loss", "false")):
        for answer in (
            {"role": "assistant", "content": "A"},
            {"from": "gpt", "value": "A"},
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        ):
            found, unread = read({"messages": [TURNS[0], {**answer, key: value}]})
            assert not found.messages[1].supervised
            assert unread == {}
    parts = [{"type": "text", "text": "a", "weight": 0}, {"type": "text", "text": "b"}]
    found, _ = read({"messages": [TURNS[0], {"role": "assistant", "content": parts}]})
    assert [part.supervised for part in found.messages[1].parts] == [False, True]


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_plain_turns_are_read_as_any_others(key: str) -> None:
    """Rows of nothing but turns of text and an id have a way of their own; what it gives is what
    the rules for all rows give, which a key beside them takes."""
    who, words = ("from", "value") if key == "conversations" else ("role", "content")
    talk = [("system", "S"), ("human", "<image>"), ("gpt", ""), ("tool", "R"), ("bot", "A")]
    turns = [{who: role, words: text} for role, text in talk]
    for record in ({key: turns}, {key: turns, "id": 7}, {"id": None, key: turns}):
        found, unread = read(record)
        slow, counted = read({**record, "origin": "x"})
        assert (found, unread) == (slow, {})
        assert counted == {"$.origin": 1}
        assert len(found.messages) == len(talk)
    for bad in ([*turns, {who: "robot", words: "x"}], [*turns, {who: "gpt", words: None}], []):
        assert read({key: bad})[0] == read({key: bad, "origin": "x"})[0]
        assert isinstance(read({key: bad})[0], Reject)
    assert isinstance(read({key: turns}, has_images=True)[0], Reject)


def test_one_of_two_lists_of_turns_is_chosen_by_name() -> None:
    """The answers of two models side by side: neither is taken for the row without a word."""
    other = [TURNS[0], {"role": "assistant", "content": "B"}]
    arena = {"conversation_a": TURNS, "conversation_b": other, "winner": "model_b"}
    ignored = frozenset({"conversation_a"})
    found, unread = read(arena, columns={"messages": "conversation_b"}, ignored=ignored)
    assert found.messages[1].text == "B"
    assert unread == {"$.conversation_a": 1, "$.winner": 1}


def test_turns_as_datasets_stores_a_sequence_of_objects() -> None:
    """A list for each key, all as long as another, are the same turns."""
    found, unread = read({"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}})
    assert found == read({"messages": TURNS})[0]
    assert unread == {}
    found, _ = read({"messages": {"role": ["user", "assistant"], "content": ["Q"]}})
    assert found.detail == "$.messages: expected a list, found an object"


def test_a_prompt_and_its_completion_are_one_conversation() -> None:
    """As TRL's SFTTrainer reads two lists: the prompt's own answers are not trained."""
    asked, said = [*TURNS, {"role": "user", "content": "R"}], {"role": "assistant", "content": "B"}
    for completion in ([said], said, "B"):
        found, unread = read({"prompt": asked, "completion": completion, "id": 7, "x": 1})
        assert [message.text for message in found.messages] == ["Q", "A", "R", "B"]
        assert [message.supervised for message in found.messages] == [False, False, False, True]
        assert unread == {"$.x": 1}
    found, _ = read({"prompt": asked, "completion": [{**said, "weight": 0}], "system": "S"})
    assert [message.supervised for message in found.messages[1:]] == [False] * 4
    empties: list[Any] = [[], "", None]
    for empty in empties:
        found, _ = read({"prompt": asked, "completion": empty})
        assert (found.reason, found.detail) == (Reason.NO_ANSWER, "$.completion: is empty")
    found, _ = read({"prompt": asked, "completion": [said], "messages": TURNS})
    assert found.reason == Reason.UNSUPPORTED_FIELD
    picture = {"type": "image", "path": "a.png"}
    seen = [{"role": "user", "content": [picture, {"type": "text", "text": "Q"}]}]
    found, _ = read({"prompt": seen, "completion": [said]}, has_images=True)
    assert found.images == ("a.png",)


def test_reasoning_and_calls_that_are_parts_are_the_answers() -> None:
    """LLaMA-Factory's newer rows; a part that says more, or elsewhere, rejects its row by name."""
    call = {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    thought, words = {"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "A"}
    found, unread = read(
        {"messages": [TURNS[0], {"role": "assistant", "content": [thought, call]}]}
    )
    assert found.messages[1].reasoning == "Hm."
    assert found.messages[1].tool_calls == (
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
    )
    assert (found.messages[1].text, unread) == ("", {})
    found, _ = read({"messages": [TURNS[0], {"role": "assistant", "content": [thought, words]}]})
    assert (found.messages[1].text, found.messages[1].reasoning) == ("A", "Hm.")
    for bad in (
        {"role": "assistant", "content": [thought | {"loss_weight": 0}, words]},
        {"role": "assistant", "content": [thought, words], "reasoning_content": "Other."},
        {"role": "assistant", "content": [{**call, "value": "add(1)"}]},
        {"role": "user", "content": [thought, words]},
    ):
        assert isinstance(read({"messages": [TURNS[0], bad, TURNS[1]]})[0], Reject)


def test_pictures_stand_where_xtuners_texts_have_them() -> None:
    """Its size of a picture is a fact; a text with other marks than pictures rejects the row."""
    pictures = [{"type": "image_url", "image_url": {"url": f"{k}.png", "image_wh": [3, 4]}}
                for k in "ab"]  # fmt: skip
    said = {"type": "text", "text": "One <IMG_CONTEXT> and <IMG_CONTEXT>\nQ"}
    asked = {"role": "user", "content": [*pictures, said]}
    found, unread = read({"messages": [asked, TURNS[1]]}, has_images=True)
    assert found.messages[0].text == "One <image> and <image>\nQ"
    assert found.images == ("a.png", "b.png")
    assert unread == {"$.messages[].content[].image_url.image_wh": 2}
    asked["content"] = [pictures[0], said]
    found, _ = read({"messages": [asked, TURNS[1]]}, has_images=True)
    assert found.reason == Reason.PLACEHOLDER_MISMATCH


def test_columns_are_given_our_names() -> None:
    """--map in both families; errors and counts name the file's column."""
    columns = {"question": "prompt", "answer": "completion"}
    found, unread = read({"prompt": "Q", "completion": "A", "x": 1}, "alpaca", columns=columns)
    assert [message.text for message in found.messages] == ["Q", "A"]
    assert unread == {"$.x": 1}
    found, _ = read({"prompt": 5, "completion": "A"}, "alpaca", columns=columns)
    assert found.detail == "$.prompt: expected a string, found a number"
    found, unread = read(
        {"prompt": "Q", "completion": "A", "answer": "B"}, "alpaca", columns=columns
    )
    assert found.messages[1].text == "A"
    assert unread == {"$.answer": 1}
    found, _ = read({"dialog_": TURNS}, columns={"messages": "dialog_"})
    assert isinstance(found, Conversation)


def test_each_row_is_read_by_its_own_shape(tmp_path: Path) -> None:
    """A picture behind the 64th row is stored; a row of another family is rejected, naming both."""
    text = [
        {"conversations": [{"from": "human", "value": f"Q{i}"}, {"from": "gpt", "value": "A"}]}
        for i in range(70)
    ]
    picture = {
        "image": "0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A lamp."},
        ],
    }
    rows = [*text, picture, {"instruction": "I", "output": "O"}, {"text": "A document."}]
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    source = write_json(tmp_path / "rows.json", rows)
    manifest = pack_small(source, tmp_path / "out", image_root=tmp_path)
    assert manifest.n_images == 1
    assert manifest.sources[0].rejected == {"bad_record": 1}
    line = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert line["row"] == 72
    assert "text" in line["detail"]
    assert "chat" in line["detail"]


def test_a_pack_says_what_nobody_read(tmp_path: Path) -> None:
    """By source and path in the manifest, the same for any size of parts."""
    rows = [
        {"instruction": f"I{i}", "input": "", "output": "O", "origin": "x", "rank": i or None}
        for i in range(40)
    ]
    source = write_json(tmp_path / "rows.json", rows)
    for part_rows in (None, 7):
        manifest = pack_small(source, tmp_path / f"out{part_rows}", part_rows=part_rows)
        entry = manifest.checks["unread_fields"]
        assert entry["fields"] == {"rows.json": {"$.origin": 40, "$.rank": 39}}
        assert entry["n"] == 79


def test_a_long_detail_is_cut(tmp_path: Path) -> None:
    """A row that holds a whole file as text does not put it into rejects.jsonl."""
    source = tmp_path / "rows.jsonl"
    answers = [{"role": "user", "content": "Q"}, {"role": "x" * 20_000, "content": "A"}]
    source.write_text(json.dumps({"messages": answers}) + "\n" + json.dumps({"messages": TURNS}))
    pack_small(source, tmp_path / "out")
    assert len((tmp_path / "out/rejects.jsonl").read_text()) < 1000


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_rows_with_the_same_other_keys_are_read_quickly_and_counted(
    tmp_path: Path, suffix: str
) -> None:
    """Every row with two keys that nobody reads: exchanges as without them, and the counts of
    rows that are read one by one; a key that may matter, or is read, leaves the quick way."""
    rows: list[dict[str, Any]] = [
        {"instruction": f"I{i}", "output": "O", "origin": "x", "rank": i or None} for i in range(40)
    ]
    expected = Unread()
    for row in rows:
        SOURCES["alpaca"].read(row, ReadOptions(), expected)
    others: list[dict[str, Any]] = [{"history": [["q", "a"]]}, {"chosen": "x"}, {"other": 1}]
    others += [{"origin": TURNS}, {"origin": "data:image/png;base64,AA"}]
    for extra in [{}, *others]:
        changed = [*rows[:20], {**rows[20], **extra}, *rows[21:]]
        path = tmp_path / f"rows.{suffix}"
        lines = "\n".join(map(json.dumps, changed)) if suffix == "jsonl" else json.dumps(changed)
        path.write_text(lines)
        found, unread = scan(path, name="r", spool=tmp_path / "s"), Unread()
        read_rows = SOURCES["alpaca"].read_rows(found, np.arange(40), ReadOptions(), unread)
        kinds = [type(one) for one in read_rows[:20] + read_rows[21:]]
        assert set(kinds) == ({Exchange} if not extra or "origin" in extra else {Conversation})
        one = SOURCES["alpaca"].read(changed[20], ReadOptions())
        again = read_rows[20]
        assert (again.conversation if isinstance(again, Exchange) else again) == one
        if not extra:
            assert unread == expected


def said(record: Any, kind: str = "alpaca", **options: Any) -> str:
    """What the messages of a row that must be kept say, without loss in brackets; or the reject."""
    found, _ = read(record, kind, **options)
    if isinstance(found, Reject):
        return f"{found.reason}: {found.detail}"
    return "|".join(
        m.text if m.supervised and m.role == "assistant" else f"({m.text})" for m in found.messages
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "Q", "context": "C", "response": "A", "category": "x"}, "(Q\nC)|A"),
        ({"instruction": "Q", "context": "C", "output": "A"}, "(Q\nC)|A"),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, "(S)|(Q)|A"),
        ({"query": "Q", "response": "A", "original_question": "x"}, "(Q)|A"),
        ({"prompt": "Q", "completion": "A"}, "(Q)|A"),
        ({"problem": "Q", "solution": "A"}, "(Q)|A"),
        ({"inputs": "Q", "targets": "A"}, "(Q)|A"),
        ({"input": "Q", "output": "A", "instruction": ""}, "(\nQ)|A"),
        ({"Context": "Q", "Response": "A"}, "(Q)|A"),
        ({"Question": "Q", "Answer": ""}, "(Q)|"),
        ({"instruction": "I", "output": "O", "conversations": TURNS}, "(Q)|A"),
        ({"question": "I", "answer": "O", "messages": TURNS}, "(Q)|A"),
        ({"prompt": [*TURNS, TURNS[0]], "completion": [TURNS[1]]}, "(Q)|(A)|(Q)|A"),
        ({"prompt": [TURNS[0]], "completion": "A"}, "(Q)|A"),
        ({"prompt": "Q", "completion": [TURNS[1]]}, "(Q)|A"),
        ({"conversations": ["Q", "A"], "source": "lima"}, "(Q)|A"),
        ({"conversation": [["Q", "A"], ["Q2", "A2"]]}, "(Q)|A|(Q2)|A2"),
        ({"conversation": [{"input": "Q", "output": "A"}, {"prompt": "q", "response": "a"}]},
         "(Q)|A|(q)|a"),
        ({"conversation": [{"input": "Q", "output": "A", "output_with_loss": False}]}, "(Q)|(A)"),
    ],
)  # fmt: skip
def test_shapes_of_published_data_are_read_without_a_map(record: Any, expected: str) -> None:
    """Known names of a question and its answer, turns before them; TRL's prompt and completion;
    texts and pairs in turn. --format auto finds them, and the file's rows are read as one row."""
    kind, _ = detect([record], "here")
    assert said(record, kind) == expected
    assert said(record, "chat") == expected


@pytest.mark.parametrize(
    ("record", "needed"),
    [
        ({"problem": "Q", "solution": "S", "answer": "4"}, "question=problem,answer=answer"),
        ({"problem": "Q", "generated_solution": "S"}, "question=problem,answer=generated_solution"),
        ({"document": "D", "summary": "S"}, "--map question=document,answer=summary"),
        ({"id": 1, "data": ["Q", "A"]}, "--map messages=data"),
        ({"role": "user", "content": "Q"}, "one message"),
        ({"text": "Q", "role": "prompter", "parent_id": None}, "one message"),
        ({"version": 1, "rows": [{"question": "Q"}]}, "'rows' is a list of objects"),
    ],
)
def test_a_shape_that_is_not_known_is_told_what_to_type(record: Any, needed: str) -> None:
    """The advice names the columns of the file."""
    with pytest.raises(BadInput) as caught:
        detect([record], "here")
    assert needed in str(caught.value)


@pytest.mark.parametrize(
    ("record", "needed"),
    [
        ({"question": "Q", "answer": "4", "solution": "S"}, "--map answer=solution"),
        ({"question": "Q", "answer": "A", "context": "C"}, "--map instruction=question"),
        ({"question": "Q", "answer": "A", "options": {"A": "x"}}, "$.options"),
        ({"prompt": "Q", "completion": "A", "label": 0}, "--task kto"),
        ({"turns": ["Q1", "Q2"]}, "--map messages=turns"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None, "refusal": "R"}]},
         "$.messages[1].refusal"),
        ({"conversation": [{"input": "Q", "output": "A", "need_eos_token": False}]}, "need_eos"),
        *(({"messages": [TURNS[0], {**TURNS[1], key: value}]}, key) for key, value in (
            ("is_train", False), ("no_loss", True), ("masked", 1), ("skip", "true"),
            ("supervised", 0), ("loss", 0.5))),
        ({"messages": TURNS, "label": "rejected"}, "$.label"),
        ({"instruction": "Q", "output": "A", "is_train": False}, "$.is_train"),
        ({"messages": [*TURNS, TURNS[0]], "completion": "B"}, "at the end of the list"),
        ({"messages": TURNS, "chat_template_kwargs": {"enable_thinking": False}}, "--template-arg"),
        ({"messages": TURNS, "wav": {"array": [0.5], "sampling_rate": 16000}}, "$.wav"),
        ({"messages": TURNS, "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}}, "<bbox>"),
        ({"conversations": [{"from": "human", "value": "<image>"}, TURNS[1]], "image_path": "0"},
         "--map images=NAME"),
    ],
)  # fmt: skip
def test_a_row_that_may_mean_two_things_is_rejected_with_what_to_type(
    tmp_path: Path, record: Any, needed: str
) -> None:
    """A second answer, what belongs to a question, verdicts and switches by any name; also where
    rows of plain shapes are read quickly."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record) + "\n")
    kind, _ = detect([record], "here")
    found = scan(path, name="r", spool=tmp_path / "s")
    options = ReadOptions(has_images="image_path" in record)
    (one,) = SOURCES[kind].read_rows(found, np.arange(1), options, Unread())
    assert isinstance(one, Reject)
    assert needed in one.detail


def test_template_settings_of_a_row_that_set_nothing_are_neutral() -> None:
    """Arrow makes a struct with null members of what other rows set."""
    for value in ({}, {"enable_thinking": None}, None):
        assert said({"messages": TURNS, "chat_template_kwargs": value}) == said({"messages": TURNS})


def test_the_way_out_that_a_reject_names_works() -> None:
    """--map of a name that the row has makes its own column give way; --ignore-field drops it."""
    limo = {"question": "Q", "answer": "4", "solution": "S"}
    found, unread = read(limo, "alpaca", columns={"answer": "solution"})
    assert (found.messages[1].text, unread) == ("S", {"$.answer": 1})
    assert said(limo, ignored=frozenset({"solution"})) == "(Q)|4"
    both = {"question": "Q", "answer": "A", "messages": TURNS}
    assert said({**both, "answer": "B"}, ignored=frozenset({"messages"})) == "(Q)|B"
    squad = {"question": "Q", "context": "C", "answer": "A"}
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    assert said(squad, columns=columns) == "(Q\nC)|A"
    assert said({"turns": ["Q", "A"]}, "chat", columns={"messages": "turns"}) == "(Q)|A"


def test_reasoning_beside_an_answer_is_its_reasoning() -> None:
    """As in a message: handed to the template, which prints it or rejects the row."""
    for record, columns in (
        ({"question": "Q", "answer": "A", "reasoning": "R"}, None),
        ({"question": "Q", "answer": "A", "cot": "R"}, {"reasoning_content": "cot"}),
        ({"conversation": [{"input": "Q", "output": "A", "thinking": "R"}]}, None),
    ):
        found, unread = read(record, columns=columns)
        assert (found.messages[1].reasoning, unread) == ("R", {})
    assert "$.rationale" in said({"question": "Q", "answer": "A", "rationale": "R"})


@pytest.mark.parametrize(
    "words",
    [("Human", "GPT"), ("USER", "Assistant"), ("human ", "ChatGPT"), ("prompter", "AI")],
)
def test_roles_are_known_however_they_are_spelled(words: tuple[str, str]) -> None:
    """With capitals, spaces and hyphens, in both forms of a turn."""
    asked, answered = words
    turns = [{"from": asked, "value": "Q"}, {"role": answered, "content": "A"}]
    turns += [{"from": "Function-Call", "value": '{"name": "f"}'}]
    turns += [{"from": "function-response", "value": "R"}, {"from": "gpt", "value": "B"}]
    found, _ = read({"conversations": turns})
    assert [m.role for m in found.messages] == ["user", *["assistant"] * 2, "tool", "assistant"]


def test_an_answer_that_is_json_is_words() -> None:
    """A text of a pair is read as turns where it is turns, and broken turns are rejected."""
    pair = {"prompt": "Q", "chosen": '{"city": "Oslo"}', "rejected": '[{"a": 1}] is it'}
    found, _ = read(pair, task="preference")
    assert found.messages[1].text == '{"city": "Oslo"}'
    assert found.rejected[0].text == '[{"a": 1}] is it'
    found, _ = read({"input": "Q", "chosen": "A", "rejected": "B"}, task="preference")
    assert found.messages[0].text == "Q"
    found, _ = read({**pair, "chosen": json.dumps([TURNS[1]])}, task="preference")
    assert found.messages[1].text == "A"
    found, _ = read({**pair, "chosen": '[{"role": "assistant", '}, task="preference")
    assert found.detail.startswith("$.chosen: not JSON")


@pytest.mark.parametrize("depth", [300, 100_000])
def test_json_text_in_a_record_is_as_deep_as_a_record(depth: int) -> None:
    """Tools as a text that is nested too deep are rejected with the limit, on every machine."""
    found, _ = read({"messages": TURNS, "tools": "[" * depth + "]" * depth})
    assert found.detail == "$.tools: not JSON: nested deeper than 256 levels"


def test_what_pandas_and_python_write_is_read(tmp_path: Path) -> None:
    """NaN is as good as absent, an index without a name is a column; UTF-16 is named."""
    path = tmp_path / "rows.jsonl"
    lines = ['{"question": "Q", "answer": "A", "system": NaN, "score": Infinity}']
    lines += ['{"question": "Q", "answer": NaN}', '{"question": "\\ud83d", "answer": NaN}']
    path.write_text("\n".join(lines))
    found = scan(path, name="r", spool=tmp_path / "s")
    unread = Unread()
    rows: list[Any] = SOURCES["alpaca"].read_rows(found, np.arange(3), ReadOptions(), unread)
    one, two, three = rows
    assert [m.text for m in one.messages] == ["Q", "A"]
    assert unread == {"$.score": 1}
    assert (two.reason, three.reason) == (Reason.BAD_RECORD, Reason.BAD_JSON)
    table = tmp_path / "rows.csv"
    table.write_text(",question,answer,weight\n0,Q,A,1\n")
    found = scan(table, name="r", spool=tmp_path / "t")
    (one,) = SOURCES["alpaca"].read_rows(found, np.arange(1), ReadOptions(), unread)
    assert isinstance(one, Conversation)
    table.write_bytes("[]".encode("utf-16"))
    with pytest.raises(BadInput, match="UTF-16"):
        scan(table.rename(tmp_path / "rows.json"), name="r", spool=tmp_path / "u")


def test_a_picture_that_a_text_names_is_no_text() -> None:
    """Qwen-VL's <img>path</img>, where pictures are stored; elsewhere it is words."""
    record = {"messages": [{"role": "user", "content": "<img>0.png</img> What?"}, TURNS[1]]}
    assert "<img>0.png</img>" in said(record, "chat", has_images=True)
    assert said(record, "chat").endswith("What?)|A")
