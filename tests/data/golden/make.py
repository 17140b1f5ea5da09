"""Made tests/data/golden/1.0 once, with shardkit 0.1.0. Never run it again for a version that is out.

A later version of the format gets a folder of its own: `python tests/data/golden/make.py VERSION`.
Rows, pictures and tokenizer are our own, and drawn here.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
from PIL import Image

from shardkit import pack

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "helpers"))

from golden import facts_of  # noqa: E402

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = "the a red blue green small large cat dog bird sits runs sings on under a box tree".split()


def main(version: str) -> None:
    """Draw the rows, pack them, and write down what a reader must find."""
    out = HERE / version
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        common: dict[str, Any] = {"tokenizer": make_tokenizer(folder / "tokenizer"), "engine": "hf"}
        rng = random.Random(1)
        rows = [{"instruction": say(rng), "output": say(rng)} for _ in range(60)]
        rows[7] = {"instruction": "no answer"}
        text = write(folder / "rows.json", rows)
        pack(text, out / "packed", template="qwen_chat", max_length=256, packing="best-fit",
             shard_size=24_000, part_rows=30, **common)  # fmt: skip
        turns = [chat(rng, i) for i in range(30)]
        chats = write(folder / "chats.json", turns)
        pack(chats, out / "chats-zstd", max_length=200, compression="zstd", **common)
        llava = write(folder / "llava.json", [picture(rng, i, folder) for i in range(8)])
        pack(llava, out / "pictures", template="qwen_chat", image_root=folder / "images",
             image_tokens=4, max_length=256, **common)  # fmt: skip
        pairs = [{"prompt": say(rng), "chosen": say(rng) + ".", "rejected": say(rng) + "!"}
                 for _ in range(16)]  # fmt: skip
        pack(write(folder / "pairs.json", pairs), out / "preference", task="preference",
             max_length=256, **common)  # fmt: skip
    for dataset in sorted(out.iterdir()):
        if dataset.is_dir():
            found = json.dumps(facts_of(dataset), indent=1, ensure_ascii=False)
            (out / f"{dataset.name}.json").write_text(found + "\n")


def say(rng: random.Random) -> str:
    """Some words, now and then beyond ASCII."""
    words = rng.choices(_WORDS, k=rng.randint(2, 14))
    return " ".join(words) + ("" if rng.random() < 0.8 else " ünï 🙂")


def chat(rng: random.Random, i: int) -> dict[str, Any]:
    """A chat of one to three turns."""
    turns = [
        {"role": role, "content": say(rng)}
        for _ in range(1 + i % 3)
        for role in ("user", "assistant")
    ]
    return {"messages": turns}


def picture(rng: random.Random, i: int, folder: Path) -> dict[str, Any]:
    """A row with no, one or two pictures."""
    (folder / "images").mkdir(exist_ok=True)
    names = [f"{i}-{k}.{'png' if i % 2 else 'jpg'}" for k in range(i % 3)]
    for name in names:
        colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        Image.new("RGB", (24, 16), colour).save(folder / "images" / name)
    marks = "<image>\n" * len(names)
    row: dict[str, Any] = {"id": f"row-{i}"}
    row["conversations"] = [
        {"from": "human", "value": marks + say(rng)},
        {"from": "gpt", "value": say(rng)},
    ]
    if names:
        row["image"] = names if len(names) > 1 else names[0]
    return row


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a JSON array."""
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path


def make_tokenizer(folder: Path) -> Path:
    """Bytes and three markers: a tokenizer whose file is small."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, *special])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main(sys.argv[1])
