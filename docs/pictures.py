"""Draws the README's pictures from the demo's data: `python docs/pictures.py` (needs Chromium).

docs/diagrams/pack.svg: what a terminal shows of a pack; docs/diagrams/report.png: a report.
"""

from __future__ import annotations

import base64
import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/helpers"))

from browser import Browser, find_chromium  # noqa: E402

PACK = (
    "shardkit pack examples/data/alpaca.json --out {out} --tokenizer tests/data/tokenizer "
    "--template qwen_chat --max-length 256 --packing best-fit"
)


def main() -> None:
    """Draw both."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "alpaca"
        shown = in_a_terminal(PACK.format(out=out)).replace(str(out), "alpaca")
        draw_terminal(f"$ {PACK.format(out='alpaca')}\n{shown}", ROOT / "docs/diagrams/pack.svg")
        page = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "shardkit", "report", out, "-o", page], check=True)
        program = find_chromium()
        if program is None:
            sys.exit("there is no Chromium")
        with Browser(program) as browser:
            page.write_text(page.read_text().replace(str(out), "alpaca"))
            browser.look(1100, 800)
            browser.open(page.as_uri())
            browser.run("document.querySelector('#samples').scrollIntoView({behavior: 'instant'})")
            shot = browser.call("Page.captureScreenshot", format="png")
            (ROOT / "docs/diagrams/report.png").write_bytes(base64.b64decode(shot["data"]))


def in_a_terminal(command: str) -> str:
    """What a command leaves on a terminal of 96 columns, colours and all."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", *command.split()]
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "96"}
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env=env, cwd=ROOT)
    os.close(theirs)
    data = b""
    try:
        while more := os.read(ours, 65536):
            data += more
    except OSError:
        pass  # its last process has ended
    process.wait()
    text = data.decode().replace("\r\n", "\n")
    text = text[text.rindex("\x1b[2K") + 4 :]  # the bar is gone by then
    return re.sub(r"\x1b\[\?25[hl]", "", text)


def draw_terminal(text: str, path: Path) -> None:
    """The text as an SVG that asks nobody for fonts."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    plain = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.S)
    path.write_text(console.export_svg(title="shardkit pack", code_format=plain))


if __name__ == "__main__":
    main()
