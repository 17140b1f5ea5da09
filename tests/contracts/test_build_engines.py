"""What every engine in `ENGINES` promises: the same bytes, whoever builds the parts, and after any
death of a worker."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from packing_cases import KINDS, command, make_case
from records import digests, pack_small

from shardkit.builder import ENGINES, merge
from shardkit.builder.folder import alone
from shardkit.errors import BadInput, BuildFailed, UsageError

CREWS: dict[str, dict[str, Any]] = {
    "local-2": {"workers": 2},
    "local-3": {"workers": 3},
    "local-8": {"workers": 8},
    "ray-2": {"build_engine": "ray", "workers": 2},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A local Ray cluster of two workers; its attribute `address`. It ends with the tests."""
    ray = pytest.importorskip("ray")
    context = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def test_every_engine_is_here() -> None:
    """The table and the crews of this file name the same engines."""
    assert {name.split("-")[0] for name in CREWS} == set(ENGINES)


@pytest.mark.slow
@pytest.mark.parametrize("crew", CREWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes(tmp_path: Path, kind: str, crew: str, request: Any) -> None:
    """Every file, the manifest too, is that of one process in one go."""
    if crew.startswith("ray"):
        request.getfixturevalue("cluster")
    source, options = make_case(kind, tmp_path)
    pack_small(source, tmp_path / "one", **options)
    pack_small(source, tmp_path / "many", **options, **CREWS[crew])
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
    assert len(digests(tmp_path / "one")) > 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text-packed", "llava"])
def test_shares_at_the_same_time(tmp_path: Path, kind: str) -> None:
    """The tasks of an array begin together on a folder that nobody planned yet: one of them plans,
    and the merge of what they built has the same bytes."""
    source, options = make_case(kind, tmp_path)
    pack_small(source, tmp_path / "one", **options)
    tasks = [
        subprocess.Popen(
            command(source, tmp_path / "parts", options, "--part", f"{i}/3"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (1, 2, 3)
    ]
    for task in tasks:
        _, errors = task.communicate(timeout=300)
        assert task.returncode == 0, errors
    merge(tmp_path / "parts")
    assert digests(tmp_path / "parts") == digests(tmp_path / "one")


@pytest.mark.slow
def test_a_share_waits_while_another_plans(tmp_path: Path) -> None:
    """Two tasks never scan into one folder at the same time: the second waits for the lock."""
    source, options = make_case("text", tmp_path)
    building = tmp_path / "parts/.building"
    building.mkdir(parents=True)
    words = command(source, tmp_path / "parts", options, "--part", "1/1")
    with alone(building):
        inode = f":{(building / 'planning').stat().st_ino} "
        task = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while task.poll() is None and not any(
            "->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()
        ):
            time.sleep(0.05)
        assert task.poll() is None
        assert not (building / "plan.json").exists()
    assert task.wait(timeout=300) == 0
    assert merge(tmp_path / "parts").sources[0].n_rows == 220


def test_a_missing_share_is_named(tmp_path: Path) -> None:
    """Merging before all shares are built says which parts are missing; building them mends it."""
    source, options = make_case("text", tmp_path)
    out = tmp_path / "parts"
    pack_small_share(source, out, (1, 2), options)
    with pytest.raises(BuildFailed, match=r"2 of 5 parts are not built: 1, 3"):
        merge(out)
    pack_small_share(source, out, (2, 2), options)
    assert merge(out).sources[0].n_rows == 220


def pack_small_share(
    source: Path, out: Path, part: tuple[int, int], options: dict[str, Any]
) -> None:
    """Build one share; there is no manifest yet."""
    with pytest.raises(AssertionError):
        pack_small(source, out, part=part, **options)
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_of_the_data_names_file_and_row(tmp_path: Path, engine: str, request: Any) -> None:
    """A bad row with on_error=fail is the same error from every engine, and not a worker's."""
    if engine == "ray":
        request.getfixturevalue("cluster")
    source, _ = make_case("text", tmp_path)
    with pytest.raises(BadInput, match=r"rows\.json, row \d+"):
        pack_small(source, tmp_path / "out", build_engine=engine, on_error="fail", workers=2)
    assert not (tmp_path / "out/manifest.json").exists()
    assert pack_small(source, tmp_path / "out", workers=2).sources[0].n_rows == 220


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    """The error lists the engines there are; an address without Ray is a mistake."""
    source, _ = make_case("text", tmp_path)
    with pytest.raises(UsageError, match="local or ray"):
        pack_small(source, tmp_path / "out", build_engine="slurm")
    with pytest.raises(UsageError, match="--engine ray"):
        pack_small(source, tmp_path / "out", ray_address="auto")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_ray_task_killed_in_mid_part(tmp_path: Path) -> None:
    """SIGKILL to Ray workers, one of them in the middle of a part: the tasks run again, and the
    bytes are the same."""
    source, options = make_case("text", tmp_path, 3000)
    options["part_rows"] = 500
    pack_small(source, tmp_path / "one", **options)
    out = tmp_path / "out"
    killed: list[int] = []
    has_ended = threading.Event()
    arguments = (out / ".building", killed, has_ended)
    killer = threading.Thread(target=_kill_the_builders, args=arguments)
    killer.start()
    try:
        pack_small(source, out, build_engine="ray", workers=2, **options)
    finally:
        has_ended.set()
        killer.join()
    assert killed
    assert digests(out) == digests(tmp_path / "one")


def _kill_the_builders(building: Path, killed: list[int], has_ended: threading.Event) -> None:
    """Kill those of this test that run a task, once, when a part is begun and not done."""
    while not killed and not has_ended.wait(0.002):
        places = [*building.glob("part-*")]
        done = {place.stem for place in places if place.suffix == ".json"}
        if {place.name for place in places if place.is_dir()} <= done:
            continue
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline()[:1] == ["ray::_build"]:
                    process.kill()
                    killed.append(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("is_running", [True, False])
def test_the_command_on_a_cluster(tmp_path: Path, cluster: str, is_running: bool) -> None:
    """`--ray-address` packs on a cluster that is there, and leaves it up; without, on its own."""
    import ray

    source, options = make_case("text", tmp_path)
    pack_small(source, tmp_path / "one", **options)
    more = ["--engine", "ray", *(["--ray-address", cluster] if is_running else ["--workers", "2"])]
    done = subprocess.run(
        command(source, tmp_path / "out", options, *more),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Next: shardkit verify")
    assert digests(tmp_path / "out") == digests(tmp_path / "one")
    assert ray.get(ray.remote(lambda: 7).remote()) == 7


def test_an_address_where_no_cluster_is(tmp_path: Path) -> None:
    """A clear message and exit 1, no traceback, and the folder can be used."""
    pytest.importorskip("ray")
    source, options = make_case("text", tmp_path)
    more = ["--engine", "ray", "--ray-address", "127.0.0.1:1"]
    done = subprocess.run(
        command(source, tmp_path / "out", options, *more),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert "Ray does not start or answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_ray_the_error_says_what_to_install(tmp_path: Path) -> None:
    """In an environment without ray: which extra has it, and no traceback."""
    source, options = make_case("text", tmp_path)
    code = "import sys; sys.modules['ray'] = None; from shardkit_cli.main import main; "
    code += "sys.exit(main(sys.argv[1:]))"
    words = command(source, tmp_path / "out", options, "--engine", "ray")
    words = [sys.executable, "-c", code, *words[words.index("pack") :]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "shardkit[ray]"' in done.stderr
    assert "Traceback" not in done.stderr
