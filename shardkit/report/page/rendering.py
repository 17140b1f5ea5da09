"""Templates to HTML: everything that comes from data is escaped, and only our script may run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from shardkit.units import readable

_FOLDER = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """A page from a template of this package and the values it names."""
    assets = {"style": _asset("style.css"), "script": _asset("script.js"), "policy": policy()}
    return _environment().get_template(template).render(assets | values)


def render_text(template: str, **values: Any) -> str:
    """A text that is no HTML, from a template of this package; values are put in as they are."""
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = _number
    return environment.get_template(template).render(values)


def policy() -> str:
    """The Content-Security-Policy: our style and script by their hashes, pictures from data: URLs.

    So a browser runs nothing that data brought, even if it were not escaped.
    """
    hashes = {
        name: f"'sha256-{_digest(file)}'"
        for name, file in (("style-src", "style.css"), ("script-src", "script.js"))
    }
    rules = ["default-src 'none'", "img-src 'self' data:", "base-uri 'none'", "form-action 'self'"]
    return "; ".join([*rules, *(f"{name} {value}" for name, value in hashes.items())])


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "size": readable, "percent": percent}
    return environment


def _asset(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _digest(name: str) -> str:
    return base64.b64encode(hashlib.sha256(str(_asset(name)).encode()).digest()).decode()


def _number(value: float) -> str:
    return f"{value:,.0f}"


def percent(part: float, whole: float) -> str:
    """A share as `12.3 %`; a dash where `whole` is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "–"
