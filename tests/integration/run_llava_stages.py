"""One step of a tiny LLaVA under several ZeRO stages in one launch: rank 0 has images, rank 1 not.

Writes the weights after the step, as one vector for each stage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deepspeed
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from train_llava import IMAGE_TOKENS, image_size, make_model

from shardkit import ShardLoader
from shardkit.images import ImageTransform
from shardkit.integrations.deepspeed import without_shm_build


def main() -> None:
    dataset, out = sys.argv[1], Path(sys.argv[2])
    without_shm_build()
    rank = int(os.environ["RANK"])
    loader = ShardLoader(
        dataset, 2, shuffle=False, rank=rank, world_size=2,
        image_transform=ImageTransform(image_size(IMAGE_TOKENS), "pad"),
        expand_image_tokens=IMAGE_TOKENS, image_token_id=2048, image_pad="always-one",
    )  # fmt: skip
    batch = next(iter(loader))
    names = ("input_ids", "labels", "attention_mask", "position_ids", "pixel_values")
    assert len(batch["pixel_values"]) == (2 if rank == 0 else 1)
    for stage in (0, 1, 2):
        model = make_model(2048)
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=model.parameters(),
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            config={
                "train_micro_batch_size_per_gpu": 2,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        loss = engine(**{name: batch[name] for name in names}, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        weights = torch.cat([p.detach().flatten() for p in engine.module.parameters()])
        if rank == 0:
            np.save(out / f"stage{stage}.npy", weights.numpy())


if __name__ == "__main__":
    main()
