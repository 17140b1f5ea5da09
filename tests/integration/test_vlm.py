"""Vision-language models under DeepSpeed: packed, on two ranks, pictures on one of them alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from launch import reports
from processors import build
from ranks import run_ranks
from records import TOKENIZER
from vlm_rows import write

from shardkit import pack

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FAMILIES = ("qwen2_5_vl", "llava_onevision", "idefics3")


@pytest.mark.slow
def test_a_rank_without_pictures_has_right_gradients(tmp_path: Path) -> None:
    """ZeRO-0, 1, 2 and 3 end at the same weights when rank 1 has no picture, for three families."""
    picture = [("user", "<image>What is # this?"), ("assistant", "A house.")]
    words = [("user", "Why does it rain # times?"), ("assistant", "Because of clouds.")]
    rows = write(tmp_path, 4, talks=(picture, picture, words, words))
    for name in FAMILIES:
        build(name).save_pretrained(tmp_path / name)
        pack(
            rows,
            tmp_path / f"{name}-data",
            processor=tmp_path / name,
            image_root=tmp_path / "images",
            max_length=400,
        )
    script = Path(__file__).with_name("run_vlm_stages.py")
    run_ranks(2, script, tmp_path, tmp_path, *FAMILIES)
    for name in FAMILIES:
        stages = [np.load(tmp_path / f"{name}-{stage}.npy") for stage in (0, 1, 2, 3)]
        assert np.isfinite(stages[0]).all()
        assert np.abs(stages[0]).max() > 0
        for stage in stages[1:]:
            np.testing.assert_allclose(stage, stages[0], atol=1e-5)


@pytest.mark.slow
def test_the_example_trains_packed_rows_on_two_ranks(tmp_path: Path) -> None:
    """examples/train_vlm.py under ZeRO-2: packs once each, a falling loss."""
    script, processor = EXAMPLES / "train_vlm.py", tmp_path / "processor"
    made = (script, "--make-processor", processor, "--tokenizer", TOKENIZER)
    run_ranks(1, *made)
    manifest = pack(
        EXAMPLES / "data/llava.json",
        tmp_path / "data",
        processor=processor,
        max_length=256,
        packing="best-fit",
        image_root=EXAMPLES / "data/images",
    )
    assert manifest is not None
    assert manifest.n_images > 0
    options = ("--processor", processor, "--report", tmp_path / "seen")
    run_ranks(2, script, tmp_path / "data", *options)
    ranks = reports(tmp_path / "seen", 2)
    seen = [key for rank in ranks for batch in rank["keys"] for key in batch]
    n = manifest.n_samples
    assert len(seen) == len(set(seen)) == n - n % 4
    assert ranks[0]["losses"][-1] < ranks[0]["losses"][0]
    assert json.loads((processor / "processor_config.json").read_text())
