"""Writes the pages of docs/reference from the code; `--check` only says which are out of date."""

from __future__ import annotations

import argparse
import collections.abc
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from limits import LIMITS

import shardkit
from shardkit import errors
from shardkit.builder.build_engines import engine_options
from shardkit.builder.options import PackOptions
from shardkit.builder.options.kept import kept_options
from shardkit.conversation import Reason
from shardkit.format.layout import FORMAT_MAJOR, FORMAT_NAME
from shardkit.format.manifest import Manifest
from shardkit.loader.options import DATASET_PARTS, Access, Expected
from shardkit.options import flag_name, flag_of, hints_of

HEAD = "<!-- Written by docs/reference/make.py (make docs): change the code, not this page. -->\n"


def errors_page() -> str:
    """Every error class with what it means and the exit status it gives."""
    lines = ["# Errors", "", "All are in `shardkit.errors` and derive from `ShardkitError`, whose"]
    lines += ["attributes are `message`, `where`, `expected`, `found` and `fix`.", ""]
    lines += ["| class | meaning | exit status |", "|---|---|---|"]
    for name, cls in sorted(vars(errors).items()):
        if inspect.isclass(cls) and issubclass(cls, errors.ShardkitError):
            status = 2 if issubclass(cls, errors.UsageError) else 1
            summary = (cls.__doc__ or "").strip().splitlines()[0]
            lines.append(f"| `{name}` | {summary} | {status} |")
    lines += ["", "The command also exits with 0 when all is good and 130 when interrupted.", ""]
    return "\n".join(lines)


def reject_reasons_page() -> str:
    """The closed list of reasons for not keeping a row."""
    lines = ["# Reject reasons", "", "A row that is not kept stands in `rejects.jsonl` with one of"]
    lines += ["these reasons; the manifest counts them for each source file.", ""]
    lines += ["| reason | meaning |", "|---|---|"]
    lines += [f"| `{reason}` | {reason.meaning} |" for reason in Reason]
    return "\n".join([*lines, ""])


def templates_page() -> str:
    """The named templates and their pieces."""
    from shardkit.tokens.templates import TEMPLATES

    lines = ["# Templates", "", "Named templates are encoded piece by piece, as XTuner does."]
    lines += ["`--template tokenizer` takes the tokenizer's own chat template.", ""]
    for name in sorted(TEMPLATES):
        lines += [f"## {name}", "", "| piece | text |", "|---|---|"]
        for field, value in asdict(TEMPLATES[name]).items():
            if field == "name" or value in (None, "", ()):
                continue
            text = repr(value)[1:-1] if isinstance(value, str) else str(value)
            lines.append(f"| {field} | `{text}` |".replace("<|", "<\\|").replace("|>", "\\|>"))
        lines.append("")
    return "\n".join(lines)


def sources_page() -> str:
    """The source formats and the fields they read."""
    from shardkit.sources import SOURCES

    lines = ["# Source formats", "", "`--format auto` looks at the first rows and says what it"]
    lines += [
        "chose. JSON array, JSONL, gzip and zstd of both, Parquet, folders of "
        "`datasets.save_to_disk` and webdataset tars are read."
    ]
    lines += ["What each field means: [rows](../how-to/rows.md).", ""]
    lines += ["| format | fields |", "|---|---|"]
    lines += [f"| `{name}` | {SOURCES[name].fields} |" for name in SOURCES]
    return "\n".join([*lines, ""])


def limits_page() -> str:
    """Every limit with what happens beyond it and the option that moves it."""
    lines = ["# Limits", "", "What shardkit takes at most, what happens beyond it, and the option"]
    lines += ["that moves it. Input is not trusted: a row beyond a limit is rejected with the"]
    lines += ["[reason](reject-reasons.md) named here, and its neighbours are kept. The format's"]
    lines += ["own limits: [docs/format.md](../format.md), section 12.", ""]
    for title, rows in LIMITS.items():
        lines += [f"## {title}", "", "| what | limit | beyond it | option |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(lines)


def cli_page() -> str:
    """The help of every command."""
    from shardkit_cli.main import COMMANDS, make_parser

    parsers = {"shardkit": make_parser(None)} | {
        f"shardkit {name}": make_parser(name) for name in COMMANDS
    }
    lines = ["# Commands", ""]
    for title, parser in parsers.items():
        lines += [f"## {title}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def defaults_page() -> str:
    """What each option of a pack is when nobody says anything, and where the manifest keeps it."""
    lines = ["# Defaults of a pack", "", "What `shardkit pack` and `shardkit.pack` do unless told"]
    lines += ["otherwise. An option *in the recipe* decides tokens: datasets with another value"]
    lines += ["are not merged or mixed. One that is there *if given* leaves the recipe as it was"]
    lines += ["before the option existed.", ""]
    hints, kept = hints_of(PackOptions), kept_options(PackOptions)
    groups: dict[str, list[str]] = {}
    for field in msgspec.structs.fields(PackOptions):
        flag = flag_of(hints[field.name])
        if flag is None:
            continue
        place = kept.get(field.name)
        where = "-" if place is None else f"in the {place.place}"
        where += "" if place is None or place.always else ", if given"
        cells = [f"`{flag.name or flag_name(field.name)}`", f"`{_default(field.default)}`", where]
        groups.setdefault(flag.group or "rows and shards", []).append(
            "| " + " | ".join([*cells, flag.help.replace("|", "\\|")]) + " |"
        )
    for group, rows in groups.items():
        lines += [f"## {group}", "", "| option | default | kept | what it says |"]
        lines += ["|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None:
        return "not given"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def api_page() -> str:
    """The public names with their signatures and docstrings."""
    lines = ["# Library", ""]
    for name in shardkit.__all__:
        value = getattr(shardkit, name)
        if not callable(value):
            continue
        lines += [f"## shardkit.{name}", "", "```python", signature(name, value), "```", ""]
        lines += [inspect.getdoc(value) or "", ""]
        for method in ("set_epoch", "state_dict", "load_state_dict", "__len__", "__getitem__"):
            function = vars(value).get(method) if inspect.isclass(value) else None
            if function is not None and function.__doc__:
                lines += [f"**{method}**{inspect.signature(function)}", ""]
                lines += [inspect.getdoc(function) or "", ""]
    return "\n".join(lines)


def signature(name: str, value: object) -> str:
    """One argument a line when it does not fit one line."""
    assert callable(value)  # noqa: S101
    try:
        text = f"{name}{inspect.signature(value)}"
    except ValueError:
        return name
    if len(text) <= 90 and "Unpack[" not in text:
        return _plain(text)
    lines, seen_star = [], False
    for parameter in _unpacked(value):
        if parameter.kind is parameter.KEYWORD_ONLY and not seen_star:
            lines.append("    *,")
            seen_star = True
        lines.append(f"    {parameter},")
    return _plain("\n".join([f"{name}(", *lines, ")"]))


def _unpacked(value: Callable[..., object]) -> Iterator[inspect.Parameter]:
    """The parameters; those that are passed on to options classes one by one."""
    function = value.__init__ if inspect.isclass(value) else value
    hints = get_type_hints(function) if inspect.isfunction(function) else {}
    passed_on: dict[Any, tuple[type[msgspec.Struct], ...]] = {
        "Unpack[PackArguments]": (PackOptions, *engine_options()),
        "Unpack[TableOptions]": (Expected, Access),
    }
    if value is shardkit.ShardDataset:  # the others refer to it
        passed_on["Unpack[DatasetOptions]"] = DATASET_PARTS
    for parameter in inspect.signature(value).parameters.values():
        if parameter.annotation in passed_on:
            yield from _options(*passed_on[parameter.annotation])
        elif parameter.name in hints:
            yield parameter.replace(annotation=_type_name(hints[parameter.name]))
        else:
            yield parameter


def _options(*sources: type[msgspec.Struct]) -> Iterator[inspect.Parameter]:
    """The fields of options classes as parameters, without what `Annotated` adds."""
    for source in sources:
        hints = get_type_hints(source)
        for field in sorted(msgspec.structs.fields(source), key=lambda one: not one.required):
            default = inspect.Parameter.empty if field.required else field.default
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=_type_name(hints[field.name]),
            )


def _type_name(hint: Any) -> str:
    """A type as one writes it: no `typing.`, no Optional."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(_type_name, parts)))
    if hint is type(None):
        return "None"
    name = getattr(hint, "__name__", str(hint))
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(map(repr, parts))}]"
    if get_origin(hint) is collections.abc.Callable:
        inner = ", ".join(map(_type_name, parts[0]))
        return f"Callable[[{inner}], {_type_name(parts[1])}]"
    return f"{name}[{', '.join(map(_type_name, parts))}]" if parts else name


def _plain(text: str) -> str:
    """Annotations without the quotes that postponed evaluation leaves around them."""
    return re.sub(r"""(: |-> )(?:'([^']*)'|"([^"]*)")""", r"\1\2\3", text)


def manifest_schema() -> str:
    """JSON Schema of manifest.json: every field of version 1.0 is there, others may be."""
    schema = msgspec.json.schema(Manifest)
    fields = schema["$defs"]["Manifest"]
    del fields["properties"]["extra"]
    fields["properties"] |= {
        "format": {"const": FORMAT_NAME},
        "version": {"type": "string", "pattern": rf"^{FORMAT_MAJOR}\."},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    }
    fields["required"] = sorted(fields["properties"])
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted")).decode() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "reject-reasons.md": reject_reasons_page,
    "templates.md": templates_page,
    "sources.md": sources_page,
    "limits.md": limits_page,
    "cli.md": cli_page,
    "defaults.md": defaults_page,
    "api.md": api_page,
    "manifest.schema.json": manifest_schema,
}


def main() -> int:
    """Write all pages, or with --check name those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    folder = Path(__file__).parent
    stale = []
    for name, make in PAGES.items():
        text = make() if name.endswith(".json") else HEAD + make()
        path = folder / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print("out of date, run `make docs`:", *stale, file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
