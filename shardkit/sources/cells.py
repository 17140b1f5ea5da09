"""Cells of tables as JSON values: Arrow's JSON type is decoded, its maps are objects, and the
members that it makes up are left out.

Arrow gives all structs of a column the same members, null where a row had none. In tool
definitions and calls, which templates print as they are, these would be words of the model.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from shardkit.sources.json_value import from_text

Dropped = MutableMapping[str, int]
"""How many null members of structs were left out, by path."""
CellReader = Callable[[Any], Any]
_PRINTED = ("tools", "functions", "tool_calls", "function_call")
"""Keys whose values templates print whole."""
_JSON = "arrow.json"


def cell_readers(schema: Any, dropped: Dropped) -> dict[str, CellReader]:
    """What must be done to a value as pyarrow gives it, by column; most columns need nothing."""
    found = {field.name: _reader(field, f"$.{field.name}", False, dropped) for field in schema}
    return {name: read for name, read in found.items() if read is not None}


def _reader(field: Any, path: str, is_printed: bool, dropped: Dropped) -> CellReader | None:
    if _is_json(field):
        return lambda value: from_text(value) if isinstance(value, str) else value
    kind = field.type
    is_printed |= field.name in _PRINTED
    if hasattr(kind, "item_field"):
        read_value = _reader(kind.item_field, f"{path}{{}}", is_printed, dropped) or _as_it_is
        return lambda pairs: None if pairs is None else {k: read_value(v) for k, v in pairs}
    if hasattr(kind, "value_field"):
        read_item = _reader(kind.value_field, f"{path}[]", is_printed, dropped)
        if read_item is None:
            return None
        return lambda items: None if items is None else [read_item(item) for item in items]
    if _is_struct(kind):
        return _struct_reader(kind, path, is_printed, dropped)
    return None


def _as_it_is(value: Any) -> Any:
    return value


def _struct_reader(kind: Any, path: str, is_printed: bool, dropped: Dropped) -> CellReader | None:
    members = [kind.field(i) for i in range(kind.num_fields)]
    readers = {one.name: _reader(one, f"{path}.{one.name}", is_printed, dropped) for one in members}
    if not is_printed and not any(readers.values()):
        return None

    def read(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        found = {}
        for name, item in value.items():
            if item is None and is_printed:
                key = f"{path}.{name} (null, as Arrow fills structs up)"
                dropped[key] = dropped.get(key, 0) + 1
                continue
            inner = readers[name]
            found[name] = item if inner is None else inner(item)
        return found

    return read


def _is_json(field: Any) -> bool:
    """Whether a field is of Arrow's JSON type, also for a pyarrow that does not know it."""
    name = getattr(field.type, "extension_name", None)
    marks = field.metadata or {}
    return name == _JSON or marks.get(b"ARROW:extension:name") == _JSON.encode()


def _is_struct(kind: Any) -> bool:
    return hasattr(kind, "num_fields") and str(kind).startswith("struct<")


def is_sound_but_for_text(pyarrow: Any, table: Any) -> bool:
    """Whether a table is valid when its text is taken as bytes.

    A slice of a nested column keeps the text of all rows, and so does a dictionary: validating a
    slice says that each of its rows is bad. When nothing but text is wrong, decoding a row says
    whether it is the one.
    """
    try:
        for column in table.columns:
            for chunk in column.chunks:
                chunk = getattr(chunk, "storage", chunk)
                chunk.view(_as_bytes(pyarrow, chunk.type)).validate(full=True)
    except (pyarrow.ArrowException, ValueError, TypeError):
        return False
    return True


def _as_bytes(pyarrow: Any, kind: Any) -> Any:
    """A type with binary in the place of text, for the buffers that it has now."""
    types = pyarrow.types
    if types.is_string(kind):
        return pyarrow.binary()
    if types.is_large_string(kind):
        return pyarrow.large_binary()
    if types.is_struct(kind):
        members = [kind.field(i) for i in range(kind.num_fields)]
        return pyarrow.struct([one.with_type(_as_bytes(pyarrow, one.type)) for one in members])
    if types.is_dictionary(kind):
        return pyarrow.dictionary(kind.index_type, _as_bytes(pyarrow, kind.value_type))
    make = {pyarrow.lib.ListType: pyarrow.list_, pyarrow.lib.LargeListType: pyarrow.large_list}
    if type(kind) in make:
        item = kind.value_field
        return make[type(kind)](item.with_type(_as_bytes(pyarrow, item.type)))
    return kind
