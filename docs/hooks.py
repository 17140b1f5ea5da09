"""What `mkdocs build` adds to docs/: the demo's report, files of the repository that pages link to,
and at the end a look at every link of the site."""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that lie beside docs/."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_COMMENT = re.compile(r"\A<!--.*?-->\s*", re.S)
"""What a generated page says of itself, before its heading."""
_REPORT = """# The demo's report

What [`shardkit report`](how-to/look.md) makes of the demo's data, as one file
([alone on a page](demo-report.html)). It was made when this site was built.

<iframe src="../demo-report.html" title="The report of the demo's dataset"
  style="width: 100%; height: 80vh; border: 1px solid #8888"></iframe>
"""


def on_files(files: Files, config: Any) -> Files:
    """Add generated pages, and the files outside docs/ that pages link to."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_moved(text, ROOT, DOCS / page)))
    files.append(File.generated(config, "demo-report.md", content=_REPORT))
    files.append(File.generated(config, "demo-report.html", content=_demo_report()))
    texts = [(path, path.parent) for path in DOCS.rglob("*.md")]
    texts += [(ROOT / source, ROOT) for source in PAGES.values()]
    wanted = {
        place
        for path, folder in texts
        for _, _, target in _LINK.findall(path.read_text())
        if (place := _outside(target, folder)) is not None and (ROOT / place).is_file()
    }
    for place in sorted(wanted - set(PAGES.values())):
        content = (ROOT / place).read_bytes()
        files.append(File.generated(config, f"source/{place}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of docs/ lead to the copies, and the heading be the title."""
    here = DOCS / page.file.src_uri
    markdown = _COMMENT.sub("", markdown)
    return markdown if page.file.generated_by else _moved(markdown, here.parent, here)


def on_post_build(config: Any) -> None:
    """Raise PluginError when a link of the built site leads nowhere."""
    site = Path(config["site_dir"])
    pages = {path: _Links(path.read_text()) for path in site.rglob("*.html")}
    broken, n_links = [], 0
    for path, links in pages.items():
        for link in links.targets:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            n_links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            names = pages[target].names if target in pages else set()
            is_bad = parts.fragment and target in pages and unquote(parts.fragment) not in names
            if not target.exists() or (is_bad and not parts.fragment.startswith("__")):
                broken.append(f"{path.relative_to(site)}: {link}")
    if broken:
        raise PluginError(f"{len(broken)} broken links:\n" + "\n".join(broken[:40]))
    print(f"{len(pages)} pages, {n_links} links, 0 broken")


class _Links(HTMLParser):
    """Where a page's links lead, and the names that links to it may have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.names.add(value)


def _outside(target: str, folder: Path) -> str | None:
    """The place in the repository of a link that leads out of docs/; None for others."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return None
    path = Path(os.path.normpath(folder / target.partition("#")[0]))
    return None if path.is_relative_to(DOCS) else path.relative_to(ROOT).as_posix()


def _moved(markdown: str, folder: Path, here: Path) -> str:
    """The text with its links as the page `here` must have them; folders are not linked to."""

    def moved(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        name, _, anchor = target.partition("#")
        place = _outside(target, folder)
        if place is None:
            path = Path(os.path.normpath(folder / name)) if name and "://" not in target else None
            if path is None or not path.is_relative_to(DOCS):
                return found[0]
            if path.is_dir():
                return (
                    text
                    if not (path / "README.md").exists()
                    else found[0].replace(target, f"{_from(here, path)}/README.md")
                )
            return f"{mark}[{text}]({_from(here, path)}{'#' + anchor if anchor else ''})"
        pages = {source: page for page, source in PAGES.items()} | {"README.md": "index.md"}
        if place in pages:
            return f"[{text}]({_from(here, DOCS / pages[place])}{'#' + anchor if anchor else ''})"
        if not (ROOT / place).is_file():
            return text
        return f"{mark}[{text}]({_from(here, DOCS / 'source' / place)})"

    return _LINK.sub(moved, markdown)


def _from(here: Path, path: Path) -> str:
    return posixpath.relpath(path.as_posix(), here.parent.as_posix())


def _demo_report() -> bytes:
    """The report of the demo's Alpaca rows, packed."""
    from shardkit import pack
    from shardkit.dataset import open_dataset
    from shardkit.report.page import ReportOptions, write_report

    data = ROOT / "examples/data"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        pack(
            [data / "alpaca.json"],
            out,
            tokenizer=ROOT / "tests/data/tokenizer",
            template="qwen_chat",
            max_length=256,
            packing="best-fit",
        )
        write_report(open_dataset(out), Path(folder) / "report.html", ReportOptions(samples=20))
        return (Path(folder) / "report.html").read_bytes().replace(str(out).encode(), b"demo")
