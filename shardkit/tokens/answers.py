"""Which characters of a printed conversation are the assistant's, where the template has no marks?

The messages before an answer are rendered as at inference, with the prompt for an answer behind
them: that text is the beginning of the whole, and the answer follows it. Each row is tried by
itself. Two habits of templates are understood: a prompt that ends inside the answer (R1's
`<think>`), and a last EOS that moves on when more messages follow (Phi-3's). A template that prints
an earlier answer, or what stands before it, differently when more messages follow rewrites history
(`Rewritten`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from shardkit.conversation import Message, Reason, Reject
from shardkit.tokens.messages import ANSWER, FAILURES, QUESTION, Dict, Render, common

Span = tuple[int, int]
"""Characters from, to (exclusive)."""

_THINKS = (
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
)
"""What opens and closes the reasoning of an answer, in the templates of published models."""
_OPEN = "|".join(re.escape(first) for first, _ in _THINKS)
_EMPTY_THINK = re.compile(
    "|".join(rf"\s*{re.escape(first)}\s*{re.escape(last)}\s*" for first, last in _THINKS)
)
_OPEN_THINK = re.compile(rf"(?:{_OPEN})\s*\Z")
_LOOK_BACK = 64
"""Characters before an answer in which a prompt may have opened its reasoning."""
_UNASKED = (
    "the conversation begins with an answer, and there is no prompt to train it behind: "
    '"weight": 0 in that message leaves it out of the loss'
)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An answer is not printed, or not seen, as it was when it was the last message."""

    message: int
    """Which message the answer is."""


@dataclass(frozen=True)
class Answers:
    """Finds the answers in what a template prints."""

    render: Render
    end_tokens: tuple[str, ...] = ()
    """Special tokens: what follows one is not the answer's."""
    header: str = ""
    """What a prompt for an answer adds to the messages before it."""
    cut_tails: tuple[str, ...] = ()
    """Ends of prompts that an answered conversation does not have, longest first."""

    def spans(
        self, messages: Sequence[Dict], wanted: Sequence[int], tools: object, whole: str
    ) -> list[Span] | Rewritten | Reject:
        """Where the `wanted` messages stand in `whole`, which the template printed of all."""
        spans = []
        for i in wanted:
            found: Span | Rewritten | Reject
            if messages[i]["role"] != "assistant":
                found = self._words(messages, i, tools, whole)
            elif i == 0:
                return Reject(Reason.TEMPLATE_FAILED, _UNASKED)
            else:
                found = self._answer(messages, i, tools, whole)
            if not isinstance(found, tuple):
                return found
            spans.append(found)
        return spans

    def _answer(
        self, messages: Sequence[Dict], i: int, tools: object, whole: str
    ) -> Span | Rewritten | Reject:
        before = self.render(messages[:i], tools, prompt=True)
        is_last = i + 1 == len(messages)
        until = whole if is_last else self.render(messages[: i + 1], tools)
        start = self._start(before, until)
        if start is None:
            return Reject(Reason.TEMPLATE_FAILED, _not_begun(messages[:i], before, until))
        header = self.header
        if header.strip() and until.startswith(header, start) and not before.endswith(header):
            start += len(header)  # after a tool's result the prompt of Gemma 4 has none
        end = self._end(until, whole, _last_words(messages[i]))
        return (
            Rewritten(i)
            if end is None or end < start
            else (start, self._trimmed(whole, start, end))
        )

    def _start(self, before: str, until: str) -> int | None:
        """Where the answer begins in `until`."""
        if until.startswith(before):
            return len(before)
        for tail in self.cut_tails:
            if before.endswith(tail) and until.startswith(before[: -len(tail)]):
                return len(before) - len(tail)
        return None

    def _end(self, until: str, whole: str, words: str) -> int | None:
        """Where the answer ends in `whole`, of which `until` is a beginning but for a moved EOS.

        Without that EOS the answer must still have an end: a token, or what the template prints
        behind its last `words`.
        """
        cut = len(until)
        while not whole.startswith(until[:cut]):
            text = until[:cut]
            last = next((token for token in self.end_tokens if text.endswith(token)), None)
            if last is not None:
                cut -= len(last)
            elif text != text.rstrip():
                cut = len(text.rstrip())
            else:
                return None
        left = until[:cut].rstrip()
        is_ended = left.endswith(self.end_tokens) or not left.endswith(words)
        return cut if is_ended or not until[cut:].strip() else None

    def _trimmed(self, text: str, start: int, end: int) -> int:
        """`end`, less the white space that follows an end token: that is not the answer's."""
        answer = text[start:end].rstrip()
        return start + len(answer) if answer.endswith(self.end_tokens) else end

    def _words(self, messages: Sequence[Dict], i: int, tools: object, whole: str) -> Span | Reject:
        """Where the words of a message that is no answer stand: its content, without markers."""
        content = messages[i]["content"]
        words = content.strip() if isinstance(content, str) else ""
        begin = 0
        if i:
            try:
                begin = common(self.render(messages[:i], tools), whole)
            except FAILURES:
                begin = 0
        place = whole.find(words, begin)
        if not words or place < 0:
            role = messages[i]["role"]
            detail = f"where the template prints message {i} ({role}) cannot be told: --train-on"
            return Reject(Reason.TEMPLATE_FAILED, detail)
        return place, place + len(words)

    def learnt(self) -> Answers:
        """An `Answers` of this template whose `header` and `cut_tails` probes have shown.

        The probes are a question with an answer, as texts and as parts, without reasoning and with
        it; those that the template refuses show nothing.
        """
        tails, headers = set(), list[str]()
        for more, is_parts in product(({}, _THOUGHT), (False, True)):
            talk = [_probe("user", QUESTION, is_parts), _probe("assistant", ANSWER, is_parts)]
            try:
                before = self.render(talk[:1], None, prompt=True)
                until = self.render([talk[0], talk[1] | more], None)
            except FAILURES:
                continue
            cut = common(before, until)
            opened = _OPEN_THINK.search(before, 0, cut)
            cut = opened.start() if opened and cut < len(before) else cut
            if cut < len(before) and _begins_an_answer(until[cut:]):
                tails.add(before[cut:])
            headers.append(before[common(before, self._bare(talk[:1])) : cut])
        ordered = tuple(sorted(tails, key=len, reverse=True))
        return Answers(self.render, self.end_tokens, headers[0] if headers else "", ordered)

    def _bare(self, messages: Sequence[Dict]) -> str:
        try:
            return self.render(messages, None)
        except FAILURES:
            return ""


def _not_begun(messages: Sequence[Dict], before: str, until: str) -> str:
    """Why an answer, whose prompt is `before`, has no beginning in `until`."""
    answer = f"the answer, message {len(messages)}"
    for k, message in enumerate(messages):
        words = message["content"]
        if isinstance(words, str) and before.count(words) > until.count(words):
            cure = " (--fold-system puts it before the first question)"
            return (
                f"the template prints message {k} ({message['role']}) in the prompt for {answer}, "
                f"and no more when the answer follows{cure if message['role'] == 'system' else ''}"
            )
    return (
        f"the template's prompt for {answer}, is not how the template prints the beginning of that "
        "answer, so where it begins cannot be told"
    )


def _last_words(message: Dict) -> str:
    """What an answer says last; "" where that is no plain text (which every text ends with)."""
    content = message["content"]
    return content.strip() if isinstance(content, str) and not message.get("tool_calls") else ""


_REASONING = "Let me see."
_THOUGHT: Dict = {"thinking": _REASONING, "reasoning_content": _REASONING}


def _probe(role: str, text: str, is_parts: bool) -> Dict:
    return {"role": role, "content": [{"type": "text", "text": text}] if is_parts else text}


def _begins_an_answer(text: str) -> bool:
    head = _EMPTY_THINK.sub("", text[: text.find(ANSWER)] if ANSWER in text else text)
    return not head.strip() or _REASONING in head


def without_empty_think(text: str, span: Span) -> Span:
    """The span without an empty think block at its beginning, which the prompt may have opened."""
    start, end = span
    if not any(text.find(last, start, end) >= 0 for _, last in _THINKS):
        return span
    opened = _OPEN_THINK.search(text, max(0, start - _LOOK_BACK), start)
    found = _EMPTY_THINK.match(text, opened.start() if opened else start, end)
    return (max(start, found.end()), end) if found else span


def without_parts(
    text: str, spans: Sequence[Span], wanted: Sequence[int], messages: Sequence[Message]
) -> list[Span] | Reject:
    """The spans of the wanted messages, less the parts of them that are without loss.

    White space before such a part goes with it: it may be in the same token.
    """
    if len(spans) != len(wanted):
        detail = f"{len(wanted)} answers, {len(spans)} generation blocks: cannot mask a part"
        return Reject(Reason.TEMPLATE_FAILED, detail)
    found: list[Span] = []
    for (start, end), i in zip(spans, wanted, strict=True):
        place = start
        for part in messages[i].parts:
            words = (part.text or "").strip()
            begin = text.find(words, place, end)
            if begin < 0:
                detail = f"where the template prints each part of message {i} cannot be told"
                return Reject(Reason.TEMPLATE_FAILED, detail)
            place = begin + len(words)
            if words and not part.supervised:
                found.append((start, start + len(text[start:begin].rstrip())))
                start = place
        found.append((start, end))
    return found
