"""Ids and masks of the published chat templates that TRL ships, against transformers.

No template is stored here: they are read from the package. All of them are compared by
`make oracle`; here is one for each way to print and to mask.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import msgspec.structs
import pytest
from template_oracle.compare import compare
from template_oracle.rows import ROWS, SUM, TOOLS, Row, answer, call, conversation, result, user
from template_oracle.subject import Subject, trl_folder

from shardkit.tokens import Encoder
from shardkit.tokens.train_rules import TrainRules

FOLDER = trl_folder()
if FOLDER is None:
    pytest.skip("trl is not installed", allow_module_level=True)
TEMPLATES = FOLDER
THERE = {path.stem for path in TEMPLATES.glob("*.jinja")}
COMPARED: dict[str, set[str]] = {
    "cohere2": set(),
    "deepseek_r1_distill": {"prompt"},
    "deepseekv3": {"prompt"},
    "diffusion_gemma": {"after end", "header", "stop"},
    "gemma": {"after end"},
    "gemma3": {"after end"},
    "gemma4_v5": set(),
    "glm4moe": {"next header"},
    "gptoss": {"prompt"},
    "gptoss_training": set(),
    "idefics3": set(),
    "lfm2_2_5": set(),
    "lfm2_v2": {"after end"},
    "llama3": set(),
    "llama3_2": set(),
    "muse_glimmer": {"prompt"},
    "nemotron_3_nano": {"after end", "empty think", "prompt"},
    "phi3_5": {"after end"},
    "qwen2_5": {"after end", "prompt"},
    "qwen2_5_vl": {"after end"},
    "qwen3": {"after end"},
    "qwen3_5_nothink": {"after end", "other think", "prompt"},
    "qwen3_5_think": {"after end", "prompt"},
    "qwen3_8_training": set(),
}
"""Templates, and the rules by which our loss is another than the training twin's."""


@cache
def _subject(name: str) -> Subject:
    if name not in THERE:
        pytest.skip(f"this version of trl has no template {name}")
    return Subject.of_file(TEMPLATES / f"{name}.jinja")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", COMPARED)
def test_a_row_is_what_transformers_prints_or_is_rejected_with_the_reason(name: str) -> None:
    """Ids of apply_chat_template; each token in the loss is right, or a rule says why it is not."""
    outcomes = compare(_subject(name))
    assert [(one.title, one.wrong) for one in outcomes if one.wrong] == []
    assert any(one.reject is None for one in outcomes)
    assert set(sum((one.rules for one in outcomes), Counter())) == COMPARED[name]


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
        subject = _subject(name)
        encoder = Encoder(subject.tokenizer, subject.template, max_length=None)
        encoded = encoder.encode([conversation(ROWS[title])])
        assert [words in reject.detail for _, reject in encoded.rejects] == [True], (name, title)


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "qwen3_5_think"])
def test_split_rows_are_what_inference_sees(name: str) -> None:
    """Each piece is the prompt that the template makes of the messages before, and the answer."""
    subject = _subject(name)
    rules = TrainRules(history="split")
    encoder = Encoder(subject.tokenizer, subject.template, max_length=None, rules=rules)
    row = ROWS["multi"]

    encoded = encoder.encode([conversation(row), conversation(ROWS["one"])])

    assert encoded.kept.tolist() == [0, 0, 1]
    assert encoded.piece.tolist() == [0, 1, 0]
    hf = subject.hf
    for piece, last in enumerate((2, 4)):
        start, end = encoded.samples.starts[piece : piece + 2]
        ids, labels = encoded.samples.ids[start:end], encoded.samples.labels[start:end]
        assert ids.tolist() == subject.ids((row[0][:last], None))
        prompt = subject.ids((row[0][: last - 1], None), add_generation_prompt=True)
        assert (labels[: len(prompt)] == -100).all()
        trained = hf.decode(ids[labels != -100])
        assert row[0][last - 1]["content"] in trained


PAIRS: dict[str, tuple[Row, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "one": (([user("Hello there")], None), [answer("Hi! 😀")], [answer("\nNo.")]),
    "multi": (
        ([user("What?"), answer("This."), user("And?")], None),
        [answer("That <b>.")],
        [answer("Those", reasoning_content="Let me see.")],
    ),
    "tool": (
        ([user("Sum?")], TOOLS),
        [answer("", tool_calls=[call(SUM)]), result("3"), answer("It is 3.")],
        [answer("I cannot.")],
    ),
}
PREFERRED = [
    *("deepseek_r1_distill", "gemma3", "gptoss", "llama3_1", "nemotron_3_nano", "phi3_training"),
    *("qwen2_5_training", "qwen3", "qwen3_5_nothink_training"),
]


@pytest.mark.parametrize("name", PREFERRED)
def test_pairs_part_where_trls_trainers_part_them(name: str) -> None:
    """Ids of prompt and answers, and where the answers begin, as DPOTrainer tokenises a row."""
    subject, n_equal = _subject(name), 0
    encoder = Encoder(subject.tokenizer, subject.template, max_length=None, task="preference")
    for title, ((prompt, tools), *answers) in PAIRS.items():
        talks = [conversation(([*prompt, *one], tools)) for one in answers]
        n = len(prompt)
        pair = msgspec.structs.replace(talks[0], n_prompt=n, rejected=talks[1].messages[n:])
        encoded = encoder.encode([pair])
        if encoded.rejects:
            assert encoded.rejects[0][1].detail.startswith(("chosen: ", "rejected: ")), title
            continue
        before = subject.ids((prompt, tools), add_generation_prompt=True)
        expected = [subject.ids(([*prompt, *one], tools)) for one in answers]
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
