"""From the name of a dataset and of a file in it to a local file that can be mapped."""

from __future__ import annotations

from pathlib import Path


def local_path(root: str | Path, name: str) -> Path:
    """The local file of `name` in the dataset at `root`.

    `name` comes from a manifest, which has checked that it is a plain file name.
    """
    return Path(root) / name


def is_local(root: str | Path) -> bool:
    """Whether the dataset's files are local ones, so that looking at them costs nothing."""
    return "://" not in str(root)
