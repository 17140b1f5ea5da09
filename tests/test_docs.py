"""Documents are true: generated pages are up to date, links lead somewhere, the tutorial runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.S)
    assert len(blocks) >= 5
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        if "verify found it" in block:
            assert "verify found it" in done.stdout
            assert "shard-00001.tar" in done.stdout
