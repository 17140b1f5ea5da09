"""Nothing is written outside of the tests' own folders, and no clock decides over an example."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""For this process and all that tests start: the processes of a test run have the cores already,
and threads of tiny models only wait for each other (a step of AdamW took 95 ms for 1)."""
os.environ.setdefault("HF_HUB_OFFLINE", "1")
"""A tokenizer name that is wrong is not looked for in the hub, for 30 s where there is none."""
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


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> None:
    """Let garbage collection pass over what is imported by now: with torch, transformers and
    DeepSpeed there a whole collection takes a second, and libraries under test ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def can_be_interrupted() -> Iterator[None]:
    """What is started now hears SIGINT, also when the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
