"""Options are checked at the door: a wrong one is a UsageError that names it and what was meant."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pytest

from shardkit.errors import UsageError
from shardkit.options import FilePaths, Fits, Flag, OneOf, Positive, checked, validated

TABLE = {"none": 0, "best-fit": 1}
NAMES = OneOf(lambda: TABLE)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of each kind."""

    needed: Annotated[Any, Fits("something", lambda value: value is not None)]
    packing: Annotated[str, NAMES] = "none"
    fit: Literal["pad", "crop"] = "pad"
    max_length: Annotated[Positive | None, Flag("tokens", "N")] = None
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    strict: bool = False
    part: tuple[Positive, Positive] | None = None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("packing", "bestfit", "Did you mean best-fit"),
        ("packing", None, "expected none or best-fit, found None"),
        ("fit", "Crop", "Did you mean crop"),
        ("fit", 0, "expected pad or crop, found 0"),
        ("max_length", 0, "expected a whole number from 1 or None, found 0"),
        ("max_length", -1, "max_length (--max-length)"),
        ("max_length", 8.0, "found 8.0"),
        ("max_length", True, "found True"),
        ("max_length", "8", "found '8'"),
        ("share", 1.5, "a number from 0 to 1"),
        ("share", float("nan"), "found nan"),
        ("share", None, "found None"),
        ("strict", 1, "expected True or False"),
        ("part", (0, 2), "found (0, 2)"),
        ("part", (1, 2, 3), "(a whole number from 1, a whole number from 1) or None"),
        ("needed", None, "expected something"),
        ("max_lenght", 5, "Did you mean max_length"),
        ("qqqqqqq", 5, "The options are needed, packing"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object, says: str) -> None:
    """The error says which option, what was found, what is expected, and what was meant."""
    with pytest.raises(UsageError) as caught:
        validated(Options, {"needed": 1, name: value})
    assert name in caught.value.message
    assert says in str(caught.value)


def test_a_missing_option_is_named() -> None:
    """An option without a default has to be given."""
    with pytest.raises(UsageError, match="needed is missing"):
        validated(Options, {})


def test_right_values_are_taken_as_their_types() -> None:
    """NumPy's numbers become Python's, which the manifest can hold; lists become tuples."""
    given = {"needed": "x", "max_length": np.int64(8), "share": np.float32(0.5), "part": [1, 2]}
    options = validated(Options, given)
    assert (options.max_length, options.share, options.part) == (8, 0.5, (1, 2))
    assert type(options.max_length) is int
    assert pickle.loads(pickle.dumps(options)) == options


def test_a_table_entry_may_be_chosen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to a table needs no second place."""
    monkeypatch.setitem(TABLE, "toy", 2)
    assert validated(Options, {"needed": 1, "packing": "toy"}).packing == "toy"


@checked
def takes(paths: FilePaths, *, workers: Positive = 1) -> object:
    """A function whose signature is its definition of options."""
    return paths, workers


def test_a_signature_is_checked_too() -> None:
    """Arguments by position and by name; unknown names; paths that are none."""
    assert takes("a") == ("a", 1)
    assert takes([Path("a"), "b"], workers=2) == ([Path("a"), "b"], 2)
    for wrong in ("", "a\0b", [], [""], 5, None, {"a"}):
        with pytest.raises(UsageError, match="paths has a wrong value"):
            takes(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="workers"):
        takes("a", workers=0)
    with pytest.raises(UsageError, match="Did you mean workers"):
        takes("a", wokers=2)  # type: ignore[call-arg]
