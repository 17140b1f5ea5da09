"""Nothing is written outside of the tests' own folders, and no clock decides over an example."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder for this run, which processes that tests start use too (xdist's as well)."""
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.mkdtemp(prefix="shardkit-tests-")
    before = os.environ.get("SHARDKIT_CACHE")
    os.environ["SHARDKIT_CACHE"] = folder

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            os.environ.pop("SHARDKIT_CACHE", None)
        else:
            os.environ["SHARDKIT_CACHE"] = before

    config.add_cleanup(restore)


@pytest.fixture
def can_be_interrupted() -> Iterator[None]:
    """What is started now hears SIGINT, also when the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
