"""Rows with pictures, as files to pack and as the messages that a processor takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from processors import SIZES, picture

Talk = list[tuple[str, str]]
"""(role, text with <image> where a picture stands, and # for the row) of every message."""

TALKS: tuple[Talk, ...] = (
    [("user", "<image>\nWhat is # this?"), ("assistant", "A small house.")],
    [("user", "Why does it rain # times?"), ("assistant", "Because of the clouds.")],
    [
        ("system", "Answer in one word."),
        ("user", "Compare # <image> with <image> please."),
        ("assistant", "Different."),
    ],
    [
        ("user", "Hello #"),
        ("assistant", "Hi, how can I help?"),
        ("user", "<image>What is shown here?"),
        ("assistant", "A tree."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    ],
    [
        ("user", "Look # up."),
        ("assistant", "I look."),
        ("tool", "Found: <image> on page 3"),
        ("assistant", "It is a bird."),
    ],
)


def write(folder: Path, n: int = 10, talks: tuple[Talk, ...] = TALKS) -> Path:
    """A file of OpenAI messages with content parts, its pictures below `folder`/images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(n):
        images: list[str] = []
        messages: list[dict[str, Any]] = []
        for role, text in talk_of(i, talks):
            parts: list[dict[str, Any]] = []
            for k, words in enumerate(text.split("<image>")):
                if k:
                    name = f"{i}-{len(images)}.png"
                    picture_of(i, len(images)).save(folder / "images" / name)
                    images.append(name)
                    parts.append({"type": "image"})
                if words:
                    parts.append({"type": "text", "text": words})
            messages.append({"role": role, "content": parts if len(parts) > 1 else text})
        row: dict[str, Any] = {"messages": messages, **({"images": images} if images else {})}
        lines.append(json.dumps(row) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(lines))
    return path


def talk_of(row: int, talks: tuple[Talk, ...] = TALKS) -> Talk:
    """The messages of a row; # is its number, so that no two rows are equal."""
    return [(role, text.replace("#", str(row))) for role, text in talks[row % len(talks)]]


def picture_of(row: int, k: int) -> Image.Image:
    """Picture k of a row."""
    return picture(*SIZES[(row + k) % len(SIZES)], seed=row)


def messages_of(row: int, talks: tuple[Talk, ...] = TALKS) -> list[dict[str, Any]]:
    """A row as `apply_chat_template` takes it, with its pictures."""
    messages: list[dict[str, Any]] = []
    n = 0
    for role, text in talk_of(row, talks):
        parts: list[dict[str, Any]] = []
        for k, words in enumerate(text.split("<image>")):
            if k:
                parts.append({"type": "image", "image": picture_of(row, n)})
                n += 1
            if words:
                parts.append({"type": "text", "text": words})
        messages.append({"role": role, "content": parts})
    return messages


def text_by_processor(real: Any, row: int, talks: tuple[Talk, ...] = TALKS) -> str:
    """The rendered text of a row, pictures not expanded."""
    from transformers import ProcessorMixin

    apply: Any = ProcessorMixin.apply_chat_template  # SmolVLM's own asks its video processor
    text: str = apply(real, messages_of(row, talks), tokenize=False)
    return text


def ids_by_processor(real: Any, row: int, talks: tuple[Talk, ...] = TALKS) -> list[int]:
    """What `apply_chat_template` of the whole processor makes of a row."""
    from transformers import ProcessorMixin

    apply: Any = ProcessorMixin.apply_chat_template
    messages = messages_of(row, talks)
    found = apply(real, messages, tokenize=True, return_dict=True, return_tensors="np")
    return [int(i) for i in found["input_ids"][0]]
