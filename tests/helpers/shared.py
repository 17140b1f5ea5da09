"""Where the real data is that is not part of the repository, when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2].parent / "shared"
SHARED = Path(os.environ.get("SHARDKIT_SHARED", _BESIDE))


def shared(relative: str) -> Path:
    """The path below the shared folder; skips the test when it is not there."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs real data that is not part of the repository: shared/{relative}")
    return path
