"""A record while it is read: its objects, and which of their keys somebody has read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shardkit.conversation import Reason
from shardkit.format.recipe import SFT, Task
from shardkit.sources.fields import BadField, as_id, as_list, as_object, as_text
from shardkit.sources.unread_keys import is_absent, why_it_matters

Unread = Counter[str]
"""How often each key was read by nobody, by its path: `$.messages[].timestamp`."""
MAX_PATHS = 200
"""Paths that are counted one by one; a file with more has data for keys."""
OTHER_PATHS = "(other paths)"
_NUMBER = re.compile(r"\[\d+\]")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the user says about all records."""

    system: str | None = None
    """A system message for conversations that have none."""
    columns: Mapping[str, str] | None = None
    """Our name of a field -> the name that the file's records have for it."""
    ignored: frozenset[str] = frozenset()
    """Keys that are not read, wherever they stand, and reject no row."""
    has_images: bool = False
    """Images are stored, so `<image>` in a text is one."""
    task: Task = SFT
    """What the rows are for: `sft`, `preference` or `kto`."""

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> ReadOptions:
        """What a dataset's recipe says."""
        return cls(
            system=recipe["system"],
            columns=recipe.get("columns") or None,
            ignored=frozenset(recipe.get("ignored_fields") or ()),
            has_images=recipe["images"] is not None,
            task=recipe.get("task", SFT),
        )


class Fields:
    """One JSON object of a record. What is got from it counts as read."""

    __slots__ = ("_counted", "_ignored", "_names", "_read", "_values", "path")

    def __init__(
        self,
        values: Mapping[str, object],
        path: str,
        ignored: frozenset[str],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._values = values
        self._names = names
        """Our name of a key -> the file's, where they differ."""
        self._read: set[str] = set()
        self._counted: set[str] = set()
        self._ignored = ignored

    def __contains__(self, key: str) -> bool:
        return key in self._values and not self._is_ignored(key)

    @property
    def values(self) -> Mapping[str, object]:
        """All keys and values of the object, none of them read by this."""
        return self._values

    def at(self, key: str) -> str:
        """The path of a key, as the file calls it."""
        return f"{self.path}.{self._name(key)}"

    def get(self, key: str) -> object:
        """The value, as it is; None when there is none."""
        if self._ignored and self._is_ignored(key):
            return None
        self._read.add(key)
        return self._values.get(key)

    def peek(self, key: str) -> object:
        """The value, without counting it as read."""
        return self._values.get(key) if not self._is_ignored(key) else None

    def has_any(self, keys: frozenset[str]) -> bool:
        """Whether any of these keys is there, be it ignored or not."""
        return not keys.isdisjoint(self._values)

    def _name(self, key: str) -> str:
        return self._names.get(key, key) if self._names else key

    def _is_ignored(self, key: str) -> bool:
        return bool(self._ignored) and (key in self._ignored or self._name(key) in self._ignored)

    def text(self, key: str) -> str:
        """A string that must be there; raises BadField."""
        if key not in self:
            raise BadField(self.at(key), "is missing")
        return as_text(self.get(key), self.at(key))

    def optional_text(self, key: str) -> str | None:
        """A string, or None when it is absent, null or empty."""
        value = self.get(key)
        return None if is_absent(value) else as_text(value, self.at(key))

    def optional_list(self, key: str) -> list[object]:
        """A list, empty when it is absent, null or empty text."""
        value = self.get(key)
        return [] if is_absent(value) else as_list(value, self.at(key))

    def id(self) -> str | None:
        """The record's own id as text: words or a whole number; anything else there is not read."""
        found = as_id(self.peek("id"))
        if found is not None:
            self._read.add("id")
        return found

    def keys(self) -> list[str]:
        """The names that the object has, as the file spells them."""
        return [self._name(key) for key in self._values]

    def only_count(self, key: str) -> None:
        """Leave a key unread that changes nothing here, whatever its name says."""
        self._counted.add(key)

    def rest(self) -> dict[str, object]:
        """All keys and values that were not read, without absent ones; they stay unread."""
        return {
            key: value
            for key, value in self._values.items()
            if key not in self._read and not is_absent(value) and not self._is_ignored(key)
        }

    def unread(self) -> Iterator[str]:
        """The paths of keys that nobody read; BadField for one that changes the meaning."""
        values, read = self._values, self._read
        if len(values) <= len(read) and values.keys() <= read:
            return
        for key, value in values.items():
            if key in read or is_absent(value):
                continue
            if not self._is_ignored(key) and key not in self._counted:
                why = why_it_matters(key, value, "chosen" in values or "rejected" in values)
                if why is not None:
                    raise unsupported(self.at(key), why, self._name(key))
            yield self.at(key)


def unsupported(path: str, why: str, key: str | None) -> BadField:
    """The reason to reject a row for a key that nobody can use, and that may be dropped."""
    detail = f"{why} (--ignore-field {key} drops it)" if key else why
    return BadField(path, detail, Reason.UNSUPPORTED_FIELD)


class Record:
    """One record and the objects in it that were opened."""

    __slots__ = ("_objects", "options", "value")

    def __init__(self, value: object, options: ReadOptions) -> None:
        self.value = value
        self.options = options
        self._objects: list[Fields] = []

    def root(self) -> Fields:
        """The record itself, which must be an object; raises BadField."""
        options = self.options
        root = Fields(as_object(self.value, "$"), "$", options.ignored, self._names())
        self._objects.append(root)
        return root

    def _names(self) -> Mapping[str, str] | None:
        """Our names of columns -> the file's: those of --map, and of what gave way to one."""
        columns = self.options.columns
        if not columns:
            return None
        return {theirs: ours for ours, theirs in columns.items()} | dict(columns)

    def object(self, value: object, path: str) -> Fields:
        """An object in the record; raises BadField for anything else."""
        opened = Fields(as_object(value, path), path, self.options.ignored)
        self._objects.append(opened)
        return opened

    def count_unread(self, unread: Unread) -> None:
        """Count the keys that nobody read; BadField for one that changes the meaning."""
        found = [path for opened in self._objects for path in opened.unread()]
        for path in found:
            count_path(unread, _NUMBER.sub("[]", path), 1)


def count_path(unread: Unread, path: str, n: int) -> None:
    """Count a path, as another one where there are too many."""
    is_new = path not in unread and len(unread) >= MAX_PATHS
    unread[OTHER_PATHS if is_new else path] += n


def renamed(value: object, columns: Mapping[str, str] | None) -> object:
    """The record with our names for its columns.

    A column that has one of these names itself gives way: it gets the name that became free.
    """
    if not columns or not isinstance(value, dict):
        return value
    ours = {theirs: name for name, theirs in columns.items()}
    found = {ours.get(key, key): item for key, item in value.items()}
    if len(found) == len(value):
        return found
    for name, theirs in columns.items():
        if name in value and theirs in value and name not in ours:
            found[name] = value[theirs]
            if theirs not in columns:
                found[theirs] = value[name]
    return found


def without_ignored(record: object, options: ReadOptions) -> object:
    """A record that has our names for its columns, without keys that are not read."""
    if not options.ignored or not isinstance(record, dict):
        return record
    fields = Record(record, options).root()
    return {key: item for key, item in record.items() if key in fields}
