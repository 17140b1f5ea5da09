"""An identity that another process found is taken, and only for the very same tokenizer."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest
import tokenizers
from shared import shared
from small_tokenizer import FOLDER

from shardkit.tokens import load, load_tokenizer, tokenizer_cache
from shardkit.tokens.identity import TokenizerIdentity
from shardkit.tokens.load import identity_of
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.tokenizer_cache import PrivateCache

REAL = ["qwen2_5", "llama3_2", "internlm2", "llama2", "gpt2"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of entries, empty."""
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "_identities", {})
    return tmp_path / "cache" / f"identities-{os.geteuid()}"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one for every identity that is computed."""
    found: list[str] = []
    identity: cached_property[TokenizerIdentity] = Tokenizer.__dict__["identity"]
    compute = identity.func

    def counting(self: Tokenizer) -> TokenizerIdentity:
        found.append(self.name)
        return compute(self)

    monkeypatch.setattr(identity, "func", counting)
    return found


def backend() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def forget() -> None:
    """As in a new process."""
    load._identities.clear()


def entry_of(cache: Path) -> Path:
    (path,) = cache.glob("*.bin")
    return path


def test_it_is_computed_once(cache: Path, computed: list[str]) -> None:
    """In a process, and by the processes of a node; what comes back is what load_tokenizer says."""
    expected = load_tokenizer(backend()).identity
    computed.clear()

    assert identity_of(backend()) == identity_of(backend()) == expected
    forget()
    assert identity_of(backend()) == expected
    assert len(computed) == 1
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", REAL)
def test_it_is_that_of_the_loaded_tokenizer(name: str, cache: Path) -> None:
    """Of real ones: given as transformers objects, as folders, computed and kept."""
    folder = shared(f"data/tokenizers/{name}")
    loaded = load_tokenizer(folder)
    expected = loaded.identity
    for _ in range(2):
        assert identity_of(loaded.hf) == expected
        assert identity_of(folder) == expected
        assert identity_of(loaded) == expected
        forget()


CHANGES: dict[str, Callable[[tokenizers.Tokenizer], object]] = {
    "a token more": lambda given: given.add_tokens(["<|more|>"]),
    "a special token more": lambda given: given.add_special_tokens(["<|more|>"]),
    "another normalizer": lambda given: setattr(
        given, "normalizer", tokenizers.normalizers.Lowercase()
    ),
    "special tokens as text": lambda given: setattr(given, "encode_special_tokens", True),
    "truncation": lambda given: given.enable_truncation(3),
    "padding": lambda given: given.enable_padding(length=64),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_that_was_changed_in_memory_is_another(change: str, cache: Path) -> None:
    """The same object, changed after its identity was kept: as load_tokenizer sees it."""
    given = backend()
    before = identity_of(given)
    CHANGES[change](given)
    text = given.to_str()

    found = identity_of(given)

    assert found == load_tokenizer(given).identity
    has_changed = change not in ("truncation", "padding", "special tokens as text")
    assert (found != before) == has_changed
    assert given.to_str() == text, "what is given is not changed"


def test_special_ids_and_chat_template_of_transformers_count(cache: Path) -> None:
    """Two transformers tokenizers around one backend."""
    given = load_tokenizer(FOLDER).hf
    before = identity_of(given)
    given.chat_template = "{{ messages }}"
    assert identity_of(given).chat_template_sha256 != before.chat_template_sha256
    given.eos_token = given.convert_ids_to_tokens(7)
    assert identity_of(given).special_ids["eos"] == 7


def test_other_code_computes_it_anew(
    cache: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade an identity may be another one."""
    identity_of(backend())
    monkeypatch.setattr(load, "code_sha256", lambda: "another")
    forget()
    identity_of(backend())

    assert len(computed) == 2


@pytest.mark.parametrize("how", ["cut", "a bit", "another identity", "empty"])
def test_a_damaged_entry_is_computed_anew(how: str, cache: Path, computed: list[str]) -> None:
    """And replaced."""
    expected = identity_of(backend())
    path = entry_of(cache)
    data = bytearray(path.read_bytes())
    if how == "a bit":
        data[200] ^= 1
    elif how == "another identity":
        data[32:] = data[32:].replace(b'"n_added_tokens":', b'"n_added_tokens":1')
    path.write_bytes(data[: {"cut": 100, "empty": 0}.get(how, len(data))])
    forget()
    computed.clear()

    assert identity_of(backend()) == expected
    forget()
    assert identity_of(backend()) == expected
    assert len(computed) == 1


def lie(path: Path) -> None:
    """Let the entry, its digest right, say something else."""
    fields = json.loads(path.read_bytes()[32:]) | {"vocab_size": 5}
    data = json.dumps(fields).encode()
    path.write_bytes(hashlib.sha256(data).digest() + data)


def test_a_folder_that_others_can_write_is_not_used(cache: Path) -> None:
    """What lies there is not read, and nothing is put there."""
    expected = identity_of(backend())
    lie(entry_of(cache))
    forget()
    assert identity_of(backend()).vocab_size == 5, "the entry is read while the folder is ours"
    cache.chmod(0o770)
    forget()

    assert identity_of(backend()) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(cache: Path) -> None:
    """Although its name is right."""
    expected = identity_of(backend())
    lie(entry_of(cache))
    os.chown(cache, 12345, -1)
    forget()

    assert identity_of(backend()) == expected


def test_a_link_to_a_folder_is_not_used(cache: Path, tmp_path: Path) -> None:
    """Whoever may make names in the cache folder may not choose the folder."""
    expected = identity_of(backend())
    lie(entry_of(cache))
    shutil.move(cache, tmp_path / "elsewhere")
    cache.symlink_to(tmp_path / "elsewhere")
    forget()

    assert identity_of(backend()) == expected


def test_without_a_cache_it_is_computed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache folder is a file here."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "file"))

    assert identity_of(backend()).vocab_size == 2048


def test_the_oldest_are_forgotten(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder does not grow without end."""
    monkeypatch.setattr(load, "IDENTITIES", PrivateCache("identities", newest=2))
    given = backend()
    for k in range(4):
        given.add_tokens([f"<|{k}|>"])
        identity_of(given)

    assert len(list(cache.glob("*.bin"))) == 2


RANK = """
import sys
from tokenizers import Tokenizer
from shardkit.tokens import load, tokenizer
computed = []
compute = tokenizer.Tokenizer.identity.func
tokenizer.Tokenizer.identity.func = lambda self: computed.append(1) or compute(self)
given = Tokenizer.from_file(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
load.identity_of(given)
print(len(computed))
"""


def ranks(n: int) -> list[subprocess.Popen[str]]:
    """Processes that are about to ask for the identity."""
    command = [sys.executable, "-c", RANK, str(FOLDER / "tokenizer.json")]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(n)
    ]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    return started


def answers(started: list[subprocess.Popen[str]]) -> list[int]:
    """How often each of them computed it."""
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    return [int(one.communicate()[0]) for one in started]


def test_many_processes_at_once_compute_it_once(cache: Path) -> None:
    """Eight ranks that start together."""
    assert sum(answers(ranks(8))) == 1


HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["killed", "never"])
def test_nobody_waits_for_one_that_died_or_hangs(
    end: str, cache: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is at it and does not come to an end: after a while it is computed here."""
    cache.mkdir(parents=True, mode=0o700)
    command = [sys.executable, "-c", HOLDER, str(cache / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        if end == "killed":
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        else:
            monkeypatch.setattr(tokenizer_cache, "WAIT_S", 0.05)

        assert identity_of(backend()).vocab_size == 2048

        assert len(computed) == 1
        assert len(list(cache.glob("*.bin"))) == (end == "killed")
        holder.kill()


def test_a_process_forked_meanwhile_holds_no_lock(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DataLoader forks workers in one thread while another one finds an identity."""
    compute = Tokenizer.__dict__["identity"].func
    children: list[int] = []

    def forking(self: Tokenizer) -> TokenizerIdentity:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        children.append(child)
        return compute(self)  # type: ignore[no-any-return]

    monkeypatch.setattr(Tokenizer.__dict__["identity"], "func", forking)
    try:
        identity_of(backend())
        with open(cache / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert len(children) == 1


def test_a_disk_without_locks_is_no_hindrance(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed, and not kept: two might write at once."""

    def refuse(descriptor: int, kind: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)

    assert identity_of(backend()).vocab_size == 2048
    assert list(cache.glob("*.bin")) == []
