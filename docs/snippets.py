"""Runs the code blocks of the tutorial and the how-tos, in order, page by page: `make docs-check`.

A page gets a folder with small data under the names that it uses. Its bash blocks run in a shell,
its python blocks share one namespace, which begins with what the page takes for given (GIVEN). A
block below `<!-- not run: REASON -->` is not run, and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/helpers"))

from launch import environment  # noqa: E402
from records import TOKENIZER, alpaca_rows, pack_small, write_json, write_llava  # noqa: E402

PAGES = ["tutorial.md", *sorted(f"how-to/{path.name}" for path in ROOT.glob("docs/how-to/*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<kind>bash|python)\n(?P<code>.*?)^```",
    re.M | re.S,
)
GIVEN = """
import itertools, os, torch
from pathlib import Path
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from shardkit import ShardLoader
tokenizer = AutoTokenizer.from_pretrained("qwen")
torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=4096, hidden_size=16, intermediate_size=16,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))
loader = ShardLoader("alpaca", batch_size=4, seed=1)
world_size = 1
"""
"""What a python block may take for given."""
MORE: dict[str, str] = {
    "how-to/loss.md": """
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
torch.distributed.init_process_group(store=torch.distributed.HashStore(), rank=0, world_size=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader_options = dict(loss_weights=True)
""",
    "how-to/accelerate.md": "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n",
    "how-to/resume.md": "n_epochs = 1\n",
}


@dataclass(frozen=True, slots=True)
class Block:
    """One code block of a page."""

    kind: str
    code: str
    why_not: str | None


def blocks_of(page: str) -> Iterator[Block]:
    """The bash and python blocks of a page, in order."""
    for found in _BLOCK.finditer((ROOT / "docs" / page).read_text()):
        yield Block(found["kind"], found["code"], found["why"])


def furnish(folder: Path) -> None:
    """Small data under the names of the pages."""
    for name in ("examples", "tests/data"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "demo-out").mkdir()
    for name in ("qwen", "TOKENIZER", "vicuna", "Qwen/Qwen2.5-0.5B"):
        shutil.copytree(TOKENIZER, folder / name)
    rows = alpaca_rows(400)
    write_json(folder / "alpaca.json", rows)
    pack_small(folder / "alpaca.json", folder / "alpaca", part_rows=200)
    for number, name in enumerate(("alpaca-eval", "sharegpt", "lima")):
        source = write_json(folder / f"{name}.json", alpaca_rows(40, seed=number + 1))
        pack_small(source, folder / name, part_rows=200)
    write_json(folder / "more.jsonl", alpaca_rows(30, seed=9))
    write_json(folder / "corpus.jsonl", [{"text": "word " * (5 + i)} for i in range(40)])
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    chats = [{"messages": turn, "label": True, "score": 0.5} for _ in range(20)]
    write_json(folder / "chats.jsonl", [{"messages": turn} for _ in range(20)])
    write_json(folder / "rows.jsonl", chats)
    pairs = [{"prompt": f"Add {i}", "chosen": f"{i + 1}", "rejected": "No"} for i in range(20)]
    write_json(folder / "pairs.jsonl", pairs)
    write_json(folder / "qa.jsonl", [{"prompt": "a", "completion": "b"} for _ in range(20)])
    write_json(folder / "turns.jsonl", [{"dialogue_turns": turn} for _ in range(20)])
    subprocess.run(["gzip", "-k", "alpaca.json"], cwd=folder, check=True)
    write_llava(folder, 12)


def run_page(page: str, folder: Path) -> tuple[int, list[str]]:
    """Run a page in a furnished folder; (blocks that ran, why the others did not).

    Raises CalledProcessError of a bash block that fails, and what a python block raises.
    """
    n_run, skipped, made = 0, list[str](), set[str]()
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if block.why_not is not None:
            skipped.append(block.why_not)
            continue
        for name in set(re.findall(r"shardkit pack .*?--out (\S+)", block.code, re.S)) - made:
            shutil.rmtree(folder / name, ignore_errors=True)  # made by the page, not given
            made.add(name)
        if block.kind == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.code]
            subprocess.run(
                command, cwd=folder, env=environment(), check=True, text=True, capture_output=True
            )
        else:
            with contextlib.chdir(folder):
                if not names:
                    exec(GIVEN + MORE.get(page, ""), names)
                exec(compile(block.code, page, "exec"), names)
        n_run += 1
    return n_run, skipped


def main() -> int:
    """Run pages; the number of those that fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", default=PAGES, help="of docs/ (default: all)")
    pages = parser.parse_args().pages
    total, left, failed = 0, 0, 0
    for page in pages:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            furnish(Path(folder))
            try:
                n_run, skipped = run_page(page, Path(folder))
            except Exception as err:
                said = getattr(err, "stderr", "") or traceback.format_exc()
                print(f"{page}: FAILED: {err}\n{said[-3000:]}")
                failed += 1
                continue
        total, left = total + n_run, left + len(skipped)
        why = f", not run: {'; '.join(skipped)}" if skipped else ""
        print(f"{page}: {n_run} ran in {time.monotonic() - begun:.0f} s{why}", flush=True)
    print(f"{total} blocks ran, {left} not, {failed} pages failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
