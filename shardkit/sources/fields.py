"""Values of a record, checked; what is wrong becomes a Reject that names the path."""

from __future__ import annotations

from collections.abc import Mapping

from shardkit.conversation import Reason, Reject
from shardkit.sources.json_value import NotJson, from_text


class BadField(Exception):
    """What is wrong with a record, at which path, as a Reject. Never leaves sources/."""

    def __init__(self, path: str, problem: str, reason: Reason = Reason.BAD_RECORD) -> None:
        super().__init__(path, problem)
        self.reject = Reject(reason, f"{path}: {problem}")


_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
_KINDS |= {str: "a string", list: "a list", dict: "an object", bytes: "bytes"}


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), type(value).__name__)


def as_object(value: object, path: str) -> Mapping[str, object]:
    """The value, which must be an object; raises BadField."""
    if not isinstance(value, dict):
        raise BadField(path, f"expected an object, found {kind_of(value)}")
    return value


def as_list(value: object, path: str) -> list[object]:
    """The value, which must be a list; raises BadField."""
    if not isinstance(value, list):
        raise BadField(path, f"expected a list, found {kind_of(value)}")
    return value


def as_text(value: object, path: str) -> str:
    """The value, which must be a string; raises BadField."""
    if not isinstance(value, str):
        raise BadField(path, f"expected a string, found {kind_of(value)}")
    return value


def as_id(value: object) -> str | None:
    """A record's own id as text; anything but words or a whole number counts as none."""
    is_name = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
    return str(value) if is_name else None


def from_json(value: object, path: str) -> object:
    """The value, which may be written as JSON text; raises BadField."""
    if not isinstance(value, str):
        return value
    try:
        return from_text(value)
    except NotJson as err:
        raise BadField(path, f"not JSON: {err}") from None
