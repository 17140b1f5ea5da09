"""ShardLoader(processor=...): batches are what each family's model takes, and resume exactly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processors import BUILDERS, build
from tiny_vlm import tiny_model
from torch.utils.data import DataLoader
from vlm_rows import ids_by_processor, picture_of, text_by_processor, write

import shardkit
from shardkit import ShardDataset, ShardLoader, ShardMixture, ShardTable
from shardkit.errors import IdentityMismatch, ProcessorError, UsageError
from shardkit.images.decode import decode_rgb
from shardkit.processors import FastPixels, load_processor

EVERY = pytest.mark.parametrize("name", BUILDERS)
SOME = pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "internvl", "llava_onevision", "idefics3", "gemma3"]
)
"""One of each way to join pictures; the contract test has logits of all."""
N = 10
Made = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(dataset, processor's folder) by a processor's name and packing; each is made once."""
    root = tmp_path_factory.mktemp("vision")
    rows = write(root, N)

    def make(name: str, packing: str) -> tuple[Path, Path]:
        folder, out = root / name, root / f"{name}-{packing}"
        if not out.exists():
            build(name).save_pretrained(folder)
            shardkit.pack(
                rows,
                out,
                processor=folder,
                image_root=root / "images",
                packing=packing,
                max_length=400,
            )
        return out, folder

    return make


def pictures_of(row: int) -> list[Any]:
    """The pictures of a row of vlm_rows."""
    n = [1, 0, 2, 1, 1][row % 5]
    return [picture_of(row, k) for k in range(n)]


@EVERY
def test_a_padded_batch_is_the_processors(name: str, made: Made) -> None:
    """Four rows at a time: every key and value that the whole processor gives, and the labels."""
    out, folder = made(name, "none")
    processor = load_processor(folder)
    loader = ShardLoader(out, 4, processor=folder, shuffle=False, drop_last=False)
    for step, batch in enumerate(loader):
        rows = [row for row in range(4 * step, 4 * step + 4) if row < N]
        expected = processor.real(
            text=[text_by_processor(processor.real, row) for row in rows],
            images=images if any(images := [pictures_of(row) for row in rows]) else None,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        n = len(rows)
        found = loader.model_inputs(batch)
        for key, value in expected.items():
            ours = found[key]
            per_row = key in ("input_ids", "attention_mask", processor.family.type_key)
            ours = ours[:n] if per_row or (key.startswith("pixel") and len(ours) == 4) else ours
            assert torch.equal(ours[: len(value)], value), key
        assert set(found) == {*expected, "labels", "position_ids"}
        has_label = batch["labels"] != -100
        assert torch.equal(batch["labels"][has_label], batch["input_ids"][has_label])


@SOME
def test_logits_of_batches_are_those_of_rows_alone(name: str, made: Made) -> None:
    """Padded by four, and packed where the family packs: each row's logits; the mean loss, too."""
    model = tiny_model(name)
    model.set_attn_implementation("sdpa")
    processor = load_processor(made(name, "none")[1])
    alone = {
        tuple(ids_by_processor(processor.real, row)): logits_alone(model, processor, row)
        for row in range(N)
    }
    for packing in ("none", "best-fit") if processor.family.packs else ("none",):
        out, folder = made(name, packing)
        loader = ShardLoader(out, 4, processor=folder, shuffle=False, drop_last=False)
        losses: list[float] = []
        for batch in loader:
            with torch.no_grad():
                result = model(**loader.model_inputs(batch))
            losses.append(float(result.loss))
            for ids, logits in documents(batch, result.logits):
                expected = alone[tuple(ids.tolist())]
                torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        assert losses


def documents(batch: dict[str, Any], logits: torch.Tensor) -> list[Any]:
    """(ids, logits) of every document of a batch that has a label."""
    found = []
    for row in range(len(batch["input_ids"])):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        if "attention_mask" in batch:
            borders = [0, int(batch["attention_mask"][row].sum())]
        else:
            positions = batch["position_ids"]
            positions = (positions[0] if positions.dim() == 3 else positions)[row]
            borders = [*torch.nonzero(positions == 0).ravel().tolist(), len(ids)]
        for begin, end in pairwise(borders):
            if (labels[begin:end] != -100).any():
                found.append((ids[begin:end], logits[row, begin:end]))
    return found


def logits_alone(model: Any, processor: Any, row: int) -> torch.Tensor:
    """What the model says of a row alone, all its inputs by the whole processor."""
    inputs = processor.real(
        text=[text_by_processor(processor.real, row)],
        images=[pictures_of(row)] if pictures_of(row) else None,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
    return logits


@EVERY
def test_a_batch_without_pictures_gets_one_dummy_document(name: str, made: Made) -> None:
    """always-one: the keys of a batch with pictures; the rows' logits, loss and counts are as
    without, their gradients too, and every parameter has one, which ZeRO waits for."""
    model = tiny_model(name)
    model.set_attn_implementation("sdpa")
    packs = load_processor(made(name, "none")[1]).family.packs
    for packing in ("none", "best-fit") if packs else ("none",):
        out, folder = made(name, packing)
        dataset = ShardDataset(out, processor=folder, image_pad="always-one")
        plain = ShardDataset(out, processor=folder)
        sample = {"input_ids": torch.arange(100, 120), "labels": torch.arange(100, 120)}
        if packing != "none":
            sample["position_ids"] = torch.arange(20)
        pictured = next(one for one in dataset if "images" in one)
        found, without = dataset.collate([sample]), plain.collate([sample])
        assert found.keys() == dataset.collate([pictured]).keys()
        assert "pixel_values" not in without
        assert torch.equal(found["labels"][:, :20], without["labels"])
        assert (found["labels"][:, 20:] == -100).all()
        ours, gradients = trained(model, found)
        theirs, expected = trained(model, without)
        torch.testing.assert_close(ours.logits[:, :20], theirs.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-5)
        assert gradients.keys() > expected.keys()
        for key, gradient in gradients.items():
            wanted = expected.get(key, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-5)
        _, seen = trained(model, dataset.collate([pictured]))
        assert gradients.keys() >= seen.keys()


def trained(model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """What the model gives, and the gradients of its parameters that have one."""
    model.zero_grad(set_to_none=True)
    result = model(**ShardLoader.model_inputs(batch))
    result.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return result, found


def test_another_processor_is_refused_before_the_first_batch(made: Made, tmp_path: Path) -> None:
    """Other limits, another patch size, another class: each is named with both values."""
    out, folder = made("qwen2_5_vl", "none")
    real = build("qwen2_5_vl").image_processor
    for name, value, words in (
        ("size", {"shortest_edge": 3136, "longest_edge": 99999}, "max_pixels 50176 / 99999"),
        ("patch_size", 16, "patch_size 14 / 16"),
    ):
        other = load_processor(folder)
        setattr(other.real.image_processor, name, value)
        with pytest.raises(IdentityMismatch, match=words):
            ShardLoader(out, 2, processor=other.real)
    assert real.patch_size == 14
    with pytest.raises(IdentityMismatch, match="family qwen2_vl / llava"):
        ShardLoader(out, 2, processor=made("llava", "none")[1])
    with pytest.raises(UsageError, match="image_transform"):
        ShardLoader(out, 2, processor=folder, image_transform=print)
    with pytest.raises(UsageError, match="processor"):
        ShardLoader(out, 2, image_pad="always-one")


def test_without_a_processor_pictures_stay_encoded(made: Made) -> None:
    """The rows are expanded all the same; pixels are the caller's business."""
    out, _ = made("qwen2_5_vl", "none")
    batch = next(iter(ShardLoader(out, 5, shuffle=False)))
    assert len(batch["images"]) == 5
    assert "pixel_values" not in batch


@pytest.mark.parametrize("n_workers", [0, 2])
def test_every_picture_once_after_a_resume_on_other_ranks(made: Made, n_workers: int) -> None:
    """Stopped in mid-epoch and continued by two ranks: each row exactly once, its pictures too."""
    out, folder = made("qwen2_5_vl", "none")
    options: dict[str, Any] = {"processor": folder, "seed": 3, "num_workers": n_workers}
    first = ShardLoader(out, 2, drop_last=False, sample_keys=True, **options)
    iterator = iter(first)
    seen = [*next(iterator)["keys"], *next(iterator)["keys"]]
    state = first.state_dict()
    pixels: dict[str, float] = {}
    for rank in (0, 1):
        loader = ShardLoader(
            out, 1, rank=rank, world_size=2, drop_last=False, sample_keys=True, **options
        )
        loader.load_state_dict(state)
        for batch in loader:
            (key,) = batch["keys"]
            seen += [key] if key else []
            pixels[key] = float(batch["pixel_values"].sum()) if "pixel_values" in batch else 0.0
    assert sorted(seen) == sorted({*seen})
    assert len(seen) == N
    whole = ShardLoader(out, 1, shuffle=False, sample_keys=True, processor=folder)
    for batch in whole:
        (key,) = batch["keys"]
        if key in pixels and "pixel_values" in batch:
            assert pixels[key] == float(batch["pixel_values"].sum())


KILLED = """
import json, os, signal, sys
from shardkit import ShardLoader
loader = ShardLoader(sys.argv[1], 2, processor=sys.argv[2], seed=3, sample_keys=True)
keys = []
for step, batch in enumerate(loader):
    keys += batch["keys"]
    if step == 1:
        with open(sys.argv[3], "w") as file:
            json.dump({"keys": keys, "state": loader.state_dict()}, file)
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_every_picture_once(made: Made, tmp_path: Path) -> None:
    """Killed after the state was written; on 1 rank and on 4: rows, ids and pixels exactly once."""
    out, folder = made("qwen2_5_vl", "none")
    processor = load_processor(folder)
    command = [sys.executable, "-c", KILLED, out, folder, tmp_path / "state.json"]
    killed = subprocess.run([str(word) for word in command], check=False)
    assert killed.returncode == -signal.SIGKILL
    saved = json.loads((tmp_path / "state.json").read_text())
    options: dict[str, Any] = {"processor": folder, "seed": 3, "drop_last": False}
    table = ShardTable(out, processor=folder)
    before = [i for i in range(N) if table[i]["key"] in saved["keys"]]
    assert len(before) == len(saved["keys"]) == 4
    expected = [content_of(table.collate([table[i]]), processor) for i in range(N)]
    done = sum((expected[i] for i in before), Counter[Any]())
    for n_ranks in (1, 4):
        seen = Counter(done)
        for rank in range(n_ranks):
            loader = ShardLoader(out, 1, rank=rank, world_size=n_ranks, **options)
            with pytest.warns(UserWarning, match="every sample is still seen exactly once"):
                loader.load_state_dict(saved["state"])
            for batch in loader:
                seen += content_of(batch, processor)
        assert seen == sum(expected, Counter())
    pictures = sum(len(pictures_of(row)) for row in range(N))
    assert sum(n for what, n in seen.items() if isinstance(what, bytes)) == pictures


def content_of(batch: dict[str, Any], processor: Any) -> Counter[Any]:
    """The rows' ids and their pictures' pixels, counted; what has no label is no row."""
    found: Counter[Any] = Counter()
    for row in range(len(batch["input_ids"])):
        n = int(batch["attention_mask"][row].sum())
        if (batch["labels"][row] != -100).any():
            found[tuple(batch["input_ids"][row, :n].tolist())] += 1
    grids = batch.get("image_grid_thw", torch.zeros(0, 3))
    ends = np.cumsum([0, *(int(grid.prod()) for grid in grids)])
    for begin, end in pairwise(ends.tolist()):
        found[batch["pixel_values"][begin:end].numpy().tobytes()] += 1
    return found


def test_text_mixes_with_pictures(made: Made, tmp_path: Path) -> None:
    """A mixture of text and pictures, packed with one processor, in either order."""
    out, folder = made("qwen2_5_vl", "none")
    rows = write(tmp_path, 4, talks=([("user", "Hi"), ("assistant", "Hello")],))
    shardkit.pack(rows, tmp_path / "text", processor=folder, max_length=400)
    for members in ({out: 1, tmp_path / "text": 1}, {tmp_path / "text": 1, out: 1}):
        mixture = ShardMixture(members, processor=folder, until="all")
        batches = list(ShardLoader(mixture, 4))
        n = sum(int(batch["image_grid_thw"].shape[0]) for batch in batches if "images" not in batch)
        assert n >= 10
    other = made("llava", "none")[0]
    with pytest.raises(IdentityMismatch):
        ShardMixture({out: 1, other: 1}, processor=folder)


def test_tables_and_plain_data_loaders_give_the_same(made: Made) -> None:
    """ShardTable and DataLoader(ShardDataset) collate what ShardLoader gives."""
    for packing in ("none", "best-fit"):
        out, folder = made("llava_onevision", packing)
        expected = next(iter(ShardLoader(out, 3, processor=folder, shuffle=False)))
        table = ShardTable(out, processor=folder)
        found = table.collate([table[i] for i in range(3)])
        dataset = ShardDataset(out, processor=folder, shuffle=False)
        plain = next(iter(DataLoader(dataset, batch_size=3, collate_fn=dataset.collate)))
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found[key], value), key
                assert torch.equal(plain[key], value), key


def test_pixels_do_not_depend_on_threads(made: Made) -> None:
    """One thread and many give the same bits."""
    out, folder = made("internvl", "none")
    one, many = (
        [batch["pixel_values"] for batch in ShardLoader(out, 4, processor=folder, image_threads=n)]
        for n in (1, 4)
    )
    assert len(one) == len(many) > 1
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
    assert all(np.isfinite(a.numpy()).all() for a in one)


@EVERY
def test_fast_pixels_are_within_two_grey_levels(name: str, made: Made) -> None:
    """Every other key is equal, and no pixel is further off than two of 255 levels."""
    out, folder = made(name, "none")
    processor = load_processor(folder)
    level = processor.arguments.get("rescale_factor", 1 / 255) / max(
        processor.real.image_processor.image_std
    )
    options: dict[str, Any] = {"processor": folder, "shuffle": False, "drop_last": False}
    exact, fast = (ShardLoader(out, 5, fast_pixels=one, **options) for one in (False, True))
    n_seen = 0
    for ours, theirs in zip(fast, exact, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key == "pixel_values":
                assert ours[key].dtype == value.dtype
                assert (ours[key] - value).abs().max() <= 2 * level
                n_seen += len(value)
            elif isinstance(value, torch.Tensor):
                assert torch.equal(ours[key], value), key
    assert n_seen


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "idefics3"])
def test_fast_pixels_of_a_transparent_colour_are_the_processors(name: str, made: Made) -> None:
    """A PNG may call one colour of RGB transparent: processors put white there."""
    processor = load_processor(made(name, "none")[1])
    picture = picture_of(0, 0).copy()
    picture.paste((9, 9, 9), (0, 0, 150, 150))
    picture.info["transparency"] = (9, 9, 9)
    (ours,) = FastPixels(processor)._made([picture])
    (theirs,) = processor.arrays([picture])
    np.testing.assert_allclose(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=0.02)


def test_fast_pixels_that_are_too_far_off_stop_the_run(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are compared with the processor's: the difference is named."""
    out, folder = made("qwen2_5_vl", "none")
    right = FastPixels._scale

    def wrong(self: FastPixels, grey: Any, out: Any) -> None:
        right(self, np.minimum(grey, 250) + 5, out)

    monkeypatch.setattr(FastPixels, "_scale", wrong)
    with pytest.raises(
        ProcessorError, match=r"(?s)expected at most 2 grey levels.*found 5\.\d grey"
    ):
        next(iter(ShardLoader(out, 5, shuffle=False, processor=folder, fast_pixels=True)))


def test_fast_pixels_of_another_decoder_stop_the_run(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fast decoder makes of a file is measured too."""
    from shardkit.images import transform

    out, folder = made("qwen2_5_vl", "none")
    monkeypatch.setattr(
        transform, "fast_rgb", lambda data: decode_rgb(data).point(lambda v: min(v, 245) + 10)
    )
    with pytest.raises(ProcessorError, match="fast_pixels makes other pixels"):
        next(iter(ShardLoader(out, 5, shuffle=False, processor=folder, fast_pixels=True)))


def test_pictures_are_what_is_counted_between_two_comparisons(made: Made) -> None:
    """Two of them at the beginning, and one in 1,024, however many are made together."""
    fast = FastPixels(load_processor(made("llava", "none")[1]))
    picture = picture_of(0, 0)
    compared = []

    def exact() -> list[Any]:
        compared.append(fast._n_seen)
        return [picture] * 3

    for n_seen in (0, 1, 2, 1020, 1021, 1023, 1024, 2046):
        fast._n_seen = n_seen
        fast.arrays([picture] * 3, exact)
    assert compared == [3, 4, 1024, 1026, 2049]


def test_fast_pixels_need_a_processor_that_rescales(made: Made) -> None:
    """Without a processor, and with one that gives grey levels themselves: refused by name."""
    out, folder = made("llava", "none")
    with pytest.raises(UsageError, match="fast_pixels without the processor"):
        ShardLoader(out, 2, fast_pixels=True)
    grey = load_processor(folder, arguments={"do_rescale": False})
    with pytest.raises(UsageError, match="does not rescale"):
        FastPixels(grey)
