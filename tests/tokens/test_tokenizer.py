"""Loading tokenizers, and telling two apart."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import tokenizers
from shared import shared
from small_tokenizer import FOLDER, small_tokenizer

from shardkit.errors import TokenizerError
from shardkit.tokens import TokenizerIdentity, differences, load_tokenizer
from shardkit.tokens.identity import definition_of

REAL = ["qwen2_5", "llama3_2", "internlm2", "llama2", "gpt2"]


def _changed(tmp_path: Path, change: object) -> Path:
    """A copy of the small tokenizer whose tokenizer.json `change` has edited."""
    folder = tmp_path / "changed"
    shutil.copytree(FOLDER, folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)  # type: ignore[operator]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


def _written(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "written"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_identity_names_what_the_tokenizer_is() -> None:
    """Counts and special ids are those of the files."""
    identity = small_tokenizer().identity

    assert identity.vocab_size == 2048
    assert identity.n_added_tokens == 5
    assert identity.special_ids == {"bos": 2043, "eos": 2045, "pad": 2047, "unk": None}
    assert len(identity.sha256) == len(identity.probe_sha256) == 64
    assert set(identity.parts) == {
        *("model", "vocab", "merges", "normalizer", "pre_tokenizer"),
        *("post_processor", "decoder", "added_tokens"),
    }


def test_identity_survives_json_and_pickle() -> None:
    """What the manifest keeps is all of it; workers get the same tokenizer."""
    tokenizer = small_tokenizer()

    copy = pickle.loads(pickle.dumps(tokenizer))

    stored = json.loads(json.dumps(tokenizer.identity.to_json()))
    assert TokenizerIdentity.from_json(stored) == tokenizer.identity
    assert copy.identity == tokenizer.identity
    assert copy.bos_ids == tokenizer.bos_ids
    assert copy.chat_template == tokenizer.chat_template
    assert copy.files() == tokenizer.files()


def test_a_broken_identity_is_refused() -> None:
    """The field is named."""
    stored = small_tokenizer().identity.to_json()
    stored["vocab_size"] = "many"

    with pytest.raises(TokenizerError, match="vocab_size"):
        TokenizerIdentity.from_json(stored)


def test_the_same_tokenizer_by_every_road() -> None:
    """Folder, tokenizer.json, transformers object and `tokenizers` object hash the same."""
    expected = small_tokenizer().identity
    hf = load_tokenizer(FOLDER).hf
    backend = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

    assert load_tokenizer(str(FOLDER)).identity == expected
    assert load_tokenizer(FOLDER / "tokenizer.json").identity == expected
    assert load_tokenizer(hf).identity == expected
    assert load_tokenizer(backend).identity.sha256 == expected.sha256
    assert load_tokenizer(small_tokenizer()) is small_tokenizer()


def test_truncation_and_padding_state_is_not_identity() -> None:
    """An object that was used with truncation and padding is the same tokenizer, and keeps its
    state; encoding ignores it."""
    hf = load_tokenizer(FOLDER).hf
    backend = hf.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=7)

    tokenizer = load_tokenizer(hf)

    assert differences(small_tokenizer().identity, tokenizer.identity) == []
    assert tokenizer.identity == small_tokenizer().identity
    assert backend.truncation is not None
    assert backend.padding is not None
    assert len(tokenizer.backend.encode("a much longer text than three tokens").ids) > 3


def test_a_pad_token_of_ones_own_is_the_same_tokenizer() -> None:
    """Training scripts set pad_token = eos_token; that decides no token of the data."""
    hf = load_tokenizer(FOLDER).hf
    hf.pad_token = hf.eos_token

    assert differences(small_tokenizer().identity, load_tokenizer(hf).identity) == []


def test_one_added_token_is_another_tokenizer() -> None:
    """The same vocabulary and one token more: named by the counts and the part."""
    hf = load_tokenizer(FOLDER).hf
    hf.add_tokens(["<new>"])

    lines = differences(small_tokenizer().identity, load_tokenizer(hf).identity)

    assert "vocabulary size: packed with 2048, given 2049" in lines
    assert "added tokens: packed with 5, given 6" in lines
    assert "added tokens differs" in lines


def test_another_end_token_is_another_tokenizer() -> None:
    """EOS goes into the data."""
    hf = load_tokenizer(FOLDER).hf
    hf.eos_token = "<|endoftext|>"

    lines = differences(small_tokenizer().identity, load_tokenizer(hf).identity)

    assert "eos id: packed with 2045, given 2043" in lines


def _swap_merges(raw: dict[str, dict[str, list[object]]]) -> None:
    merges = raw["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def _drop_digit_split(raw: dict[str, dict[str, list[dict[str, object]]]]) -> None:
    raw["pre_tokenizer"]["pretokenizers"] = raw["pre_tokenizer"]["pretokenizers"][1:]


def _add_normalizer(raw: dict[str, object]) -> None:
    raw["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_swap_merges, "merges differs"),
        (_drop_digit_split, "pre tokenizer differs"),
        (_add_normalizer, "normalizer differs"),
    ],
)
def test_a_changed_part_is_named(tmp_path: Path, change: object, named: str) -> None:
    """A difference says which part it is, and whether the probe text shows it."""
    other = load_tokenizer(_changed(tmp_path, change)).identity

    lines = differences(small_tokenizer().identity, other)

    assert named in lines
    assert lines[-1].startswith("ids of the probe text")
    assert other.sha256 != small_tokenizer().identity.sha256


def _cosmetics(raw: dict[str, object]) -> None:
    """What other versions of `tokenizers` and transformers write for the same ids."""
    model = raw["model"]
    assert isinstance(model, dict)
    model["merges"] = [" ".join(merge) for merge in model["merges"]]
    del model["ignore_merges"]
    raw["post_processor"] = {
        **{"type": "ByteLevel", "add_prefix_space": True},
        **{"trim_offsets": False, "use_regex": True},
    }
    raw["truncation"] = {
        **{"direction": "Right", "max_length": 9},
        **{"strategy": "LongestFirst", "stride": 0},
    }


def test_cosmetics_are_not_identity(tmp_path: Path) -> None:
    """Two spellings of one definition have one hash."""
    other = load_tokenizer(_changed(tmp_path, _cosmetics) / "tokenizer.json")

    assert other.identity == small_tokenizer().identity


def test_the_written_files_are_the_tokenizer(tmp_path: Path) -> None:
    """What a dataset folder keeps loads offline as the same tokenizer."""
    files = small_tokenizer().files()

    again = load_tokenizer(_written(tmp_path, files))

    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    assert again.identity == small_tokenizer().identity
    assert again.chat_template == small_tokenizer().chat_template
    assert again.files() == files


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_survive_being_written(tmp_path: Path, name: str) -> None:
    """The same for real ones, whose classes change what the files say."""
    tokenizer = load_tokenizer(shared(f"data/tokenizers/{name}"))

    again = load_tokenizer(_written(tmp_path, tokenizer.files()))

    assert differences(tokenizer.identity, again.identity) == []
    assert again.identity == tokenizer.identity
    assert (again.bos_ids, again.eos_ids) == (tokenizer.bos_ids, tokenizer.eos_ids)


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("name", "bos", "eos"),
    [
        ("qwen2_5", (), (151645,)),
        ("llama3_2", (128000,), (128009,)),
        ("internlm2", (1,), (2,)),
        ("llama2", (1,), (2,)),
        ("gpt2", (50256,), (50256,)),
    ],
)
def test_bos_and_eos_are_xtuners(name: str, bos: tuple[int, ...], eos: tuple[int, ...]) -> None:
    """Qwen has no BOS; nobody crashes where the tokenizer has none."""
    tokenizer = load_tokenizer(shared(f"data/tokenizers/{name}"))

    assert (tokenizer.bos_ids, tokenizer.eos_ids) == (bos, eos)


@pytest.mark.needs_shared
def test_the_wrong_internlm2_is_told_apart() -> None:
    """The package as published, taken without its remote code, has other chat tokens."""
    good = load_tokenizer(shared("data/tokenizers/internlm2"))
    bad = load_tokenizer(shared("data/tokenizers_bad/internlm2_as_shipped") / "tokenizer.json")

    lines = differences(good.identity, bad.identity)

    assert "ids of the probe text differ" in lines
    assert "added tokens differs" in lines


@pytest.mark.needs_shared
def test_remote_code_is_not_run() -> None:
    """A tokenizer that is code is refused, and the option that allows it is named."""
    with pytest.raises(TokenizerError, match="remote code") as caught:
        load_tokenizer(shared("data/tokenizers_bad/internlm2_as_shipped"))
    assert "--trust-remote-code" in str(caught.value)


def test_a_slow_tokenizer_is_refused() -> None:
    """An object without a `tokenizers` backend cannot be hashed or batched."""
    from transformers import ByT5Tokenizer

    with pytest.raises(TokenizerError, match="not a fast tokenizer"):
        load_tokenizer(ByT5Tokenizer())


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "there is no tokenizer in this folder"),
        ({"tokenizer.json": b"{}"}, "cannot load the tokenizer"),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_refused(
    tmp_path: Path, files: dict[str, bytes], complaint: str
) -> None:
    """The folder is named."""
    folder = _written(tmp_path, files)

    with pytest.raises(TokenizerError, match=complaint) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    """No look-up on a hub for what is plainly a path."""
    with pytest.raises(TokenizerError, match="there is no such file or folder"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


BROKEN_FILES = {
    "a template without a name": ("tokenizer_config.json", b'{"chat_template": [{}]}', "`name`"),
    "a template that is no object": ("tokenizer_config.json", b'{"chat_template": [3]}', "`int`"),
    "no UTF-8": ("tokenizer_config.json", b'{"a": "\xff"}', "utf-8"),
    "deep": (
        "tokenizer_config.json",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "recursion",
    ),
    "a list": ("tokenizer_config.json", b"[]", "`object`, got `array`"),
    "a template in no UTF-8": ("chat_template.jinja", b"\xff", "utf-8"),
}


@pytest.mark.parametrize("given", ["", "tokenizer.json"])
@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_configuration_is_named(tmp_path: Path, case: str, given: str) -> None:
    """The file, what is wrong in it, and what to do; for a folder and for its tokenizer.json."""
    name, data, complaint = BROKEN_FILES[case]
    folder = _changed(tmp_path, lambda raw: None)
    (folder / name).write_bytes(data)

    with pytest.raises(TokenizerError, match=complaint) as caught:
        load_tokenizer(folder / given)
    assert caught.value.where == str(folder / name)
    assert caught.value.fix


def test_chat_templates_by_name_may_be_an_object(tmp_path: Path) -> None:
    """As transformers takes them."""
    folder = _changed(tmp_path, lambda raw: None)
    (folder / "tokenizer_config.json").write_text('{"chat_template": {"default": "x"}}')

    assert load_tokenizer(folder / "tokenizer.json").chat_template == "x"


def test_decode_shows_images() -> None:
    """A placeholder is printed as its mark, special tokens as themselves."""
    tokenizer = small_tokenizer()
    ids = tokenizer.backend.encode("<|im_start|>user").ids

    assert tokenizer.decode([*ids, -200, *ids]) == "<|im_start|>user<image><|im_start|>user"


def test_definition_keeps_what_decides_ids() -> None:
    """Dropping cosmetics drops nothing else: flags that change ids stay; both spellings of a
    merge are one."""
    expected = definition_of(small_tokenizer().backend_json)
    raw = json.loads(small_tokenizer().backend_json)
    raw["model"]["merges"] = [" ".join(merge) for merge in raw["model"]["merges"]]
    respelt = definition_of(json.dumps(raw))
    raw["model"]["byte_fallback"] = True

    changed = definition_of(json.dumps(raw))

    assert respelt == expected
    assert changed["model"] != expected["model"]
    assert {**changed, "model": expected["model"]} == expected


def test_the_hash_is_that_of_the_specification() -> None:
    """docs/format.md, section 11.3, done by hand with nothing but json and hashlib; and the
    value itself, so that no change of the code changes it unseen."""

    def sha256_of(value: object) -> str:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    raw = json.loads((FOLDER / "tokenizer.json").read_text())
    pre = raw["pre_tokenizer"]["pretokenizers"]
    definition = {
        "model": {"type": "BPE"},
        "vocab": raw["model"]["vocab"],
        "merges": raw["model"]["merges"],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                pre[0],
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "added_tokens": raw["added_tokens"],
    }

    identity = load_tokenizer(FOLDER / "tokenizer.json").identity

    assert identity.sha256 == sha256_of(definition)
    assert identity.parts == {name: sha256_of(value) for name, value in definition.items()}
    assert identity.sha256.startswith("44604dcb3bdc08b8")
    assert identity.probe_sha256.startswith("6b940f63c3161fd0")
