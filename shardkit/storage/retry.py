"""Which failures of a server are worth another try, and how long to wait for it."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from shardkit.errors import MissingPackage, StorageError, UsageError
from shardkit.storage.urls import redacted, shown_url

log = logging.getLogger("shardkit.storage")

T = TypeVar("T")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 15.0
DEFAULT_TRIES = 10
"""Tries of one request; the waits between ten are 20 to 41 seconds together."""
DEFAULT_TIMEOUT_S = 60.0
"""Seconds of the first try of one request; each further try has as much time more."""

_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    TypeError,
    AttributeError,
    ValueError,
    NotImplementedError,
)
_FINAL_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "GatedRepoError",
    "EntryNotFoundError",
}
"""Names of errors of packages that are not imported here; another try does not mend them."""
_WORTH_IT = {408, 409, 425, 429}
"""Answers below 500 that say: later."""


def n_tries() -> int:
    """Tries of one request, SHARDKIT_TRIES or the default; raises UsageError."""
    return int(_from_environment("SHARDKIT_TRIES", DEFAULT_TRIES, "a whole number from 1", 1))


def timeout_s() -> float:
    """Seconds of the first try of a request, SHARDKIT_TIMEOUT or the default; raises UsageError."""
    words = "seconds, a number from 0.001"
    return _from_environment("SHARDKIT_TIMEOUT", DEFAULT_TIMEOUT_S, words, 0.001)


def _from_environment(name: str, default: float, expected: str, least: float) -> float:
    """A number of an environment variable, whole where the default is; raises UsageError."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = type(default)(text)
    except ValueError:
        value = 0
    if not least <= value < math.inf:
        raise UsageError(
            "an environment variable has a wrong value",
            where=name,
            expected=expected,
            found=repr(text),
            fix=f"Correct it, or unset it: the default is {default}.",
        )
    return value


def retried(request: Callable[[float], T], url: str) -> T:
    """The result of `request(timeout)`, which is tried again as long as that may help.

    Raises UsageError for a wrong SHARDKIT_TRIES or SHARDKIT_TIMEOUT; FileNotFoundError as it came;
    MissingPackage; StorageError that names the URL, at once for what another try cannot mend, else
    after the last try.
    """
    tries, timeout = n_tries(), timeout_s()
    for number in range(1, tries + 1):
        try:
            return request(timeout * number)
        except FileNotFoundError:
            raise
        except ImportError as err:
            raise MissingPackage(
                f"a package is needed for this kind of URL: {err}",
                where=shown_url(url),
                fix='pip install "shardkit[remote]" (s3, http), or what the message names.',
            ) from err
        except Exception as err:
            if is_final(err):
                raise _refused(err, url) from err
            if number == tries:
                raise _gave_up(err, url, tries) from err
            wait = _wait_s(number)
            told = _told(err, url)
            shown = shown_url(url)
            log.info("%s: %s; try %d of %d in %.1f s", shown, told, number + 1, tries, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def is_final(err: BaseException) -> bool:
    """Whether the same request would fail again."""
    if isinstance(err, _FINAL) or type(err).__name__ in _FINAL_NAMES:
        return True
    response = getattr(err, "response", None)
    status = getattr(err, "status", None) or getattr(response, "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _WORTH_IT


def _wait_s(number: int) -> float:
    """Seconds to wait after try `number`: twice as long each time, up to LONGEST_WAIT_S, and at
    random, so that many ranks do not come back together."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (number - 1))
    return random.uniform(longest / 2, longest)


def _told(err: BaseException, url: str) -> str:
    text = redacted(str(err).strip().replace("\n", " "), url)
    return f"{type(err).__name__}: {text[:200]}" if text else type(err).__name__


def _refused(err: BaseException, url: str) -> StorageError:
    if type(err).__name__ == "GatedRepoError":
        return StorageError(
            "the hub gives this only to those who were granted access",
            where=shown_url(url),
            fix="Ask for access on its page, then run: hf auth login (or set HF_TOKEN).",
        )
    return StorageError(
        "the storage refuses this",
        where=shown_url(url),
        found=_told(err, url),
        fix="Check the URL, the credentials and storage_options (docs/how-to/remote.md).",
    )


def _gave_up(err: BaseException, url: str, tries: int) -> StorageError:
    return StorageError(
        f"could not be read in {tries} tries",
        where=shown_url(url),
        found=_told(err, url),
        fix="Check the network and the storage, then run again: what was fetched is kept. "
        "SHARDKIT_TRIES and SHARDKIT_TIMEOUT (seconds) allow more.",
    )
