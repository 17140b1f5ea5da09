"""Is there a model of this name, here or on the hub? Asked before transformers is: that tries for
a minute, and does not say what was meant."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardkit.errors import ShardkitError
from shardkit.options import nearest, nearest_path

_TRIES = 2
_PAUSE = 1.0
"""Seconds between two tries."""
_TIMEOUT = 10.0
_KNOWN_FILES = ("tokenizer*", "vocab*", "merges*", "spiece*", "*.model", "*.tiktoken", "*.py")
"""A folder with a tokenizer or a processor has at least one of these."""


def find_model(name: str, files: Sequence[str], error: type[ShardkitError]) -> bool:
    """Whether only local files may be read: a model that was fetched before, and no hub now.

    Raises `error` when `name` is neither a folder with a model's files nor a model on the hub.
    `files`: of which the hub's model has at least one, as tokenizer_config.json. What else the
    hub may say is left to the loader.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        _refuse_empty(path, error)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or _is_below(path):
        raise error("there is no such file or folder", where=name, fix=_near(path))
    elif _is_fetched(name, files):
        return not _is_reached(name, files[0])
    else:
        _ask_hub(name, files[0], error)
    return False


def _refuse_empty(path: Path, error: type[ShardkitError]) -> None:
    if _has_files(path):
        return
    inner = sorted(one for one in path.iterdir() if one.is_dir() and _has_files(one))
    listed = sorted(one.name for one in path.iterdir())[:5]
    raise error(
        "there is no tokenizer in this folder",
        where=str(path),
        expected="tokenizer.json, or a vocabulary, beside tokenizer_config.json",
        found=", ".join(listed) or "nothing",
        fix=f"Did you mean {inner[0]}?" if inner else "Give the folder with the model's files.",
    )


def _has_files(path: Path) -> bool:
    return any(one.is_file() for pattern in _KNOWN_FILES for one in path.glob(pattern))


def _is_below(path: Path) -> bool:
    """Whether the name's first part is a folder here: then it is a path, and no hub name."""
    return len(path.parts) > 1 and Path(path.parts[0]).is_dir()


def _near(path: Path) -> str:
    close = nearest_path(path)
    return f"Did you mean {close}?" if close else "Check the path."


def _is_fetched(name: str, files: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    except ValueError:  # not a name of the hub
        return False


def _is_reached(name: str, file: str) -> bool:
    """Whether the hub answers, whatever it says."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=_TIMEOUT)
    except Exception as err:  # of the HTTP library that this version of the hub's client has
        return getattr(err, "response", None) is not None
    return True


def _ask_hub(name: str, file: str, error: type[ShardkitError]) -> None:
    """Raise `error` when the hub cannot be reached, or has no such model for this user."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    for number in range(_TRIES):
        try:
            get_hf_file_metadata(hf_hub_url(name, file), timeout=_TIMEOUT)
            return
        except ValueError as err:
            raise error(f"not a name of the hub: {err}", where=name, fix=_advice(name)) from err
        except Exception as err:  # of the HTTP library that this version of the hub's client has
            answer: Any = getattr(err, "response", None)
            if answer is not None:
                _refuse_by(err, answer.status_code, name, error)
                return
            if number + 1 < _TRIES and not os.environ.get("HF_HUB_OFFLINE"):
                time.sleep(_PAUSE)
                continue
            raise error(
                "there is no such folder, and the hub cannot be reached",
                where=name,
                found=f"{type(err).__name__}: {' '.join(str(err).split())[:200]}",
                fix=_advice(name),
            ) from err


def _refuse_by(err: Exception, status: int, name: str, error: type[ShardkitError]) -> None:
    """Raise `error` for what the hub refuses; a file that is missing is left to the loader."""
    kind = type(err).__name__
    if kind == "GatedRepoError" or status == 403:
        raise error(
            "the hub gives this model only to those who were granted access",
            where=name,
            fix="Ask for access on the model's page, then run: hf auth login",
        ) from err
    if kind == "RepositoryNotFoundError" or status == 401:
        raise error(
            "there is no such folder, and no such model on the hub (or it is private)",
            where=name,
            fix=_advice(name),
        ) from err


def _advice(name: str) -> str:
    """What was probably meant: a folder here, or a model that was fetched before."""
    here = [one.name for one in Path().iterdir() if one.is_dir() and _has_files(one)]
    close = nearest(name, [*here, *_fetched_models()])
    meant = f"Did you mean {close}? " if close else ""
    return f"{meant}Give a folder with tokenizer.json, or a model's name on the hub."


def _fetched_models() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*")
    return [one.name.removeprefix("models--").replace("--", "/") for one in folders]
