"""A remote dataset behind a network that fails: every sample once and right, or a clear error."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import alpaca_dataset
from servers import S3_ENVIRONMENT, Faults, Seen, file_server, once, proxy, s3_server, some
from synthetic import make_dataset, number_of

from shardkit import ShardLoader, verify
from shardkit.dataset import open_dataset
from shardkit.errors import CorruptShard, MissingShard, StorageError

SIZES = [50, 30, 70, 20, 40, 60]
PROCESS = Path(__file__).resolve().parents[1] / "helpers" / "remote_process.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "set"
    make_dataset(path, SIZES)
    return path


@pytest.fixture(scope="module", params=["http", "s3"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The address of a good server of each kind that holds the dataset."""
    if request.param == "http":
        with file_server(folder.parent) as url:
            yield url
        return
    import fsspec

    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        fs = fsspec.filesystem("s3", endpoint_url=url)
        fs.mkdir("bucket")
        for path in folder.iterdir():
            fs.pipe_file(f"bucket/set/{path.name}", path.read_bytes())
        yield url


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    with file_server(folder.parent) as url:
        yield url


def reach(server: str, through: str) -> tuple[str, dict[str, Any]]:
    """URL and options of the dataset on `server`, read through a proxy."""
    import urllib.request

    try:
        urllib.request.urlopen(f"{server}/set/manifest.json").close()
    except OSError:
        return "s3://bucket/set", {"endpoint_url": through}
    return f"{through}/set", {}


def numbers(loader: ShardLoader) -> list[int]:
    """All samples of an epoch, whose tokens say which they are and whose hashes were checked."""
    return [number_of(row.tolist()) for batch in loader for row in batch["input_ids"]]


def read(server: str, faults: Faults, cache: Path, **more: Any) -> list[int]:
    """One epoch through a proxy with faults."""
    with proxy(server, faults) as through:
        url, options = reach(server, through)
        place: dict[str, Any] = {"rank": 0, "world_size": 1, "cache_dir": cache}
        place["storage_options"] = options
        return numbers(ShardLoader(url, 5, **place, **more))


@pytest.mark.parametrize("seed", [0, 1])
def test_three_of_ten_requests_fail(server: str, tmp_path: Path, seed: int) -> None:
    """Errors, resets, cuts, short answers: each is tried again, nothing is lost or doubled."""
    faults = Faults(some(0.3, "error", "reset", "cut", "short", "flip", seed=seed, most=2))
    assert sorted(read(server, faults, tmp_path)) == list(range(270))
    assert any(seen.fault for seen in faults.seen)


@pytest.mark.parametrize("fault", ["cut", "short", "flip", "error", "reset"])
def test_every_shard_fails_once(server: str, tmp_path: Path, fault: str) -> None:
    """Each shard is asked for again, and what came wrong is never served or kept."""
    faults = Faults(once(fault, only="shard-"))
    assert sorted(read(server, faults, tmp_path)) == list(range(270))
    for number in range(len(SIZES)):
        assert len(faults.gets(f"shard-{number:05d}.tar")) == 2


def test_the_manifest_comes_wrong_once(web: str, tmp_path: Path) -> None:
    """It is read again."""
    for fault in ("flip", "short", "cut"):
        faults = Faults(once(fault, only="manifest"))
        assert sorted(read(web, faults, tmp_path)) == list(range(270))
        assert len(faults.gets("manifest.json")) == 2


def test_a_stall_is_waited_for(server: str, tmp_path: Path) -> None:
    """Two seconds in the middle of a shard are no reason to ask again."""
    faults = Faults(once("stall", only="shard-00002"))
    assert sorted(read(server, faults, tmp_path)) == list(range(270))
    assert len(faults.gets("shard-00002.tar")) == 1


def test_a_server_that_hangs(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that gets no answer is given up after its time, and asked again."""
    monkeypatch.setenv("SHARDKIT_TIMEOUT", "1")
    faults = Faults(once("hang", only="shard-00002"))
    assert sorted(read(server, faults, tmp_path)) == list(range(270))
    (hanging,) = (seen for seen in faults.seen if seen.fault)
    assert hanging.given_up.wait(60)
    assert len(faults.gets("shard-00002.tar")) >= 2


def test_a_server_that_is_down(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded number of tries the error names the URL of the shard and what to do."""
    monkeypatch.setenv("SHARDKIT_TRIES", "3")
    faults = Faults(lambda seen: "reset" if "shard-00004" in seen.path else None)
    with pytest.raises(StorageError) as caught:
        read(server, faults, tmp_path)
    assert (caught.value.where or "").endswith("/set/shard-00004.tar")
    assert "3 tries" in str(caught.value)
    assert "SHARDKIT_TRIES" in str(caught.value)


def test_another_shard_lies_there(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that stay wrong are refused by name after three fetches, and not kept.

    (S3's client checks a sum of its own, so that there it is the tries that end.)
    """
    monkeypatch.setenv("SHARDKIT_TRIES", "3")
    faults = Faults(lambda seen: "flip" if "shard-00004" in seen.path else None)
    with pytest.raises((CorruptShard, StorageError)) as caught:
        read(server, faults, tmp_path)
    assert (caught.value.where or "").endswith("/set/shard-00004.tar")
    assert len(faults.gets("shard-00004.tar")) == 3
    assert not list(tmp_path.glob("*shard-00004.tar"))


def test_a_shard_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    """It is missed by name at once."""
    shutil.copytree(folder, tmp_path / "served" / "set")
    (tmp_path / "served" / "set" / "shard-00004.tar").unlink()
    faults = Faults()
    with file_server(tmp_path / "served") as url, pytest.raises(MissingShard) as caught:
        read(url, faults, tmp_path / "cache")
    assert (caught.value.where or "").endswith("/set/shard-00004.tar")
    assert len(faults.gets("shard-00004.tar")) == 1


def test_errors_reach_through_workers(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process hands the error over with its URL."""
    monkeypatch.setenv("SHARDKIT_TRIES", "2")
    faults = Faults(lambda seen: "error" if "shard-00004" in seen.path else None)
    with pytest.raises(StorageError) as caught:
        read(web, faults, tmp_path, num_workers=1)
    assert (caught.value.where or "").endswith("/set/shard-00004.tar")


def test_a_cache_that_is_removed_under_a_loader(web: str, tmp_path: Path) -> None:
    """What is mapped stays valid, what is missing is fetched again."""
    with proxy(web, faults := Faults()) as url:
        options: dict[str, Any] = {"rank": 0, "world_size": 1, "cache_dir": tmp_path / "c"}
        loader = ShardLoader(f"{url}/set", 5, fetch_ahead=1, **options)
        found: list[int] = []
        for batch in loader:
            found += [number_of(row.tolist()) for row in batch["input_ids"]]
            shutil.rmtree(tmp_path / "c", ignore_errors=True)
        assert sorted(found) == list(range(270))
        loader.set_epoch(1)
        assert sorted(numbers(loader)) == list(range(270))
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        before = len(faults.gets(".tar"))
        assert sorted(numbers(ShardLoader(f"{url}/set", 5, **options))) == list(range(270))
    assert len(faults.gets(".tar")) - before >= len(SIZES)


def run_process(what: str, url: str, cache: Path, options: Any = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROCESS), what, url, str(cache), json.dumps(options or {})],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_eight_processes_want_one_shard(server: str, tmp_path: Path) -> None:
    """It is fetched once for all of them."""
    faults = Faults(lambda seen: "stall" if "shard-" in seen.path else None)
    with proxy(server, faults) as through:
        url, options = reach(server, through)
        processes = [run_process("fetch", url, tmp_path, options) for _ in range(8)]
        paths = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len(set(paths)) == 1
    assert Path(paths[0]).is_file()
    assert len(faults.gets("shard-00000.tar")) == 1
    assert len(faults.gets("manifest.json")) == 8


def test_a_killed_fetch_is_no_copy(web: str, tmp_path: Path) -> None:
    """What a killed process leaves is neither used nor waited for."""
    faults = Faults(once("hang", only="shard-00000"))
    with proxy(web, faults) as through:
        process = run_process("fetch", f"{through}/set", tmp_path)
        while not list(tmp_path.glob("partial.*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert list(tmp_path.glob("partial.*"))
        assert sorted(read(web, Faults(), tmp_path)) == list(range(270))
    assert not list(tmp_path.glob("partial.*"))


@pytest.mark.parametrize("damage", ["sample", "footer", "cut", "gone"])
@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, damage: str, compression: str) -> None:
    """A bad bit, a cut or a missing copy in the cache cannot be noticed by who trains."""
    make_dataset(tmp_path / "served" / "set", SIZES, compression=compression)
    cache = tmp_path / "cache"
    with file_server(tmp_path / "served") as url:
        assert sorted(read(url, Faults(), cache)) == list(range(270))
        for path in cache.glob("*shard*"):
            data = bytearray(path.read_bytes())
            at = {"sample": len(data) // 2, "footer": -1200 if compression == "none" else -40}
            path.unlink()
            if damage == "gone":
                continue
            if damage != "cut":
                data[at[damage]] ^= 4
            path.write_bytes(data[: len(data) - 512 * (damage == "cut")])
        faults = Faults()
        assert sorted(read(url, faults, cache)) == list(range(270))
        assert len([seen for seen in faults.seen if "shard" in seen.path]) == len(SIZES)
        again = Faults()
        assert sorted(read(url, again, cache)) == list(range(270))
        assert not [seen for seen in again.seen if "shard" in seen.path]


def test_verify_looks_at_the_storage_not_at_the_cache(folder: Path, tmp_path: Path) -> None:
    """Damage there is found although a good copy is here."""
    served = tmp_path / "served" / "set"
    shutil.copytree(folder, served)
    with file_server(tmp_path / "served") as url:
        assert sorted(read(url, Faults(), tmp_path / "cache")) == list(range(270))
        data = bytearray((served / "shard-00003.tar").read_bytes())
        data[5000] ^= 1
        (served / "shard-00003.tar").write_bytes(data)
        (served / "shard-00005.tar").unlink()
        found = verify(f"{url}/set", cache_dir=tmp_path / "cache")
    assert found.damaged_shards == ["shard-00003.tar", "shard-00005.tar"]
    assert {finding.code for finding in found.problems} >= {"sample-hash", "shard-open"}
    assert not list((tmp_path / "cache").glob("partial.*"))


@pytest.mark.parametrize("name", ["rejects.jsonl", "shard-00000.tar"])
def test_verify_raises_what_the_network_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is read a second time, the list of rejected rows or a shard for its rows, is then
    neither called damaged nor passed over."""
    monkeypatch.setenv("SHARDKIT_TRIES", "1")
    alpaca_dataset(tmp_path, 20)
    had: list[str] = []

    def late(seen: Seen) -> str | None:
        if seen.method != "GET" or name not in seen.path:
            return None
        had.append(seen.path)
        return "error" if len(had) > 1 else None

    with (
        file_server(tmp_path) as web,
        proxy(web, Faults(late)) as url,
        pytest.raises(StorageError, match=name),
    ):
        verify(f"{url}/out", sources=[tmp_path / "rows.json"], cache_dir=tmp_path / "cache")


def test_only_so_many_shards_ahead(web: str, tmp_path: Path) -> None:
    """Fetching runs ahead in the order in which the lane needs the shards, and waits there.

    Two threads and the reader itself ask, each for the next shard that nobody asked for: the
    requests of the three may overtake each other on their way, by two places at most.
    """
    started: list[str] = []

    def note(seen: Seen) -> None:
        if "shard-" in seen.path:
            started.append(seen.path)

    with proxy(web, Faults(note)) as url:
        loader = ShardLoader(
            f"{url}/set",
            5,
            rank=0,
            world_size=1,
            cache_dir=tmp_path,
            fetch_ahead=2,
            prefetch=0,
            window=8,
        )
        order = loader.dataset.order(loader.arrangement, 0).shards_of_lane(0)  # type: ignore[attr-defined]
        batches = iter(loader)
        next(batches)
        assert len(started) <= 4
        assert sum(1 for _ in batches) == 53
    places = [order.tolist().index(int(path[-9:-4])) for path in started]
    assert all(place <= i + 2 for i, place in enumerate(places)), places
    assert len(started) == len(set(started)) == len(SIZES)


def test_a_second_epoch_asks_for_nothing(web: str, tmp_path: Path) -> None:
    """What is in the cache is not fetched again, in this process or another."""
    faults = Faults()
    with proxy(web, faults) as url:
        loader = ShardLoader(f"{url}/set", 5, rank=0, world_size=1, cache_dir=tmp_path)
        for epoch in range(2):
            loader.set_epoch(epoch)
            numbers(loader)
        process = run_process("fetch", f"{url}/set", tmp_path)
        process.communicate()
    assert len(faults.gets(".tar")) == len(SIZES)
    assert len(open_dataset(f"{web}/set").manifest.shards) == len(SIZES)


def test_waits_grow_and_end() -> None:
    """The waits between tries grow, are random, and are together under two minutes."""
    from shardkit.storage.retry import DEFAULT_TRIES, LONGEST_WAIT_S, _wait_s

    waits = [_wait_s(number) for number in range(1, DEFAULT_TRIES)]
    assert all(b > a for a, b in itertools.pairwise(waits[:7]))
    assert max(waits) <= LONGEST_WAIT_S
    assert sum(waits) < 120
