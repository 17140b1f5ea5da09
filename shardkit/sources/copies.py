"""Inputs that are no files here, stdin and URLs: copied into the work folder, then read as files.

Nothing of a URL's credentials is kept: a copy's place is a digest, and what names the file in
messages and in a manifest has neither user nor query.
"""

from __future__ import annotations

import filecmp
import glob
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from shardkit.errors import BadInput
from shardkit.format.atomic import appear
from shardkit.storage.single import RemoteFile, listed, remote_file
from shardkit.storage.urls import is_web, shown_url, without_user

STDIN = "-"
DEPTH = 3
"""Levels of folders that are looked through: the one that is named, those in it, and in these."""
_BLOCK_BYTES = 1 << 20
_FOLDER = "inputs"
"""The folder of copies in the work folder."""

OnBytes = Callable[[str, int, int], None]
"""Called with a name, the bytes of it that are here, and all its bytes (0: not known)."""


class _Kept(msgspec.Struct):
    """What is known of a copy, beside it."""

    n_bytes: int
    mark: str
    """What the storage says of its version; empty where it says nothing."""


@dataclass(slots=True)
class Copies:
    """Copies of inputs in a work folder. One that is whole, and still of the same size and version
    as the original, is not fetched again; one whose storage tells no version always is."""

    folder: Path
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    on_bytes: OnBytes | None = None

    def stdin(self) -> Path:
        """All of stdin; raises BadInput when nothing comes."""
        out = self.folder / _FOLDER / "stdin"
        out.parent.mkdir(parents=True, exist_ok=True)
        n_bytes = 0
        with appear(out) as file:
            while block := sys.stdin.buffer.read(_BLOCK_BYTES):
                file.write(block)
                n_bytes += len(block)
                self._tell("stdin", n_bytes, 0)
        if not n_bytes:
            raise BadInput("nothing came", where="stdin", fix="Pipe rows into it, or name a file.")
        return out

    def of(self, url: str) -> Path:
        """The copy of the file at a URL.

        Raises BadInput when it is not there or changes while it is fetched, StorageError.
        """
        source = remote_file(url, self.storage_options)
        digest = hashlib.sha256(without_user(url).encode()).hexdigest()[:16]
        out = self.folder / _FOLDER / digest / self.place_of(url).name
        out.parent.mkdir(parents=True, exist_ok=True)
        record = out.with_name(out.name + ".is")
        now = _existing(source, shown_url(url))
        is_kept = out.is_file() and _kept(record) == now and out.stat().st_size == now.n_bytes
        if now.mark and is_kept:
            return out
        name, fresh = out.name, out.with_name(out.name + ".new")
        with appear(fresh) as file:
            source.copy(file, now.n_bytes, lambda done, total: self._tell(name, done, total))
            if _existing(source, shown_url(url)) != now:
                raise BadInput(
                    "the input changed while it was fetched",
                    where=shown_url(url),
                    fix="Run the command again when nobody writes the file any more.",
                )
        if is_kept and filecmp.cmp(fresh, out, shallow=False):
            fresh.unlink()  # others may be reading the one that was there
            return out
        record.unlink(missing_ok=True)
        os.replace(fresh, out)
        with appear(record) as file:
            file.write(msgspec.json.encode(_Kept(out.stat().st_size, now.mark)))
        return out

    def levels(self, url: str, suffixes: Sequence[str]) -> list[dict[str, str]] | None:
        """The data files that a folder or glob at a URL means, by relative name; None for a file.

        As on this machine: files of the folder, then those of the folders in it, and so on.
        Raises BadInput when there is none.
        """
        if is_web(url):
            return None
        is_glob = glob.has_magic(url)
        try:
            files = listed(url, self.storage_options, is_glob=is_glob, depth=DEPTH)
        except FileNotFoundError as err:
            raise _missing(url, err) from err
        if files is None:
            return None
        if not is_glob:
            files = {name: at for name, at in files.items() if name.endswith(tuple(suffixes))}
        if not files:
            raise BadInput(
                "there is no file to read here, nor in the folders of two levels down",
                where=shown_url(url),
                expected=", ".join(suffixes),
                fix="Name the files, as a glob in quotes.",
            )
        depths = sorted({0 if is_glob else name.count("/") for name in files})
        return [
            {name: files[name] for name in sorted(files) if is_glob or name.count("/") == depth}
            for depth in depths
        ]

    def place_of(self, url: str) -> Path:
        """A path that names the file: host and path of the URL."""
        host, _, path = shown_url(url).partition("://")[2].partition("/")
        place = Path(os.path.normpath(Path("/") / host / unquote(path)))
        return place if place.name else place / "input"

    def _tell(self, name: str, n_done: int, n_total: int) -> None:
        if self.on_bytes is not None:
            self.on_bytes(name, n_done, n_total)


def has_copies(folder: Path) -> bool:
    """Whether a work folder holds an input that was fetched whole."""
    return any((folder / _FOLDER).glob("*/*.is"))


def _existing(source: RemoteFile, url: str) -> _Kept:
    try:
        return _Kept(*source.state())
    except FileNotFoundError as err:
        raise _missing(url, err) from err


def _missing(url: str, err: BaseException | None = None) -> BadInput:
    if not url.startswith("hf://"):
        fix = "Check the URL, and the rights to read it."
        return BadInput("there is no such input", where=shown_url(url), fix=fix)
    what = _NOT_ON_THE_HUB.get(type(err.__cause__).__name__ if err else "", "file or folder")
    return BadInput(
        f"there is no such {what} on the hub, or it is not for this user",
        where=shown_url(url),
        fix="Check the name, as hf://datasets/OWNER/NAME@REVISION/PATH; what is private needs "
        "`hf auth login`, or HF_TOKEN.",
    )


_NOT_ON_THE_HUB = {
    "RepositoryNotFoundError": "repository",
    "HfUriError": "repository",
    "RevisionNotFoundError": "revision",
}
"""What is missing, by the name of the hub client's error."""


def _kept(record: Path) -> _Kept | None:
    try:
        return msgspec.json.decode(record.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
