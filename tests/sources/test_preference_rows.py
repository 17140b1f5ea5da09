"""Rows of preference data that say two things at once: all of it is read, or the row is named."""

from __future__ import annotations

from typing import Any

import pytest

from shardkit.conversation import Conversation, Message, Reject
from shardkit.sources import SOURCES, ReadOptions, Unread
from shardkit.sources.source_format import Found

A, B = ({"role": "assistant", "content": text} for text in "AB")
Q = {"role": "user", "content": "Q"}
TEXTS = {"prompt": "Q", "chosen": "A", "rejected": "B"}
WHOLE = {"chosen": [Q, A], "rejected": [Q, B]}
WORDS = {"type": "text", "text": "Q"}


def shown(role: str = "user", **image: object) -> dict[str, Any]:
    """A message of a picture and a word."""
    return {"role": role, "content": [{"type": "image", **image}, WORDS]}


def read(row: dict[str, Any], task: str = "preference") -> Found:
    return SOURCES["chat"].read(row, ReadOptions(task=task), Unread())  # type: ignore[arg-type]


ASKED = shown(image="a.png")
TWO_OF_ONE = {"role": "user", "content": [{"type": "image", "index": i} for i in (0, 5)]}
PICTURES: dict[str, dict[str, Any]] = {
    "another picture for rejected": {"chosen": [ASKED, A], "rejected": [shown(image="b.png"), B]},
    "another picture in the prompt beside": {
        **{"prompt": [shown(image="c.png")], "chosen": [ASKED, A], "rejected": [ASKED, B]},
    },
    "a listed one that no mark takes": TEXTS | {"images": ["b.png"], "prompt": [ASKED]},
    "a number that the list has not": TEXTS
    | {"images": ["a.png", "b.png"], "prompt": [TWO_OF_ONE]},
    "an empty list": TEXTS | {"images": [], "prompt": "<image>Q"},
    "in an answer": TEXTS | {"chosen": [shown("assistant", image="a.png")]},
    "in the rejected answer": TEXTS | {"rejected": [B | {"image": "a.png"}]},
    "listed, in an answer": TEXTS | {"image": "a.png", "chosen": "<image>A"},
    "in a whole conversation's answer": {
        **{"chosen": [Q, A, ASKED, A], "rejected": [Q, B, ASKED, A]},
    },
    "in a labelled answer": {
        **{"prompt": "Q", "completion": [shown("assistant", image="a.png")], "label": True},
    },
    "in the last message": {"messages": [Q, shown("assistant", image="a.png")], "label": True},
}
NAMED: dict[str, tuple[dict[str, Any], str]] = {
    **{f"{key}={value}": (TEXTS | {key: value}, f"$.{key}") for key, value in (
        *(("weight", 0.5), ("weight", 0), ("loss_weight", 0), ("train", 0), ("sample_weight", 2)),
        *(("image_name", "a.png"), ("video_name", "a.mp4"), ("system_name", "S")),
        *(("tool_name", "t"), ("rejected_2", 3), ("score", [Q, A]), ("train_score", 0)),
    )},
    "a third conversation": (
        {"messages": [Q, A | {"content": "C"}, Q | {"content": "D"}, A]} | WHOLE,
        "$.messages: the row has another prompt",
    ),
    "beyond chosen": ({"messages": [Q, A, Q]} | WHOLE, "$.messages: the row has another prompt"),
    "another input": (
        {"instruction": "Q", "input": "more"} | WHOLE,
        "$.instruction: the row has another prompt",
    ),
    "another history": ({"history": [["C", "D"]]} | WHOLE, "$.history: the row has another prompt"),
    "tools beside": (
        {"tools": [{"name": "f"}], "prompt": [Q | {"tools": [{"name": "g"}]}]} | WHOLE,
        "$.prompt[0].tools: the row has other tools too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", PICTURES.values(), ids=PICTURES)
def test_every_picture_of_a_row_is_in_its_prompt(row: dict[str, Any]) -> None:
    """With no image root too: a picture that the prompt has no mark for rejects the row."""
    found = read(row, "kto" if "label" in row else "preference")
    assert isinstance(found, Reject), found
    assert found.reason in ("placeholder_mismatch", "unsupported_field"), found


@pytest.mark.parametrize(("row", "words"), NAMED.values(), ids=NAMED)
def test_what_nobody_reads_is_named(row: dict[str, Any], words: str) -> None:
    """Switches, media and other conversations beside a pair."""
    found = read(row)
    assert isinstance(found, Reject), found
    assert found.detail.startswith(words), found


def human(*texts: str) -> str:
    return "".join(
        f"\n\n{'Human' if i % 2 == 0 else 'Assistant'}: {text}" for i, text in enumerate(texts)
    )


KEPT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "facts": (
        TEXTS
        | {"score_chosen": 7, "chosen-rating": 5, "margin": 1.5, "rejected_score": 0}
        | {"weight": 1, "chosen_model": "m", "chosenModel": "m", "ref_chosen_logps": -3.5},
        ["Q"],
    ),
    "a text that begins so": (TEXTS | {"prompt": "Human: be kind"}, ["Human: be kind"]),
    "a word of its own": (TEXTS | {"prompt": "Assistant: an essay"}, ["Assistant: an essay"]),
    "a dialogue": (TEXTS | {"prompt": human("P", "R", "Q", "")}, ["P", "R", "Q"]),
    "its first turn": (TEXTS | {"prompt": human("Q")}, ["Q"]),
    "chosen again": ({"messages": [Q, A]} | WHOLE, ["Q"]),
    "rejected again": ({"messages": [Q, B]} | WHOLE, ["Q"]),
    "dialogues beside their prompt": (
        {
            **{"prompt": human("P", "R", "Q", "")},
            **{"chosen": human("P", "R", "Q", "A"), "rejected": human("P", "R", "Q", "B")},
        },
        ["P", "R", "Q"],
    ),
    "instruction and input": (
        {"instruction": "P", "input": "Q"}
        | {key: [Q | {"content": "P\nQ"}, one] for key, one in (("chosen", A), ("rejected", B))},
        ["P\nQ"],
    ),
    "history": (
        {"history": [["P", "R"]], "question": "Q"}
        | {key: human("P", "R", "Q", one) for key, one in (("chosen", "A"), ("rejected", "B"))},
        ["P", "R", "Q"],
    ),
    "one picture": (
        {"prompt": [ASKED], "chosen": [ASKED, A], "rejected": [ASKED, B]},
        ["<image>Q"],
    ),
    "one picture, listed": (
        {"image": "a.png"}
        | {key: human("<image>Q", one) for key, one in (("chosen", "A"), ("rejected", "B"))},
        ["<image>Q"],
    ),
    "a label beside a null": (
        {"prompt": "Q", "completion": [A], "label": None, "kto_tag": False},
        ["Q"],
    ),
}


@pytest.mark.parametrize(("row", "texts"), KEPT.values(), ids=KEPT)
def test_what_is_said_twice_is_one_prompt(row: dict[str, Any], texts: list[str]) -> None:
    """Prompts beside whole conversations, dialogues in texts, and scores."""
    found = read(row, "kto" if "label" in row else "preference")
    assert isinstance(found, Conversation), found
    assert [message.text for message in found.messages] == [*texts, "A"]
    assert found.images == (("a.png",) if "<image>" in texts[0] else ())
    if "label" in row:
        assert found.label is False
    else:
        assert found.rejected == (Message("assistant", "B"),)
