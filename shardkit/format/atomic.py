"""Files that appear whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def appear(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; it becomes visible, complete and on disk, when the block ends well.

    Until then the bytes are in `.<name>.partial` in the same folder, which an error removes and
    a kill leaves (the next writer of the same file replaces it).
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def link_or_copy(old: Path, new: Path, *, copy: bool = False) -> None:
    """Give a file a second name: a hard link where the file system can, else a copy, never a part.

    `copy`: never a link. The file itself is linked, not a symbolic link to it, which would lead
    elsewhere from another folder (those of the hub's cache are relative). Raises OSError.
    """
    temporary = new.with_name(f".{new.name}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    try:
        if copy:
            raise OSError(errno.EXDEV, "asked for a copy")
        os.link(os.path.realpath(old), temporary)
        os.replace(temporary, new)
        temporary.unlink(missing_ok=True)  # it stays where both names are one file already
    except OSError as err:
        if err.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        with open(old, "rb") as source, appear(new) as target:
            shutil.copyfileobj(source, target, 1 << 20)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename is not, until its folder is synced)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
