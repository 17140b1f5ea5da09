"""Ids and labels equal XTuner 0.1.23's, bit for bit, on every text golden."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared import SHARED, shared

from shardkit.conversation import IMAGE_MARK, Conversation, Message, Reason, Reject
from shardkit.format.samples import Samples
from shardkit.sources import SOURCES, ReadOptions
from shardkit.tokens import Encoder, Tokenizer, load_template, load_tokenizer, pack

pytestmark = pytest.mark.needs_shared

_INDEX = SHARED / "goldens/xtuner/INDEX.json"
_CASES: list[dict[str, Any]] = json.loads(_INDEX.read_text()) if _INDEX.exists() else []


def _cases(**wanted: object) -> list[Any]:
    """The goldens whose arguments are these, as pytest parameters."""
    args = [case["args"] for case in _CASES]
    chosen = [a for a in args if all(a[name] == value for name, value in wanted.items())]
    return [pytest.param(a, id=Path(a["out"]).name.removesuffix(".jsonl.gz")) for a in chosen]


@cache
def _tokenizer(name: str) -> Tokenizer:
    """llama2 from its tokenizer.json: AutoTokenizer of transformers 5 rebuilds it, and then
    `</s> text` has one id less than in the 4.48 that made the goldens."""
    folder = shared(f"data/tokenizers/{name}")
    return load_tokenizer(folder / "tokenizer.json" if name == "llama2" else folder)


_FORMATS = {"alpaca": "alpaca", "openai": "chat", "llava": "chat", "pretrain": "text"}


def _read(record: dict[str, Any], kind: str) -> Conversation | None:
    """The record's conversation, through shardkit's readers; None for what XTuner drops."""
    found = SOURCES[_FORMATS[kind]].read(record, ReadOptions(has_images=kind == "llava"))
    if isinstance(found, Conversation):
        return found
    if found.reason == Reason.PLACEHOLDER_MISMATCH:
        return _several_turns_of_one_image(record)
    assert found.reason in (Reason.NO_OUTPUT, Reason.NO_ANSWER, Reason.EMPTY_TEXT)
    return None


def _several_turns_of_one_image(record: dict[str, Any]) -> Conversation:
    """XTuner tokenises a row whose turns name one picture several times (and then shifts the
    images of the batch); our reader rejects it. For its tokens: one image per mark."""
    messages = []
    for turn in record["conversations"]:
        text = turn["value"]
        if turn["from"] == "human" and IMAGE_MARK in text:
            text = f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
        messages.append(Message("user" if turn["from"] == "human" else "assistant", text))
    n_marks = sum(message.text.count(IMAGE_MARK) for message in messages)
    assert n_marks > 1
    return Conversation(tuple(messages), images=(str(record["image"]),) * n_marks)


@dataclass(frozen=True)
class Case:
    encoder: Encoder
    conversations: list[Conversation]
    golden: list[dict[str, Any]]


def _load(args: dict[str, Any], **options: Any) -> Case:
    tokenizer = _tokenizer(args["tokenizer"])
    name = args["template"] if args["template"] != "none" else "default"
    options = {"max_length": args["max_length"], "engine": "hf", **options}
    encoder = Encoder(tokenizer, load_template(name, tokenizer), **options)
    records = json.loads(shared(f"goldens/xtuner/{args['data']}").read_text())
    if args["max_dataset_length"]:
        state = np.random.RandomState(args["seed"])
        chosen = state.choice(len(records), args["max_dataset_length"], replace=False)
        records = [records[i] for i in chosen]
    found = [_read(record, args["kind"]) for record in records]
    with gzip.open(shared(f"goldens/xtuner/{args['out']}"), "rt") as file:
        golden = [json.loads(line) for line in file]
    return Case(encoder, [one for one in found if one is not None], golden)


def _rows(samples: Samples) -> list[tuple[list[int], list[int]]]:
    ids, labels, starts = samples.ids, samples.labels, samples.starts
    return [(ids[a:b].tolist(), labels[a:b].tolist()) for a, b in pairwise(starts.tolist())]


def _expected(golden: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"], row["labels"]) for row in golden]


@pytest.mark.parametrize("args", _cases(pack=False, no_output=False))
def test_unpacked_rows_equal_xtuner(args: dict[str, Any]) -> None:
    """Every row's ids and labels are XTuner's, in its order."""
    case = _load(args)

    encoded = case.encoder.encode(case.conversations)

    assert _rows(encoded.samples) == _expected(case.golden)
    digest = hashlib.sha256()
    for row in _rows(encoded.samples):
        digest.update(json.dumps(list(row)).encode())
    name = args["out"]
    (entry,) = [one for one in _CASES if one["args"]["out"] == name]
    assert digest.hexdigest() == entry["sha256_ids_labels"]


@pytest.mark.parametrize("args", _cases(pack=False, no_output=False, template="vicuna"))
def test_unpacked_rows_equal_xtuner_with_the_fast_engine(args: dict[str, Any]) -> None:
    """The engine that `auto` chooses gives XTuner's ids too."""
    pytest.importorskip("fastokens")
    case = _load(args, engine="auto")

    encoded = case.encoder.encode(case.conversations)

    assert case.encoder.engine_name == "fastokens"
    assert _rows(encoded.samples) == _expected(case.golden)


@pytest.mark.parametrize("args", _cases(no_output=True))
def test_prompts_equal_xtuner(args: dict[str, Any]) -> None:
    """Without outputs XTuner's row is the beginning of ours: BOS and the question."""
    case = _load(args, max_length=None)

    encoded = case.encoder.encode(case.conversations)

    rows = dict(zip(encoded.kept.tolist(), _rows(encoded.samples), strict=True))
    assert len(case.golden) == len(case.conversations)
    for position, golden in enumerate(case.golden):
        if position in rows:
            ids, labels = rows[position]
            n = len(golden["input_ids"])
            assert ids[:n][: args["max_length"]] == golden["input_ids"]
            assert set(labels[:n]) == {-100}


@pytest.mark.parametrize("args", _cases(pack=True, num_proc=1))
def test_packs_of_one_process_equal_xtuner(args: dict[str, Any]) -> None:
    """Packs are XTuner's, and after its last one comes what it loses: the tail."""
    case = _load(args)

    samples = case.encoder.encode(case.conversations).samples
    packed = pack(samples, rule="concat", max_length=args["max_length"])

    n = len(case.golden)
    assert _rows(packed)[:n] == _expected(case.golden)
    assert len(packed) - n in (0, 1)
    assert len(packed.ids) == len(samples.ids)
    if args["varlen"]:
        assert _cumulative(packed)[:n] == [row["cumulative_len"] for row in case.golden]


@pytest.mark.parametrize("args", _cases(pack=True, num_proc=2))
def test_packs_of_two_processes_equal_xtuner(args: dict[str, Any]) -> None:
    """XTuner's other packings are ours, once its shuffle, its shards and its losses are copied.

    It shuffles rows with NumPy's global state, gives each process one contiguous half, and loses
    the tail of each half.
    """
    case = _load(args)
    samples = case.encoder.encode(case.conversations).samples
    order = _xtuner_shuffle(len(samples), args["seed"])
    halves = np.array_split(order, args["num_proc"])

    packs = [pack(_take(samples, half), rule="concat", max_length=512) for half in halves]

    whole = [row for one in packs for row in _rows(one) if len(row[0]) == args["max_length"]]
    assert whole == _expected(case.golden)
    borders = [c for one in packs for c in _cumulative(one) if c[-1] == args["max_length"]]
    assert borders == [row["cumulative_len"] for row in case.golden]


def _cumulative(packed: Samples) -> list[list[int]]:
    """XTuner's `cumulative_len` of every pack."""
    assert packed.segments is not None
    borders: list[list[int]] = [[0] for _ in range(len(packed))]
    for segment in packed.segments:
        borders[segment["sample"]].append(int(segment["start"] + segment["length"]))
    return borders


def _xtuner_shuffle(n: int, seed: int) -> np.ndarray:
    """`Dataset.shuffle()` without a seed, after NumPy's global state was seeded."""
    state = np.random.RandomState(seed).get_state(legacy=False)["state"]
    keys, position = state["key"], state["pos"]
    derived = keys[position] if position < 624 else keys[0]
    return np.random.default_rng(int(derived)).permutation(n)


def _take(samples: Samples, rows: np.ndarray) -> Samples:
    pieces = [slice(samples.starts[i], samples.starts[i + 1]) for i in rows]
    return replace(
        samples,
        ids=np.concatenate([samples.ids[piece] for piece in pieces]),
        labels=np.concatenate([samples.labels[piece] for piece in pieces]),
        starts=np.concatenate([[0], np.cumsum(samples.lengths[rows])]),
        source=samples.source[rows],
        record=samples.record[rows],
        n_cut=samples.n_cut[rows],
    )


def test_a_llava_row_whose_marks_are_not_its_images_is_rejected() -> None:
    """Two marks and one picture: XTuner shifts every later image of the batch, we reject."""
    tokenizer = _tokenizer("internlm2")
    encoder = Encoder(tokenizer, load_template("vicuna", tokenizer), max_length=64)
    question = Message("user", f"{IMAGE_MARK}\na {IMAGE_MARK} b")
    row = Conversation((question, Message("assistant", "c")), images=("one.jpg",))

    encoded = encoder.encode([row])

    assert len(encoded.samples) == 0
    position, reject = encoded.rejects[0]
    assert position == 0
    assert isinstance(reject, Reject)
    assert reject.reason == "placeholder_mismatch"


_PACKER = SHARED / "goldens/xtuner/packer.json"


@pytest.mark.parametrize("batch_rows", [4, 1000])
def test_packer_vectors(batch_rows: int) -> None:
    """XTuner's Packer in the cases where our rule is meant to agree.

    `concat` is one concatenation cut every `chunk` tokens. XTuner feeds it in batches of rows: a
    batch that is shorter than a chunk is emitted short (in the middle of the data), and the last
    residual is lost, or kept back by drop_last. So cases with a short pack before the end are
    left out; in all others every full pack is equal, and our tail is the residual.
    """
    n_compared = 0
    for case in json.loads(shared("goldens/xtuner/packer.json").read_text()):
        if case["batch_rows"] != batch_rows:
            continue
        packs = [row for out in case["outputs"] for row in out["input_ids"]]
        labels = [row for out in case["outputs"] for row in out["labels"]]
        if any(len(row) < case["chunk"] for row in packs[:-1]) or _lost_in_the_middle(case):
            continue
        packed = pack(_numbered(case["lens"]), rule="concat", max_length=case["chunk"])
        n = len(packs)
        assert _rows(packed)[:n] == list(zip(packs, labels, strict=True))
        assert sum(len(ids) for ids, _ in _rows(packed)[n:]) == case["residual_len"]
        if case["varlen"]:
            borders = [row for out in case["outputs"] for row in out["cumulative_len"]]
            assert _cumulative(packed)[:n] == borders
        n_compared += 1
    assert n_compared >= 20


def _lost_in_the_middle(case: dict[str, Any]) -> bool:
    """Did XTuner lose or hold back tokens before its last pack?"""
    kept = [i for out in case["outputs"] for row in out["input_ids"] for i in row]
    return kept != list(range(len(kept))) or len(kept) + case["residual_len"] != sum(case["lens"])


def _numbered(lengths: list[int]) -> Samples:
    """The packer vectors' samples: ids 0, 1, 2 ..., every third label masked, sample by sample."""
    n = sum(lengths)
    ids = np.arange(n, dtype=np.int32)
    return Samples(
        ids=ids,
        labels=np.where(ids % 3 == 0, -100, ids).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        source=np.zeros(len(lengths), np.uint32),
        record=np.arange(len(lengths), dtype=np.uint64),
        n_cut=np.zeros(len(lengths), np.uint32),
    )
