"""What becomes of each row under a template, and whether that is what transformers says."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from shardkit.conversation import Reason, Reject
from shardkit.tokens import Encoder
from shardkit.tokens.train_rules import TrainRules
from template_oracle.reasons import Mask, Seen
from template_oracle.rows import ROWS, Row, conversation
from template_oracle.subject import Subject

_LOST = re.compile(r"of message (\d+)(?:, of a tool)?: (.*)\Z", re.DOTALL)
_REWRITTEN = re.compile(r"message (\d+), differently")
_UNBEGUN = re.compile(
    r"the prompt for the answer, message (\d+), and no more when the answer follows"
)


@dataclass(frozen=True)
class Outcome:
    """One row under one template."""

    title: str
    reject: Reject | None = None
    marks: str = "no marks"
    """The mask against `{% generation %}` marks: `equal`, `explained`, or why there are none."""
    inference: str = "equal"
    """The mask against what inference sees, where the template has no marks of its own."""
    rules: Counter[str] = field(default_factory=Counter)
    """Tokens that differ, by the rule that explains them."""
    wrong: str = ""
    """What is a bug: other ids, a token that no rule explains, a row rejected without cause."""


def compare(subject: Subject) -> list[Outcome]:
    """All rows under a template."""
    rules = TrainRules(train_empty_think=True)
    encoder = Encoder(subject.tokenizer, subject.template, max_length=None, rules=rules)
    return [_outcome(subject, encoder, title, row) for title, row in ROWS.items()]


def _outcome(subject: Subject, encoder: Encoder, title: str, row: Row) -> Outcome:
    encoded = encoder.encode([conversation(row)])
    if encoded.rejects:
        reject = encoded.rejects[0][1]
        return Outcome(title, reject, "", "", wrong=_unfounded(subject, row, reject))
    seen = Seen(subject, row, subject.ids(row))
    if encoded.samples.ids.tolist() != seen.ids:
        return Outcome(title, wrong="other ids than apply_chat_template gives")
    mine = encoded.samples.labels != -100
    rules, wrong = Counter[str](), list[str]()

    def judged(theirs: Mask) -> str:
        differing = np.flatnonzero(mine != theirs).tolist()
        for at in differing:
            rule = seen.why(at, mine)
            rules.update([rule] if rule else [])
            wrong.extend([] if rule else [f"{'+-'[int(theirs[at])]}{seen.tokens[at]!r} at {at}"])
        return "explained" if differing else "equal"

    if subject.template.has_generation:
        found = subject.applied(row, return_assistant_tokens_mask=True)["assistant_masks"]
        is_equal = found == mine.astype(int).tolist()
        wrong += [] if is_equal else ["another mask than the template's own marks"]
        return Outcome(title, None, "equal", "", wrong="; ".join(wrong))
    marks = _of_twin(seen)
    told = marks if isinstance(marks, str) else judged(marks)
    inference = judged(seen.inference())
    return Outcome(title, None, told, inference, rules, "; ".join(wrong))


def _of_twin(seen: Seen) -> Mask | str:
    """The mask of the training twin, where it prints the same ids."""
    if seen.subject.twin is None:
        return "no twin"
    more = {"chat_template": seen.subject.twin, "return_assistant_tokens_mask": True}
    try:
        found = seen.subject.applied(seen.row, **more)
    except Exception:  # what a template raises
        return "twin refuses"
    if found["input_ids"] != seen.ids:
        return "twin prints other"
    return np.array(found["assistant_masks"], bool)


def _unfounded(subject: Subject, row: Row, reject: Reject) -> str:
    """What is wrong with the reason of a rejected row; "" where transformers shows the same."""
    try:
        text = subject.printed(row)
    except Exception:  # what a template raises
        is_said = reject.reason == Reason.TEMPLATE_FAILED and "template failed" in reject.detail
        return "" if is_said else f"the template fails, which is not said: {reject.detail}"
    messages, tools = row
    rewritten = _REWRITTEN.search(reject.detail)
    if rewritten:
        until = subject.printed((messages[: int(rewritten[1]) + 1], tools)).rstrip()
        ends = subject.template.end_tokens
        moved = [until.removesuffix(token).rstrip() for token in ends if until.endswith(token)]
        same = [until, *(one for one in moved if one.endswith(ends))]  # an answer has an end
        is_kept = any(text.startswith(one) for one in same)
        return "the answer is printed the same" if is_kept else ""
    unbegun = _UNBEGUN.search(reject.detail)
    if unbegun:
        i = int(unbegun[1])
        prompt = subject.printed((messages[:i], tools), add_generation_prompt=True)
        is_begun = subject.printed((messages[: i + 1], tools)).startswith(prompt)
        return "the answer begins with its prompt" if is_begun else ""
    lost = _LOST.search(reject.detail)
    if lost is None or reject.reason != Reason.TEMPLATE_LOST_TEXT:
        return f"transformers prints the row: {reject.detail}"
    words = ast.literal_eval(lost[2][lost[2].rindex(" ", 0, _quoted(lost[2])) + 1 :])
    if words not in text:
        return ""
    number = int(lost[1])
    bare = {"role": messages[number]["role"], "content": messages[number]["content"]}
    without = subject.printed(([*messages[:number], bare, *messages[number + 1 :]], tools))
    return "" if without == text else f"the text has {words!r}"


def _quoted(detail: str) -> int:
    """Where the literal at the end of a detail begins."""
    quote = detail[-1]
    start = detail.rindex(f" {quote}", 0, len(detail) - 1)
    return start + 1
