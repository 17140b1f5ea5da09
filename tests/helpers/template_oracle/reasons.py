"""Why one token is in the loss of one side and not of the other.

Each rule is a fact about the token, asserted of the ids that transformers gives for the messages
before the answer and with it; a difference that obeys none is a bug of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from template_oracle.rows import Row, user
from template_oracle.subject import Subject

Mask = NDArray[np.bool_]

RULES = {
    "prompt": "the twin has in the loss what the prompt for the answer prints (a header, <think>)",
    "after end": "the twin has in the loss white space after the token that ends the answer",
    "next header": "the twin has in the loss the first token of the next message, which stops the "
    "model; without that message the template does not print it",
    "stop": "we have in the loss the special token that the template prints last when the answer is"
    " the last message; the twin does not",
    "header": "the template prints a header before the answer that its prompt has not; it is not in"
    " the loss",
    "empty think": "an empty think block, asked for with --train-empty-think, of which the prompt "
    "opens a part",
    "other think": "the prompt closes the think block that the row fills: its first token is the "
    "answer's",
}
"""What each rule says."""


@dataclass(frozen=True)
class Turn:
    """An answer of a row: how many of the whole's ids are those of other renderings of it."""

    bare: int
    """Of the messages before the answer."""
    prompt: int
    """Of the same with the prompt for an answer."""
    n_prompt: int
    """How many ids that prompt has in all."""
    until: int
    """Of the messages up to the answer."""
    is_last: bool


@dataclass(frozen=True)
class Seen:
    """A row as transformers prints it: its ids, and its answers as inference comes to them."""

    subject: Subject
    row: Row
    ids: list[int]

    @cached_property
    def tokens(self) -> list[str]:
        """The text of each id."""
        return [self.subject.hf.decode([one]) for one in self.ids]

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special tokens."""
        return frozenset(self.subject.hf.all_special_ids)

    @cached_property
    def turns(self) -> list[Turn]:
        """The answers."""
        messages, tools = self.row
        found = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, is_last = (messages[:i], tools), i + 1 == len(messages)
            prompt = self.subject.ids(before, add_generation_prompt=True)
            until = self.ids if is_last else self.subject.ids((messages[: i + 1], tools))
            bare = n_common(self.subject.ids(before), self.ids)
            n = n_common(prompt, self.ids)
            found.append(Turn(bare, n, len(prompt), n_common(until, self.ids), is_last))
        return found

    @cached_property
    def header(self) -> list[int]:
        """What a prompt adds to a question."""
        row: Row = ([user("What?")], None)
        prompt = self.subject.ids(row, add_generation_prompt=True)
        return prompt[n_common(self.subject.ids(row), prompt) :]

    def inference(self) -> Mask:
        """Each answer from where its prompt ends to its own end: no white space after a stop."""
        mask = np.zeros(len(self.ids), bool)
        for turn in self.turns:
            end = turn.until
            while end > turn.prompt and not self.tokens[end - 1].strip():
                end -= 1
            is_stopped = end > turn.prompt and self.ids[end - 1] in self.special
            mask[turn.prompt : end if is_stopped else turn.until] = True
        return mask

    def why(self, at: int, mine: Mask) -> str | None:
        """The rule for a token that is in the loss of one side alone; None where no rule holds."""
        return self._not_ours(at, mine) if not mine[at] else self._ours(at)

    def _not_ours(self, at: int, mine: Mask) -> str | None:
        if any(turn.bare <= at < turn.prompt for turn in self.turns):
            return "prompt"
        follows_end = mine[at - 1] and self.ids[at - 1] in self.special
        if follows_end and not self.tokens[at].strip():
            return "after end"
        ends = {turn.until for turn in self.turns if not turn.is_last}
        if at in ends and mine[at - 1] and self.ids[at] in self.special:
            return "next header"
        n = len(self.header)
        starts = range(max(0, at - n + 1), at + 1)
        if any(self.ids[start : start + n] == self.header for start in starts):
            return "header"
        return None

    def _ours(self, at: int) -> str | None:
        if self.ids[at] in self.special and any(turn.until - 1 == at for turn in self.turns):
            return "stop"
        if self.tokens[at] != "<think>":
            return None
        after = next((token for token in self.tokens[at + 1 :] if token.strip()), "")
        if after == "</think>":
            return "empty think"
        ends_in = any(turn.prompt == at + 1 < turn.n_prompt for turn in self.turns)
        return "other think" if ends_in else None


def n_common(first: list[int], second: list[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    n = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        n += 1
    return n
