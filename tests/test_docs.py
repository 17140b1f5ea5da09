"""Documents are true: generated pages are up to date, links lead somewhere, the tutorial runs."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import environment, run, torchrun
from records import TOKENIZER, alpaca_rows, write_json

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("snippets", ROOT / "docs/snippets.py")
assert spec is not None
assert spec.loader is not None
snippets = importlib.util.module_from_spec(spec)
sys.modules["snippets"] = snippets
spec.loader.exec_module(snippets)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("script", ["docs/reference/make.py", "docs/vectors/make.py"])
def test_generated_pages_are_up_to_date(script: str, tmp_path: Path) -> None:
    """`make docs` would change nothing."""
    folder = (ROOT / script).parent
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    subprocess.run([sys.executable, copy / "make.py"], check=True, cwd=ROOT)
    for path in folder.iterdir():
        if path.is_file():
            assert (copy / path.name).read_bytes() == path.read_bytes(), f"{path}: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file, and every heading it names is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """Every command of the tutorial, as it is written, in order, in a copy of the checkout."""
    for name in ("examples", "tests/data"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "demo-out").mkdir()
    blocks = code_blocks("docs/tutorial.md", "bash")
    assert len(blocks) >= 5
    for block in blocks:
        out = run_bash(block, tmp_path)
        if "verify found it" in block:
            assert "verify found it" in out
            assert "shard-00001.tar" in out


@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sixty seconds, then the training script on 2 ranks, as they are written.

    The hub names are folders here: a tokenizer of our own and a model that is tiny and random.
    """
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "Qwen/Qwen2.5-0.5B")
    write_json(tmp_path / "alpaca.json", alpaca_rows(400))
    (sixty_seconds,) = (b for b in code_blocks("README.md", "bash") if "shardkit pack" in b)
    run_bash(sixty_seconds, tmp_path)
    (script,) = code_blocks("README.md", "python")
    quick = "from shardkit.integrations.deepspeed import without_shm_build\nwithout_shm_build()\n"
    (tmp_path / "train.py").write_text(quick + script)
    run(torchrun(2, tmp_path / "train.py"))
    assert (tmp_path / "checkpoints/latest").is_file()


def code_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page that are in this language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def run_bash(block: str, folder: Path) -> str:
    """Run a block in a folder, stop at its first error; what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def make_model(folder: Path) -> None:
    """A causal model and its tokenizer, as a hub would have them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shutil.copytree(TOKENIZER, folder)
    config = Qwen2Config(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def test_a_how_to_runs(tmp_path: Path) -> None:
    """Its code blocks, as they are written (`make docs-check` runs those of every page)."""
    snippets.furnish(tmp_path)
    n_run, skipped = snippets.run_page("how-to/packing.md", tmp_path)
    assert n_run >= 3
    assert not skipped


def test_every_block_that_is_not_run_says_why() -> None:
    """Each is one of a page that is run, and its reason is some words."""
    blocks = [block for page in snippets.PAGES for block in snippets.blocks_of(page)]
    assert len(blocks) > 40
    left = [block.why_not for block in blocks if block.why_not is not None]
    assert len(left) < len(blocks) / 2
    assert all(len(why) > 10 for why in left)
