"""The cache: what may be evicted, what may not, and what happens when the disk is full."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from shardkit.errors import StorageError, UsageError
from shardkit.storage.cache import Cache, Wanted, evict
from shardkit.storage.locked_copy import Copy
from shardkit.storage.retry import retried

N_BYTES = 1000


def wanted(k: int, fetched: list[int] | None = None) -> Wanted:
    """File k, whose bytes are all k."""
    data = bytes([k]) * N_BYTES

    def download(out: BinaryIO) -> None:
        out.seek(0)
        out.write(data)
        if fetched is not None:
            fetched.append(k)

    name, digest = f"shard-{k:05d}.tar", hashlib.sha256(data).hexdigest()
    return Wanted(digest, name, N_BYTES, f"test://{name}", download)


def names(root: Path) -> set[str]:
    """The copies in a cache, without their hashes."""
    return {path.name.partition(".")[2] for path in root.glob("*.tar")}


def get(cache: Cache, k: int) -> Copy:
    """Copy k, last used k seconds after the epoch so that the order is plain."""
    copy = cache.get(wanted(k))
    os.utime(copy.path, (k, k))
    return copy


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    """With room for three, the fourth evicts the first, and use counts."""
    cache = Cache(tmp_path, 3 * N_BYTES)
    for k in (1, 2, 3):
        get(cache, k).close()
    cache.get(wanted(1)).close()  # used just now
    get(cache, 4).close()
    assert names(tmp_path) == {f"shard-0000{k}.tar" for k in (1, 3, 4)}


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    """A copy that this or another process holds is never evicted; the limit gives way."""
    cache = Cache(tmp_path, 2 * N_BYTES)
    held = [get(cache, k) for k in (1, 2)]
    assert cache.get_if_room(wanted(3)) is None
    extra = get(cache, 3)
    assert names(tmp_path) == {f"shard-0000{k}.tar" for k in (1, 2, 3)}
    assert evict(tmp_path, 10**9) == 0
    held[0].close()
    assert evict(tmp_path, 1) == N_BYTES
    assert names(tmp_path) == {"shard-00002.tar", "shard-00003.tar"}
    extra.close()


def test_another_process_holds_it(tmp_path: Path) -> None:
    """The lock of a living process counts, that of a killed one does not."""
    get(Cache(tmp_path), 1).close()
    path = next(tmp_path.glob("*.tar"))
    code = f"import fcntl, time; f = open({str(path)!r}); fcntl.flock(f, fcntl.LOCK_SH)"
    code += "; print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert evict(tmp_path, 1) == 0
        process.kill()
    assert evict(tmp_path, 1) == N_BYTES


def test_a_forked_child_does_not_end_our_lock(tmp_path: Path) -> None:
    """A worker that drops the copies it was forked with leaves ours in use."""
    copy = get(Cache(tmp_path), 1)
    child = os.fork()
    if not child:
        copy.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert evict(tmp_path, 1) == 0
    copy.close()
    assert evict(tmp_path, 1) == N_BYTES


def test_other_files_are_never_removed(tmp_path: Path) -> None:
    """A source that lies in the cache folder by mistake survives."""
    for name in ("shard-00000.tar", "manifest.json", "notes.txt", "lock"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    (tmp_path / "tokenizer.0").mkdir()
    cache = Cache(tmp_path, 1)
    for k in (1, 2):
        get(cache, k).close()
    evict(tmp_path, 10**9)
    assert {path.name for path in tmp_path.iterdir()} == {
        "shard-00000.tar",
        "manifest.json",
        "notes.txt",
        "lock",
        "tokenizer.0",
    }


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    """The error comes through, and the next one fetches."""

    def fail(out: BinaryIO) -> None:
        raise StorageError("gone", where="test://", fix="none")

    good = wanted(1)
    bad = Wanted(good.sha256, good.name, good.n_bytes, good.url, fail)
    with pytest.raises(StorageError, match="gone"):
        Cache(tmp_path).get(bad)
    assert names(tmp_path) == set()
    assert Path(Cache(tmp_path).get(good).path).read_bytes() == bytes([1]) * N_BYTES


def test_a_copy_is_fetched_once(tmp_path: Path) -> None:
    """Also when it is asked for again, and by many threads at once."""
    from concurrent.futures import ThreadPoolExecutor

    fetched: list[int] = []

    def ask(_: int) -> str:
        file = wanted(7, fetched)
        return Cache(tmp_path).get(file).path

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(40)))) == 1
    assert fetched == [7]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It is refused by name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="SHARDKIT_CACHE"):
        Cache(tmp_path / "file" / "cache").get(wanted(1))


FULL = """
    import sys; sys.path[:0] = {paths!r}
    from pathlib import Path
    from test_cache import wanted, names, Cache, StorageError
    cache = Cache(Path({root!r}))
    for k in range(40):
        cache.get(wanted(k)).close()
    assert 1 <= len(names(cache.root)) < 40, names(cache.root)
    held = []
    try:
        for k in range(40):
            held.append(cache.get(wanted(k)))
    except StorageError as err:
        print(err)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="a small disk cannot be mounted here",
)
def test_a_full_disk(tmp_path: Path) -> None:
    """What nobody uses makes room; when all is in use the error names the URL and the folder."""
    disk, script = tmp_path / "disk", tmp_path / "fill.py"
    disk.mkdir()
    paths = [str(Path(__file__).parent)]
    script.write_text(textwrap.dedent(FULL).format(root=str(disk), paths=paths))
    command = f"mount -t tmpfs -o size=64k none {disk} && exec {sys.executable} {script}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "test://shard-000" in done.stdout
    assert "full" in done.stdout
    assert str(disk) in done.stdout


def test_a_clearing_under_two_fetchers(tmp_path: Path) -> None:
    """Whoever ends first never gives the other's unfinished file its name."""
    root, file = tmp_path / "cache", wanted(7)
    began, may_end = threading.Event(), threading.Event()

    def slow(out: BinaryIO) -> None:
        began.set()
        assert may_end.wait(20)
        file.download(out)

    def overtaken(out: BinaryIO) -> None:
        if not began.is_set():
            file.download(out)
            shutil.rmtree(root)
            other.start()
            assert began.wait(20)
            may_end.set()

    results: list[Copy] = []
    other = threading.Thread(target=lambda: results.append(Cache(root).get(with_(file, slow))))
    results.append(Cache(root).get(with_(file, overtaken)))
    other.join(20)
    assert [Path(copy.path).read_bytes() for copy in results] == [bytes([7]) * N_BYTES] * 2


def with_(file: Wanted, download: Callable[[BinaryIO], None]) -> Wanted:
    """The same file, fetched in another way."""
    return dataclasses.replace(file, download=download)


@pytest.fixture
def shared_cache() -> Iterator[Path]:
    """A folder that all users can write."""
    if os.geteuid():
        pytest.skip("only root can be two users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def user(number: int, umask: int) -> Iterator[None]:
    """Be this user for a while."""
    before = os.umask(umask)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_two_users_share_a_cache(shared_cache: Path, umask: int) -> None:
    """What one fetched the other uses, or, where it is hidden from him, fetches for himself."""
    fetched: list[int] = []
    with user(65533, umask):
        Cache(shared_cache, 100 * N_BYTES).get(wanted(1, fetched)).close()
    with user(65534, umask):
        cache = Cache(shared_cache, 100 * N_BYTES)
        copies = [cache.get(wanted(k, fetched)) for k in (1, 2, 1)]
        assert [Path(copy.path).read_bytes()[0] for copy in copies] == [1, 2, 1]
        assert (cache.small_folder("tokenizer") / "a").write_text("") == 0
    assert fetched == ([1, 2] if umask == 0o022 else [1, 1, 2])
    with user(65533, umask):
        folder = Cache(shared_cache).small_folder("tokenizer")
        (folder / "b").write_text("")


def test_another_user_fetches_the_same_now(shared_cache: Path) -> None:
    """He is waited for."""
    fetched: list[int] = []
    file, began = wanted(3, fetched), threading.Event()

    def first(out: BinaryIO) -> None:
        began.set()
        time.sleep(0.2)
        file.download(out)

    own = threading.Thread(target=lambda: Cache(shared_cache).get(with_(file, first)).close())
    own.start()  # as root
    assert began.wait(20)
    with user(65534, 0o022):
        copy = Cache(shared_cache).get(file)
        assert Path(copy.path).read_bytes()[0] == 3
    own.join()
    assert fetched == [3]


@pytest.mark.parametrize("name", ["SHARDKIT_TRIES", "SHARDKIT_TIMEOUT"])
@pytest.mark.parametrize("value", ["ten", "1m", "0", "-1", "nan", "inf"])
def test_wrong_numbers_of_the_environment_are_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is asked of the server."""
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        retried(lambda timeout: pytest.fail("asked"), "test://url")
