"""What of a URL may be shown: no user, and no query of a web address, which may be signed."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_USER = re.compile(r"(?<=://)[^/?#@]*@")
_WEB = ("http", "https")


def without_user(url: str) -> str:
    """The URL without user and password; an "@" of its path, a revision's, stays."""
    return _USER.sub("", url)


def shown_url(url: str) -> str:
    """The URL without user, password and query."""
    url = without_user(url)
    return url.partition("?")[0].partition("#")[0] if is_web(url) else url


def split_query(url: str) -> tuple[str, str]:
    """A URL before its query, and the query with its "?"; only a web address has one."""
    place, mark, query = url.partition("?") if is_web(url) else (url, "", "")
    return place.rstrip("/") if mark else place, mark + query


def is_web(url: str) -> bool:
    """Whether a web server answers, which has queries and no list of its files."""
    return urlsplit(url).scheme.lower() in _WEB


def redacted(text: str, url: str) -> str:
    """A message about a URL, without what is secret in it."""
    text = _USER.sub("", text)
    query = url.partition("?")[2] if is_web(url) else ""
    return text.replace(query, "...") if query else text
