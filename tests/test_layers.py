"""Imports point one way only: no exceptions, also not for types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"cli"},
    {"integrations"},
    {"builder", "check", "report", "loader"},
    {"sources", "tokens", "images", "processors", "dataset"},
    {"format", "order", "storage"},
    {"conversation", "options", "processes", "ragged"},
    {"errors", "version", "units"},
]
"""A module may import from the rows below its own."""
FILES = sorted([*ROOT.glob("shardkit/**/*.py"), *ROOT.glob("cli/*.py")])
if not FILES:
    pytest.skip("the sources are not beside the tests", allow_module_level=True)


def layer_of(path: Path) -> str:
    """The folder, or the module at the top of shardkit/."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_command = parts[0] == "cli" or parts[1] == "__main__"
    return "cli" if is_command else parts[1]


def imports_of(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in the file that is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative name" if path.parent.name != "cli" else "."
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "shardkit":
                yield from (f"shardkit.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif is_import_call(node):
            assert isinstance(node, ast.Call)
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def is_import_call(node: ast.AST) -> bool:
    """importlib.import_module(...) or __import__(...)."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def row_of(layer: str) -> int:
    """The number of the row that a layer is in."""
    return next(number for number, row in enumerate(ROWS) if layer in row)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_right(path: Path) -> None:
    """A module imports its own folder and the rows to its right; neighbours stay strangers."""
    layer = layer_of(path)
    if layer == "__init__":
        return
    for module in imports_of(path):
        assert module != "a relative name", f"{name_of(path)} imports by a relative name"
        parts = module.split(".")
        if parts[0] == "shardkit_cli":
            assert layer == "cli", f"{name_of(path)} imports {module}"
        if parts[0] != "shardkit":
            continue
        assert len(parts) > 1, f"{name_of(path)} imports the front door of the library"
        is_right = parts[1] == layer or row_of(parts[1]) > row_of(layer)
        assert is_right, f"{name_of(path)} imports {module}"


def test_every_folder_has_a_row() -> None:
    """A new folder is put into the picture before it is used."""
    known = set().union(*ROWS) | {"__init__"}
    assert {layer_of(path) for path in FILES} <= known


TORCH = {"loader", "integrations"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_torch_stays_in_loader_and_integrations(path: Path) -> None:
    """Packing and checking do without torch; a function may import it where users ask for it."""
    if layer_of(path) not in TORCH:
        assert not [m for m in imports_of(path) if m.split(".")[0] in ("torch", "deepspeed")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_transformers_stays_in_tokens(path: Path) -> None:
    """Only who loads tokenizers or processors knows transformers, and imports it in a function."""
    found = [m for m in imports_of(path) if m.split(".")[0] == "transformers"]
    if found:
        assert layer_of(path) in ("tokens", "processors", "integrations"), name_of(path)
    if layer_of(path) == "integrations":
        return
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {"transformers", "rich", "datasets", "ray", "pyarrow", "fsspec"} & {
            name.split(".")[0] for name in names
        }, f"{name_of(path)} imports a heavy package when it is imported"
