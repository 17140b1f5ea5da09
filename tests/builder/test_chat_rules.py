"""Options of chat rows, from the command to the manifest: recorded, verified, used again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from records import TOKENIZER, pack_small

from shardkit import load_manifest, verify
from shardkit.builder import PackOptions, append
from shardkit.builder.repair import repair
from shardkit.errors import BuildConflict, TemplateError
from shardkit.format.builds import builds_of
from shardkit.tokens import ChatTemplate, load_template, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ mood or '' }}{% endif %}"
)
"""Drops the think block of earlier answers; `mood` is an argument of its own."""


def _talk(i: int, n_answers: int, **last: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for k in range(n_answers):
        messages.append({"role": "user", "content": f"question {i} {k}"})
        messages.append({"role": "assistant", "content": f"answer {i} {k}"})
    messages[-1] |= last
    return {"messages": messages}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One row of one answer, one of two, one whose second answer cannot be printed, one of three
    of which none can."""
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    call = [{"type": "function", "function": {"name": "f", "arguments": {"city": "Oslo"}}}]
    lost = _talk(3, 3)
    for message in lost["messages"][1::2]:
        message["tool_calls"] = call
    rows = [_talk(0, 1), _talk(1, 2), _talk(2, 2, tool_calls=call), lost]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_split_rows_are_accounted_for(source: Path, tmp_path: Path, packing: str) -> None:
    """The ledger counts rows, the shards hold one sample an answer, lost pieces are listed; the
    dataset is good, and good against its source."""
    out = tmp_path / "out"
    template = source.parent / "own.jinja"

    manifest = pack_small(source, out, template=template, history="split", packing=packing)

    (account,) = manifest.sources
    assert (account.n_rows, account.n_kept, account.rejected) == (4, 3, {"template_lost_text": 1})
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(line["row"], line.get("piece")) for line in lines] == [
        (2, 1),
        *[(3, 0), (3, None), (3, 1), (3, 2)],
    ]
    if packing == "none":
        assert manifest.n_samples == 1 + 2 + 1
    assert manifest.recipe["history"] == "split"
    (build,) = builds_of(manifest)
    assert PackOptions.of(manifest, build, tokenizer=TOKENIZER).history == "split"
    assert verify(out).findings == []
    assert verify(out, sources=[source]).findings == []


def test_options_of_the_command_reach_the_manifest(source: Path, tmp_path: Path) -> None:
    """A template's argument is in its identity, other options in the recipe; both are verified."""
    out = tmp_path / "out"
    command: list[str | Path] = [sys.executable, "-m", "shardkit", "pack", source, "--out", out]
    command += ["--tokenizer", TOKENIZER, "--template", source.parent / "own.jinja"]
    command += ["--template-arg", 'mood="glad "', "--history", "last", "--train-empty-think"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    recipe = load_manifest(out).recipe
    assert recipe["template"]["args"] == {"mood": "glad "}
    assert (recipe["history"], recipe["train_empty_think"]) == ("last", True)
    assert "tool_calls" not in recipe
    assert verify(out, sources=[source]).findings == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--template-arg", "moody=1"], "no such argument"),
        (["--template-arg", "mood"], "NAME=VALUE"),
        (["--train-on", "robots"], "train_on"),
        (["--history", "spilt"], "did you mean split?"),
    ],
)
def test_a_wrong_option_is_refused(source: Path, options: list[str], words: str) -> None:
    """With the word that was meant, and without a traceback."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "shardkit",
        "pack",
        source,
        "--out",
        source.parent / "out",
    ]
    command += ["--tokenizer", TOKENIZER, "--template", source.parent / "own.jinja", *options]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_template_that_is_an_object_is_known_again(source: Path, tmp_path: Path) -> None:
    """Packed, verified, repaired and appended to with its own arguments; another one is found
    out, and never called a mistake of arguments that nobody gave."""
    tokenizer = load_tokenizer(TOKENIZER)
    own, other = (
        ChatTemplate.of_text(TEMPLATE, tokenizer, "own.jinja", args={"mood": mood})
        for mood in ("glad ", "sad ")
    )
    out = tmp_path / "out"
    pack_small(source, out, template=own, history="last", train_empty_think=True)

    assert verify(out, template=own, sources=[source]).findings == []
    for wrong in (other, load_template("vicuna", tokenizer)):
        assert "template" in {one.code for one in verify(out, template=wrong).findings}
        with pytest.raises(BuildConflict, match="template"):
            append(out, source, template=wrong)
    (shard,) = out.glob("shard-*.tar")
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(BuildConflict, match="template"):
        repair(out, [shard.name], [source], template=other)
    repair(out, [shard.name], [source], template=own)
    assert shard.read_bytes() == whole
    with pytest.raises(TemplateError, match="its own"):
        pack_small(source, tmp_path / "more", template=own, template_args={"mood": "sad "})
