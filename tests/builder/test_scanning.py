"""Several processes scan the inputs: the plan and the bytes are those of one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from records import alpaca_rows, digests, pack_small, stop_after, write_json

from shardkit.builder import build, scanning
from shardkit.builder.build import BuildRun
from shardkit.builder.saved_plan import load_plan
from shardkit.errors import BadInput, BuildConflict
from shardkit.processes import can_fork
from shardkit.sources.ranges import digest_of

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers are forked on Linux only")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are scanned by several, in ranges of 3 kB."""
    monkeypatch.setattr(build, "SCAN_BYTES", 0)
    monkeypatch.setattr(scanning, "RANGE_BYTES", 3000)


def sources(folder: Path) -> list[Path]:
    """An array, lines, and a compressed file."""
    import gzip
    import json

    rows = alpaca_rows(400, n_bad=4)
    array = folder / "a.json"
    array.write_text(json.dumps(rows[:200], indent=2))
    lines = folder / "b.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows[200:330]))
    packed = folder / "c.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows[330:])).encode(), mtime=0))
    return [array, lines, packed]


def test_scanned_by_several_the_bytes_are_those_of_one(tmp_path: Path) -> None:
    """Of three files; a stop while digests are missing is gone on with, by one process too."""
    files = sources(tmp_path)
    pack_small(files, tmp_path / "one")
    for workers in (4, 8):
        pack_small(files, tmp_path / str(workers), workers=workers)
        assert digests(tmp_path / str(workers)) == digests(tmp_path / "one")
    pack_small(files, tmp_path / "many", workers=2)
    with pytest.raises(KeyboardInterrupt):
        pack_small(files, tmp_path / "later", workers=2, on_progress=stop_after(150))
    begun = load_plan(tmp_path / "later/.building")
    assert begun is not None
    assert begun.begun_as is not None, "the digests were not awaited"
    assert [bool(one.sha256) for one in begun.scans][1:] == [False, True]
    pack_small(files, tmp_path / "later")
    assert digests(tmp_path / "later") == digests(tmp_path / "many") == digests(tmp_path / "one")


def test_parts_of_a_file_without_a_digest_are_of_that_file_alone(tmp_path: Path) -> None:
    """The file is written anew, as long as before, while its digest is not known: refused."""
    files = sources(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        pack_small(files, tmp_path / "out", workers=2, on_progress=stop_after(150))
    data = files[1].read_bytes()
    files[1].write_bytes(data.replace(b"a", b"e"))
    with pytest.raises(BuildConflict, match="sources"):
        pack_small(files, tmp_path / "out", workers=2)


def test_a_file_that_changes_while_it_is_digested_is_refused(tmp_path: Path) -> None:
    """Its rows were packed before, under a digest that would be another file's."""
    files = sources(tmp_path)

    def touch(*_: object) -> None:
        os.utime(files[1], ns=(1, 1))

    with pytest.raises(BadInput, match="changed while it was packed"):
        pack_small(files, tmp_path / "out", workers=2, on_progress=touch)


def test_an_error_does_not_wait_for_digests(tmp_path: Path) -> None:
    """The worker that reads a file which never ends is gone when the error comes out."""
    path, endless = write_json(tmp_path / "a.json", alpaca_rows(5)), tmp_path / "endless"
    os.mkfifo(endless)
    run = BuildRun({"workers": 2}, None)
    ends: list[int] = []
    late = threading.Timer(30, lambda: os.close(ends.pop()))

    def interrupted() -> None:
        run.scanner._send(digest_of, [str(endless)])
        ends.append(os.open(endless, os.O_WRONLY))  # waits for the one that reads
        late.start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run.prepared([path]):
        interrupted()
    late.cancel()
    assert ends, "the digest was awaited"
    os.close(ends.pop())


def test_a_broken_file_is_named_as_by_one_process(tmp_path: Path) -> None:
    """Line and byte of what is wrong, from a worker."""
    path = write_json(tmp_path / "a.json", alpaca_rows(200))
    data = path.read_bytes()
    at = data.index(b"},", len(data) // 2)
    path.write_bytes(data[:at] + b"},," + data[at + 2 :])
    told = []
    for workers in (1, 2):
        with pytest.raises(BadInput) as caught:
            pack_small(path, tmp_path / f"out-{workers}", workers=workers)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "line" in told[0]


@pytest.mark.parametrize("left", ["source-00000.rows", "source-00002.data", "duplicates-00000"])
def test_a_damaged_scan_is_made_again(tmp_path: Path, left: str) -> None:
    """One bit of row borders, of a decompressed copy or of what is known of duplicates changes."""
    files = sources(tmp_path)
    options = {"drop_duplicates": left.startswith("dup")}
    write_json(files[0], alpaca_rows(100) * 2)
    pack_small(files, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        pack_small(files, tmp_path / "out", on_progress=stop_after(150), **options)
    damaged = tmp_path / "out/.building" / left
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    pack_small(files, tmp_path / "out", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
