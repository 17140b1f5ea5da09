"""A tokenizer that was loaded before comes back the same, without transformers, or not at all."""

from __future__ import annotations

import os
import pickle
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shared import shared
from small_tokenizer import FOLDER

from shardkit.builder.options import PackOptions
from shardkit.builder.plan import make_plan
from shardkit.errors import UsageError
from shardkit.storage.cache_folder import default_folder
from shardkit.tokens import load_tokenizer, tokenizer_cache
from shardkit.tokens.identity import PROBE_TEXT
from shardkit.tokens.tokenizer_cache import PrivateCache, code_sha256, own_files, recall, remember

REAL = ["qwen2_5", "llama3_2", "internlm2", "llama2", "gpt2"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and transformers as if it were not imported."""
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"tokenizers-{os.geteuid()}"


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called: from now on transformers counts as not imported."""
    return lambda: monkeypatch.delitem(sys.modules, "transformers", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the small tokenizer's folder."""
    return Path(shutil.copytree(FOLDER, tmp_path / "folder"))


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", REAL)
def test_what_comes_back_is_the_same(
    name: str, cache: Path, unimported: Callable[[], None]
) -> None:
    """Definition, configuration, identity, ids; and the class of transformers when asked."""
    folder = shared(f"data/tokenizers/{name}")
    loaded = load_tokenizer(folder)
    remember(folder, loaded)
    expected = [one.ids for one in loaded.backend.encode_batch(list(PROBE_TEXT))]
    hf_class = type(loaded.hf)
    unimported()

    again = recall(folder)

    assert again is not None
    assert again.backend.to_str() == again.backend_json == loaded.backend_json
    assert again.config == loaded.config
    assert [one.ids for one in again.backend.encode_batch(list(PROBE_TEXT))] == expected
    assert again.files() == loaded.files()
    assert again.vocab_size == loaded.vocab_size
    assert again.identity == loaded.identity
    again.__dict__["known"] = None
    del again.__dict__["identity"]
    assert again.identity == loaded.identity, "what was kept is what would be computed"
    assert type(again.hf).__name__ == hf_class.__name__


def test_the_second_process_does_not_import_transformers(cache: Path) -> None:
    """Nor does it import torch."""
    code = (
        "import sys; from shardkit.tokens import load_tokenizer;"
        "print(load_tokenizer(sys.argv[1]).identity.sha256, 'transformers' in sys.modules)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(FOLDER)],
            check=True, capture_output=True, text=True, env=dict(os.environ),
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip

    assert [run[1] for run in runs] == ["True", "False"]
    assert runs[0][0] == runs[1][0] == load_tokenizer(FOLDER).identity.sha256


@pytest.mark.parametrize("what", ["a file", "a new file", "a package", "our own code"])
def test_anything_changed_is_loaded_anew(
    what: str,
    cache: Path,
    folder: Path,
    unimported: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte of the folder, a file more, another version of a package or of our own code."""
    remember(folder, load_tokenizer(folder))
    unimported()
    assert recall(folder) is not None
    if what == "a file":
        path = folder / "tokenizer_config.json"
        path.write_bytes(path.read_bytes() + b" ")
    elif what == "a new file":
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    elif what == "a package":
        monkeypatch.setattr(tokenizer_cache, "_version", lambda package: "0.0.1")
    else:
        monkeypatch.setattr(tokenizer_cache, "code_sha256", lambda: "another")

    assert recall(folder) is None


def test_all_code_and_data_of_tokens_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another byte in any of our own files is other code."""
    names = [path.name for path in own_files()]
    assert {"load.py", "tokenizer.py", "identity.py", "templates.json", "canonical.py"} <= set(
        names
    )
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in own_files()]
    monkeypatch.setattr(tokenizer_cache, "own_files", lambda: copies)
    before = code_sha256.__wrapped__()
    assert before == code_sha256()
    for copy in copies:
        text = copy.read_bytes()
        copy.write_bytes(text + b"#")
        assert code_sha256.__wrapped__() != before, copy.name
        copy.write_bytes(text)


def test_nothing_is_recalled_where_it_cannot_be_trusted(
    cache: Path, folder: Path, unimported: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With transformers imported (and maybe changed), or after damage; a dev version never."""
    tokenizer = load_tokenizer(folder)
    remember(folder, tokenizer)
    assert recall(folder) is None, "transformers is imported"
    unimported()
    (entry,) = cache.iterdir()
    data = bytearray(entry.read_bytes())
    data[100] ^= 1
    entry.write_bytes(data)

    assert recall(folder) is None
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(tokenizer_cache, "_version", lambda package: "5.3.0.dev0")
    remember(folder, tokenizer)
    assert list(cache.iterdir()) == []


def test_what_would_not_come_back_the_same_is_not_kept(cache: Path, folder: Path) -> None:
    """A backend with state that its text does not hold."""
    tokenizer = load_tokenizer(folder)
    tokenizer.backend.encode_special_tokens = True

    remember(folder, tokenizer)

    assert list(cache.iterdir()) == []
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.backend.encode_special_tokens, "a worker encodes as the first process does"


PATCHED = """
import sys
from transformers import AutoTokenizer
make = AutoTokenizer.from_pretrained
def other(*given, **options):
    made = make(*given, **options)
    made.add_tokens(["<|more|>"])
    return made
AutoTokenizer.from_pretrained = other
from shardkit.tokens import load_tokenizer
print(load_tokenizer(sys.argv[1]).identity.vocab_size)
"""


def test_what_a_changed_transformers_made_is_not_kept(cache: Path, folder: Path) -> None:
    """A script registered or patched a class: other processes load what the folder says."""
    command = [sys.executable, "-c", PATCHED, str(folder)]
    patched = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert int(patched) == 2049
    assert list(cache.glob("*")) == []


@pytest.mark.parametrize("how", ["others can write", "another's", "a link"])
def test_a_folder_of_others_is_not_used(
    how: str, cache: Path, folder: Path, tmp_path: Path, unimported: Callable[[], None]
) -> None:
    """Where users share SHARDKIT_CACHE, one of them could choose what another packs with."""
    tokenizer = load_tokenizer(folder)
    remember(folder, tokenizer)
    unimported()
    assert recall(folder) is not None
    if how == "others can write":
        cache.chmod(0o770)
    elif how == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(cache, 12345, -1)
    else:
        shutil.move(cache, tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")

    assert recall(folder) is None


def test_the_oldest_are_forgotten(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder does not grow without end."""
    monkeypatch.setattr(tokenizer_cache, "TOKENIZERS", PrivateCache("tokenizers", newest=2))
    for k in range(4):
        (folder / "note.txt").write_text(str(k))
        remember(folder, load_tokenizer(folder))

    assert len(list(cache.iterdir())) == 2


def test_without_a_cache_it_loads_all_the_same(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache folder is a file here."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "file"))

    assert load_tokenizer(folder).identity.vocab_size == 2048


def test_without_a_home_folder_it_loads_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may run as a user whom nobody knows: there is no place for a cache."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("SHARDKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)

    assert load_tokenizer(folder).identity.vocab_size == 2048
    with pytest.raises(UsageError, match="SHARDKIT_CACHE"):
        default_folder()


def test_workers_are_sent_no_transformers_object(tmp_path: Path) -> None:
    """Only what encodes: unpickling one would import transformers in every worker."""
    rows = tmp_path / "rows.json"
    rows.write_text('[{"instruction": "a", "input": "", "output": "b"}]')
    options = PackOptions(tokenizer=load_tokenizer(FOLDER).hf, template="qwen_chat")

    plan = make_plan([rows], options, spool=tmp_path)

    assert b"transformers" not in pickle.dumps(plan)
