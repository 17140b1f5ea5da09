"""Images under ZeRO: batches with and without them side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from launch import reports
from PIL import Image
from ranks import run_ranks
from records import TOKENIZER, write_json

from shardkit import pack

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
def test_a_text_batch_beside_an_image_batch_has_right_gradients(tmp_path: Path) -> None:
    """ZeRO-0, 1 and 2 end at the same weights when rank 1 has no image (image_pad=always-one)."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "images/a.png")
    rows = []
    for i in range(4):
        question = "<image>\nWhat colour?" if i < 2 else f"How many is {i} and one?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"It is {i}."}]
        rows.append({"conversations": turns} | ({"image": "a.png"} if i < 2 else {}))
    pack(
        write_json(tmp_path / "rows.json", rows),
        tmp_path / "data",
        tokenizer=TOKENIZER,
        template="qwen_chat",
        max_length=128,
        image_root=tmp_path / "images",
        image_tokens=16,
    )
    script = Path(__file__).with_name("run_llava_stages.py")
    run_ranks(2, script, tmp_path / "data", tmp_path)
    stages = [np.load(tmp_path / f"stage{stage}.npy") for stage in (0, 1, 2)]
    assert np.abs(stages[0]).max() > 0
    for stage in stages[1:]:
        np.testing.assert_allclose(stage, stages[0], atol=1e-5)


@pytest.mark.slow
def test_the_example_trains_on_two_ranks(tmp_path: Path) -> None:
    """examples/train_llava.py under ZeRO-2: samples once each, a falling loss."""
    manifest = pack(
        EXAMPLES / "data/llava.json",
        tmp_path / "data",
        tokenizer=TOKENIZER,
        template="qwen_chat",
        max_length=256,
        image_root=EXAMPLES / "data/images",
        image_tokens=16,
    )
    assert manifest is not None
    assert manifest.sources[0].rejected == {"image_missing": 1, "placeholder_mismatch": 1}
    run_ranks(2, EXAMPLES / "train_llava.py", tmp_path / "data", "--report", tmp_path)
    ranks = reports(tmp_path, 2)
    seen = [key for rank in ranks for batch in rank["keys"] for key in batch]
    assert len(seen) == len(set(seen)) == 90 - 90 % 8
    assert ranks[0]["losses"][-1] < ranks[0]["losses"][0]
