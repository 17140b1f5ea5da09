"""Which files of a folder or glob are meant: those of a split, without those that are excluded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from shardkit.errors import BadInput

Split = Literal["train", "test", "all"]
_TESTS = re.compile(
    r"(?:^|[-_./])(?:test|validation|valid|val|dev|eval)(?:[-_./]|$)", re.IGNORECASE
)
"""A name of rows that are not trained on, or of a folder of such files."""
_NAMED = 5
"""Files that a message names."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of a folder or glob that is not packed, and why not."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Which files are meant of those that lie together."""

    split: Split
    exclude: Sequence[str]

    def not_excluded(self, names: Iterable[str], left_out: list[LeftOut]) -> list[str]:
        """The names that no pattern excludes; the others go to `left_out`."""
        names = list(names)
        excluded = {name for name in names if self._is_excluded(name)}
        left_out += [LeftOut(name, "as --exclude says") for name in names if name in excluded]
        return [name for name in names if name not in excluded]

    def of_split(self, names: Sequence[str], left_out: list[LeftOut], n_fixed: int) -> list[str]:
        """The names of the split; the others go to `left_out`.

        Test files are what is meant when nothing lies beside them, and without any of them there
        is nothing of the split `test`. `n_fixed`: so many first folders of a name are the user's
        own words, and say nothing.
        """
        found = {name for name in names if _TESTS.search("/".join(name.split("/")[n_fixed:]))}
        tests = [name for name in names if name in found]
        others = [name for name in names if name not in found]
        if self.split == "test" and not tests:
            return []
        if self.split == "all" or not tests or not others:
            return list(names)
        kept, left = (tests, others) if self.split == "test" else (others, tests)
        why = "as --split test says" if self.split == "test" else "test or validation rows"
        advice = "" if self.split == "test" else " (--split all packs all, --split test these)"
        left_out += [LeftOut(name, why + advice) for name in left]
        return kept

    def refuse_others(self, names: Sequence[str], strays: Sequence[str], where: str) -> None:
        """Raise BadInput when test files are asked for, and these are only others."""
        others = [name for name in names if name not in strays]
        if self.split != "test" or not others:
            return
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise BadInput(
            "there is no test or validation file here for --split test",
            where=where,
            expected="test, validation, valid, val, dev or eval in a file's or folder's name",
            found=", ".join(others[:_NAMED]) + more,
            fix="Name the files that are to be packed, or leave --split out.",
        )

    def _is_excluded(self, name: str) -> bool:
        last = name.rpartition("/")[2]
        return any(fnmatch(name, one) or fnmatch(last, one) for one in self.exclude)
