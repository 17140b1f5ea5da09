"""The report in a real browser: it filters, searches, is used by keys, and runs nothing planted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from records import pack_small, write_json, write_llava

from shardkit.dataset import open_dataset
from shardkit.report.page import write_report

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
PLANTED = "<script>window.planted=1</script><img src=x onerror=window.planted=1>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of text and pictures, of which one row attacks."""
    folder = tmp_path_factory.mktemp("browser")
    answers = [f"zebra {PLANTED}", "long " * 600, *(f"answer {i}" for i in range(10))]
    rows = [{"conversations": [_turn("human", PLANTED), _turn("gpt", a)]} for a in answers]
    sources = [write_json(folder / "text.json", rows), write_llava(folder, 8)]
    pack_small(sources, folder / "data", image_root=folder / "images", max_length=256)
    write_report(open_dataset(folder / "data"), folder / "report.html")
    return (folder / "report.html").as_uri()


def _turn(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def shown(browser: Browser) -> int:
    return int(browser.run("document.querySelectorAll('#cards .card:not([hidden])').length"))


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_it_is_used(browser: Browser, page: str, width: int, dark: bool) -> None:
    """Filters, search, theme and links, wide and on a phone; nothing is asked of the network."""
    browser.events.clear()
    browser.look(width, dark=dark)
    browser.open(page)
    browser.run("localStorage.clear()")
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") == width, "it scrolls sideways"
    n = shown(browser)
    assert n == 20
    browser.type("[name=search]", "ZEBRA")
    assert shown(browser) == 1
    assert browser.run("document.getElementById('shown').textContent") == "1 of 20 shown"
    assert "<script>window.planted=1</script>" in browser.run("document.body.innerText")
    browser.click("#filters [type=reset]")
    browser.wait(f"document.getElementById('shown').textContent === '{n} of {n} shown'")
    browser.click("[name=pictures]")
    assert shown(browser) == 6
    browser.click("[name=cut]")
    assert shown(browser) == 0
    browser.click("[name=pictures]")
    assert shown(browser) == 1
    browser.click("[name=cut]")
    browser.run(
        "(() => {const s = document.querySelector('[name=source]'); s.value = 'llava.json';"
        "s.dispatchEvent(new Event('input', {bubbles: true}))})()"
    )
    assert shown(browser) == 8
    browser.click("#filters [type=reset]")
    browser.wait(f"document.getElementById('shown').textContent === '{n} of {n} shown'")
    browser.type("[name=high]", "40")
    assert 0 < shown(browser) < n
    before = browser.run("getComputedStyle(document.body).backgroundColor")
    for _ in range(1 if dark else 2):
        browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != before
    assert browser.run("window.planted === undefined")
    asked = [e["params"]["request"]["url"] for e in browser.events if "requestWill" in e["method"]]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert [e for e in browser.events if e["method"] in _COMPLAINTS] == []


_COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown")


def test_keys_are_enough(browser: Browser, page: str) -> None:
    """Tab reaches the skip link first; a scale is chosen with an arrow; a link opens its sample."""
    browser.look(1000)
    browser.open(page)
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    browser.press("Enter")
    browser.wait("location.hash === '#main'")
    browser.run("document.getElementById('scale-1-a').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.id") == "scale-1-b"
    visible = "getComputedStyle(document.querySelector('.switch .b')).display"
    assert browser.run(visible) == "block"
    browser.run("document.querySelector('.card h3 a').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('.card:target') !== null")


def test_the_policy_holds(browser: Browser, page: str, tmp_path: Path) -> None:
    """Even a script that is written into the file does not run: only ours has the right hash."""
    html = Path(page.removeprefix("file://")).read_text()
    broken = html.replace("<h1>", "<script>window.planted=1</script><h1>")
    assert broken != html
    (tmp_path / "broken.html").write_text(broken)
    browser.open((tmp_path / "broken.html").as_uri())
    assert browser.run("window.planted === undefined")
    assert not browser.run("document.getElementById('filters').hidden"), "ours does run"
