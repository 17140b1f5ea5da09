"""Which columns of a record are a question and its answer, by the names that published data has.

A name is taken where nothing else is one: with two questions, or two answers, in a record (a
`solution` beside an `answer`), --map says which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from shardkit.sources.unread_keys import is_absent

QUESTIONS = ("instruction", "question", "prompt", "query", "problem", "inputs", "input")
ANSWERS = ("output", "answer", "response", "completion", "solution", "targets", "target")
FIXED = (("instruction", "output"), ("question", "answer"))
"""Pairs that are also read where their values are no text, so that their rows say what is wrong."""
_MORE = ("input", "context")
"""What goes with an instruction, behind it."""
RIVALS = ("response", "solution", "completion", "output")
"""What makes it doubtful that an `answer` is the one."""
_ASKED = (*QUESTIONS, "source", "src", "document", "article", "passage", "dialogue", "human")
_ANSWERED = (*ANSWERS, "summary", "highlights", "tgt", "reply", "gpt", "label", "final")
_ALL = (*QUESTIONS, *ANSWERS, "context")
_SPELLINGS = ({name: name for name in _ALL}, {name: name.capitalize() for name in _ALL})
"""All names of a record are in small letters, or each has a capital: `Question`, `Response`."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns, as the record has them."""

    question: str
    answer: str
    more: str | None = None
    """What is written behind the question, in a line of its own."""


_PLAIN = Columns("question", "answer")


def columns_of(values: Mapping[str, object], named: Container[str] = ()) -> Columns | None:
    """The columns that are a question and its answer; None where none are, or several may be.

    `named`: our names that the user gave to columns, which are meant before others.
    """
    if "question" in named and "answer" in named and "question" in values and "answer" in values:
        return _PLAIN
    if "question" in values and "answer" in values and "instruction" not in values:
        return _PLAIN
    for names in _SPELLINGS:
        found = _spelled(values, names)
        if found is not None:
            return found
    return None


def _spelled(values: Mapping[str, object], names: Mapping[str, str]) -> Columns | None:
    for question, answer in FIXED:
        if names[question] in values and names[answer] in values:
            return _with_more(values, names, question, answer)
    answered = _the_only(values, names, ANSWERS)
    if answered is None:
        return None
    asked = _the_only(values, names, QUESTIONS)
    if asked is None and answered == "response" and _is_filled(values.get(names["context"])):
        asked = "context"
    return _with_more(values, names, asked, answered) if asked else None


def _with_more(
    values: Mapping[str, object], names: Mapping[str, str], question: str, answer: str
) -> Columns:
    """The columns; what stands beside an instruction is more of it, beside no other question."""
    if question == "instruction":
        for one in _MORE:
            if not is_absent(values.get(names[one])):
                return Columns(names[question], names[answer], names[one])
    return Columns(names[question], names[answer])


def _the_only(
    values: Mapping[str, object], names: Mapping[str, str], ours: Sequence[str]
) -> str | None:
    """The one of these names whose column has words; where none has, the one that is there.

    None for several; but an instruction beside its input is the question.
    """
    there = [name for name in ours if names[name] in values]
    filled = [name for name in there if _is_filled(values[names[name]])]
    if filled == ["instruction", "input"]:
        return "instruction"
    if filled:
        return filled[0] if len(filled) == 1 else None
    return there[0] if len(there) == 1 and is_absent(values[names[there[0]]]) else None


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and value != ""


def advice(records: Sequence[object]) -> str:
    """What to type so that records are read that no format fits."""
    rows = [record for record in records if isinstance(record, dict)]
    filled = {key: value for row in rows for key, value in row.items() if not is_absent(value)}
    rows_in = next((key for key, value in filled.items() if _are_rows(value)), None)
    if rows_in is not None and len(records) == 1:
        return f"Its {rows_in!r} is a list of objects: if these are the rows, write them alone."
    talk = next((key for key, value in filled.items() if _is_talk(value)), None)
    if talk is not None:
        return f"Name the column of turns: --map messages={talk}."
    asked, answered = _by_last_word(filled, _ASKED), _by_last_word(filled, _ANSWERED)
    asked = [key for key in asked if key not in answered] or asked
    if not asked or not answered:
        return (
            "Name the columns, as --map question=prompt,answer=completion or --map messages=turns, "
            "or the format with --format."
        )
    several = " or ".join(answered[1:])
    return (
        f"Name the columns: --map question={asked[0]},answer={answered[0]}"
        f"{f' (or answer={several})' if several else ''}."
    )


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _is_talk(value: object) -> bool:
    """Whether a value is a list of texts, or of pairs of texts."""
    if not isinstance(value, list) or len(value) < 2:
        return False
    return all(isinstance(item, str) for item in value) or all(
        isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in value
    )


def _by_last_word(values: Mapping[str, object], words: Sequence[str]) -> list[str]:
    """The columns of text whose name ends in one of these words, in the order of the words."""

    def place(key: str) -> int:
        last = re.split(r"[^a-z]+|(?<=[a-z])(?=[A-Z])", key)[-1].lower()
        known = [word for word in words if last in (word, f"{word}s")]
        return words.index(known[0]) if known else len(words)

    texts = [key for key, value in values.items() if isinstance(value, str)]
    return sorted((key for key in texts if place(key) < len(words)), key=place)
