"""Fields of a record, checked; what is wrong becomes a Reject that names the path."""

from __future__ import annotations

from collections.abc import Mapping

from shardkit.conversation import Reason, Reject


class BadField(Exception):
    """A field that the format needs is missing or has the wrong type. Never leaves sources/."""

    def __init__(self, path: str, problem: str, reason: Reason = Reason.BAD_RECORD) -> None:
        super().__init__(path, problem)
        self.reject = Reject(reason, f"{path}: {problem}")


_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
_KINDS |= {str: "a string", list: "a list", dict: "an object"}


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), type(value).__name__)


def as_object(value: object, path: str) -> Mapping[str, object]:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise BadField(path, f"expected an object, found {kind_of(value)}")
    return value


def as_list(value: object, path: str) -> list[object]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise BadField(path, f"expected a list, found {kind_of(value)}")
    return value


def as_text(value: object, path: str) -> str:
    """The value, which must be a string."""
    if not isinstance(value, str):
        raise BadField(path, f"expected a string, found {kind_of(value)}")
    return value


def text(record: Mapping[str, object], key: str, path: str = "$") -> str:
    """A string that must be there."""
    if key not in record:
        raise BadField(f"{path}.{key}", "is missing")
    return as_text(record[key], f"{path}.{key}")


def optional_text(record: Mapping[str, object], key: str, path: str = "$") -> str | None:
    """A string, or None when it is absent or null."""
    value = record.get(key)
    return None if value is None else as_text(value, f"{path}.{key}")


def record_id(record: Mapping[str, object]) -> str | None:
    """The record's own id as text; anything but a string or a number counts as none."""
    value = record.get("id")
    is_name = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if is_name else None


def image_list(record: Mapping[str, object], keys: tuple[str, ...]) -> tuple[str, ...]:
    """The image paths of a record: a string, a list of strings or objects, or none."""
    for key in keys:
        value = record.get(key)
        if value is None or value == "":
            continue
        items = value if isinstance(value, list) else [value]
        return tuple(image_path(item, f"$.{key}[{i}]") for i, item in enumerate(items))
    return ()


def image_path(value: object, path: str) -> str:
    """One image reference: a path, or an object that holds one."""
    if isinstance(value, dict):
        for key in ("path", "url", "image", "image_url"):
            if value.get(key) is not None:
                return image_path(value[key], f"{path}.{key}")
        raise BadField(path, "an image without path, url or image")
    return as_text(value, path)
