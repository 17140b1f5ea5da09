"""Padding: what a batch holds, against XTuner's collate and against the slow, obvious way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shared import shared

from shardkit.loader.collate import Padding, RawBatch, make_batch


def row(*values: list[int]) -> memoryview:
    """A sample's token rows, end to end."""
    return np.array(values, np.int32).ravel().data


def test_rows_are_padded_on_the_right() -> None:
    """Ids get the pad id, labels -100, the mask 0; positions run on; padding adds a whole row."""
    raw = RawBatch(rows=[row([5, 6, 7], [-100, 6, 7]), row([8], [8])], n_padding_rows=1)

    batch = make_batch(raw, Padding(pad_token_id=2, multiple=4), always=("n_padding_rows",))

    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 2, 2, 2], [2, 2, 2, 2]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [-100] * 4, [-100] * 4]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]] * 3
    assert batch["n_padding_rows"] == 1
    assert {batch[name].dtype for name in ("input_ids", "labels", "attention_mask")} == {
        torch.int64
    }
    assert all(batch[name].is_contiguous() for name in ("input_ids", "position_ids"))


def test_packed_rows_have_borders_and_no_mask() -> None:
    """Positions restart in every document; the padding of a pack is a document of its own."""
    raw = RawBatch(
        rows=[
            row([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
            row([6, 7, 8], [6, 7, 8]),
        ],
        documents=[np.array([2, 3]), np.array([3])],
        n_padding_rows=1,
    )

    batch = make_batch(raw, Padding(pad_token_id=9))

    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch["cu_seqlens"].tolist() == [0, 2, 5, 8, 10, 15]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == 5
    assert batch["labels"].tolist()[:2] == [[-100, 2, -100, 4, 5], [-100, 7, 8, -100, -100]]
    assert set(batch) == {"input_ids", "labels", "position_ids", "cu_seqlens", "max_seqlen"}


def test_a_batch_of_padding_alone() -> None:
    """Padding rows alone make a batch of one token each that attends to itself."""
    empty: list[NDArray[np.int64]] = []
    for documents in (None, empty):
        raw = RawBatch(rows=[], documents=documents, n_padding_rows=2)
        batch = make_batch(raw, Padding(pad_token_id=3))

        assert batch["input_ids"].tolist() == [[3], [3]]
        assert batch["labels"].tolist() == [[-100], [-100]]


@pytest.mark.needs_shared
def test_equal_to_xtuner() -> None:
    """input_ids, labels, mask and positions equal XTuner's default_collate_fn.

    But for the labels of first tokens, which no model's shift uses, and a count would.
    """
    n_seen = 0
    for case in json.loads(shared("goldens/xtuner/collate.json").read_text()):
        if case.get("use_varlen_attn") is not False:
            continue
        result = case["result"]
        rows = [row(i["input_ids"], i["labels"]) for i in case["instances"]]
        batch = make_batch(RawBatch(rows=rows), Padding(case["pad_index"]))
        for name in ("input_ids", "labels", "attention_mask", "position_ids"):
            expected = [[int(v) for v in r] for r in result[name]]
            if name == "labels":
                expected = [[-100, *r[1:]] for r in expected]
            assert batch[name].tolist() == expected
        n_seen += 1

    assert n_seen >= 2
