"""Numbers as people write them: 64M, 200KB, 1GiB, 4k."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?B)?|B)?", re.I)
_COUNT = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([KMG])?", re.I)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.I)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def size_of(text: str) -> int:
    """Bytes of 64M, 64MiB (powers of 1,024), 64MB (powers of 1,000) or 65536; raises ValueError."""
    found = _SIZE.fullmatch(text.strip()) if text.isascii() else None
    if found is None:
        raise ValueError(f"{text!r} is not a size like 64M, 200KB or 1GiB")
    number, unit, rest = found[1], (found[2] or "").upper(), (found[3] or "").upper()
    base = 1000 if rest == "B" else 1024
    return _whole(text, Fraction(number) * base ** _POWERS[unit])


def count_of(text: str) -> int:
    """A whole number: 5000, 5k or 2M (powers of 1,000); raises ValueError."""
    return _times(text, 1000)


def length_of(text: str) -> int:
    """Tokens, as contexts are named: 4096, 4k, 128k (powers of 1,024); raises ValueError."""
    return _times(text, 1024)


def _times(text: str, base: int) -> int:
    found = _COUNT.fullmatch(text.strip().replace("_", "")) if text.isascii() else None
    if found is None:
        raise ValueError(f"{text!r} is not a whole number like 4096 or 4k")
    return _whole(text, Fraction(found[1]) * base ** _POWERS[(found[2] or "").upper()])


def _whole(text: str, value: Fraction) -> int:
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


def rows_or_share(text: str) -> float:
    """A number of rows (100, 5k), or a share of them (0.01, 1%); raises ValueError."""
    plain = text.strip()
    try:
        if plain.endswith("%"):
            share = float(Fraction(plain[:-1].strip()) / 100)
            if 0 <= share < 1:
                return share
        elif plain.isascii():
            number = float(plain) if _NUMBER.fullmatch(plain) else float(count_of(plain))
            if 0 <= number < math.inf:
                return number
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"{text!r} is not a number of rows, or a share of them like 0.01 or 1%")


def side_of(text: str) -> int:
    """Pixels of a square's side: 336, 336px or 336x336; raises ValueError."""
    width, _, height = text.lower().strip().removesuffix("px").partition("x")
    if height and height != width:
        raise ValueError(f"{text!r} is no square: give the one side, as 336")
    return count_of(width)


def count_or_auto(text: str) -> int | str:
    """A number of processes, or `auto`; raises ValueError."""
    if text == "auto":
        return text
    if not text.isdecimal():
        raise ValueError(f"expected a number of processes or auto, found {text!r}")
    return int(text)


def readable(n_bytes: float) -> str:
    """Bytes as people read them: 1.2 MB, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:,.0f} B" if unit == "B" else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"
