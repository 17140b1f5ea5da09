"""The output folder: what may be in it, who may write to it, and what was begun there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shardkit.errors import BuildConflict, BuildFailed, StorageError
from shardkit.format.atomic import TEMPORARY_SUFFIX
from shardkit.format.codec import CODECS
from shardkit.format.layout import HUB_FILES, MANIFEST_NAME, TOKENIZER_FOLDER
from shardkit.processes import fork_no_more
from shardkit.sources.copies import has_copies

BUILDING = ".building"
APPENDING = "append"
"""The folder in BUILDING for the parts of an append, which has a dataset beside it."""
PLAN_NAME = "plan.json"
"""The file in the folder of a build that tells what was decided before the first part."""
_SHARD = re.compile(r"shard-\d{5,}(\..+)")
_REJECTS = re.compile(r"rejects(-\d+)?\.jsonl")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def building_folder(out: Path) -> Path:
    """Where everything is kept that is not part of the dataset yet."""
    return out / BUILDING


@contextmanager
def prepared(out: Path) -> Iterator[Path]:
    """Make the output folder, and give the folder in it for work in progress.

    What was made here and is empty at the end is removed. Raises BuildConflict when the output
    folder holds files that are neither shardkit's nor those of a repository on the hub.
    """
    _refuse_foreign(out)
    folder = building_folder(out)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BuildConflict(
            "the output is a file", where=str(out), fix="Give another folder with --out."
        )
    foreign = [p.name for p in sorted(out.iterdir())] if out.exists() else []
    foreign = [name for name in foreign if not is_ours(name) and name not in HUB_FILES]
    if foreign:
        raise BuildConflict(
            "the output folder holds other files",
            where=str(out),
            found=", ".join(foreign[:5]),
            fix="Give an empty or new folder with --out (these files are never removed).",
        )


def is_ours(name: str) -> bool:
    """Whether a file of this name in an output folder was written by shardkit."""
    plain = name.removeprefix(".").removesuffix(TEMPORARY_SUFFIX)
    known = {MANIFEST_NAME, TOKENIZER_FOLDER, BUILDING, BUILDING[1:]}
    shard = _SHARD.fullmatch(plain)
    is_shard = shard is not None and shard[1] in {codec.suffix for codec in CODECS.values()}
    return plain in known or is_shard or _REJECTS.fullmatch(plain) is not None


def clear_dataset(out: Path) -> None:
    """Remove a dataset; its manifest first, nothing that is not ours."""
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    for path in sorted(out.iterdir()):
        if path.name in (TOKENIZER_FOLDER, BUILDING) or not is_ours(path.name):
            continue
        path.unlink()
    for name in _TOKENIZER_FILES:
        (out / TOKENIZER_FOLDER / name).unlink(missing_ok=True)
    if (out / TOKENIZER_FOLDER).is_dir() and not any((out / TOKENIZER_FOLDER).iterdir()):
        (out / TOKENIZER_FOLDER).rmdir()


def clear_building(folder: Path, kept: Sequence[str] = ()) -> None:
    """Remove what is in a working folder, but its lock, and what is named."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in (*kept, "lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def clean(folder: Path) -> None:
    """Remove a working folder with all that is in it but an unfinished append."""
    clear_building(folder, [APPENDING])
    if not (folder / APPENDING).exists():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[IO[str]]:
    """Hold the folder: one writer at a time, or several parts of one Slurm array (`shared`).

    The lock goes with the process, however it ends. Raises BuildConflict when it is held. On a
    file system without locks (some Lustre mounts) nothing is held.
    """
    fork_no_more()  # a process forked from here on would hold the lock, too
    with open(folder / "lock", "a+") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            _flock(file, kind | fcntl.LOCK_NB)
            is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / "lock"))
        except OSError as err:
            file.seek(0)
            raise _in_use(folder, file.read().strip() or None) from err
        if not is_current:
            raise _in_use(folder, "one that has just ended")
        if not shared:
            file.truncate(0)
            file.write(f"process {os.getpid()}\n")
            file.flush()
        yield file


@contextmanager
def tidy(folder: Path, lock: IO[str]) -> Iterator[None]:
    """Empty a working folder in which nothing was built when the block refuses to go on.

    A build that failed (BuildFailed), was interrupted behind its plan or had begun before keeps
    what it has, and so does one that others are at work in too, or that was interrupted or lost
    its storage (StorageError) after it had fetched an input whole: the same command goes on with
    it. `lock`: what `locked` gave.
    """
    was_begun = (folder / PLAN_NAME).exists()
    try:
        yield
    except BuildFailed:
        raise
    except KeyboardInterrupt:
        if not (folder / PLAN_NAME).exists() and not has_copies(folder):
            _forget(folder, lock, was_begun)
        raise
    except StorageError:
        if not has_copies(folder):
            _forget(folder, lock, was_begun)
        raise
    except Exception:
        _forget(folder, lock, was_begun)
        raise


def _forget(folder: Path, lock: IO[str], was_begun: bool) -> None:
    """Empty a working folder in which nothing was begun before and no part was built."""
    is_built = any(folder.glob("part-*.json"))
    if not was_begun and not is_built and _is_alone(lock):
        clear_building(folder, [APPENDING])
        (folder / "lock").unlink(missing_ok=True)


def _is_alone(lock: IO[str]) -> bool:
    """Whether no other process holds this lock, which may be a shared one."""
    try:
        _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for this folder."""
    with open(folder / "planning", "a") as file:
        _flock(file, fcntl.LOCK_EX)
        yield


def _flock(file: IO[str], kind: int) -> None:
    try:
        fcntl.flock(file, kind)
    except OSError as err:
        if err.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise


def _in_use(folder: Path, found: str | None) -> BuildConflict:
    return BuildConflict(
        "another shardkit is writing this dataset",
        where=str(folder.parent),
        found=found,
        fix="Wait until it ends, or give another folder with --out.",
    )
