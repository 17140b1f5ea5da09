"""Where does a new vision-language model go? Here: one entry of `PROCESSORS`.

The contract test (tests/contracts/test_processors.py) runs over the table: ids, pixels and logits
of every entry are compared with the processor and a small model of transformers.
"""

from __future__ import annotations

from shardkit.processors.counting import (
    gemma_facts,
    grid_facts,
    internvl_facts,
    no_grid,
    one_size_facts,
    pixtral_facts,
    qwen_facts,
    row_of,
    rows_and_columns,
    tiled_facts,
)
from shardkit.processors.family import Family
from shardkit.processors.joining import joined, joined_by_document, joined_by_row, joined_padded
from shardkit.processors.quick import (
    middle,
    one_resize,
    pixtral_resize,
    qwen_patches,
    split_tiles,
    tiles_of_canvas,
)

_OWN_TOKENS = ("image_token",)


def _qwen(*classes: str) -> Family:
    return Family(
        classes=classes,
        image_settings=("patch_size", "temporal_patch_size", "merge_size"),
        own_settings=_OWN_TOKENS,
        facts_of_size=qwen_facts,
        grid_of=row_of("image_grid_thw"),
        join=joined,
        type_key="mm_token_type_ids",
        positions="mrope",
        wrappers=("<|vision_start|>", "<|vision_end|>"),
        quick=qwen_patches,
        has_pixel_limits=True,
    )


def _idefics(*classes: str) -> Family:
    return Family(
        classes=classes,
        image_settings=("max_image_size", "do_image_splitting"),
        own_settings=(*_OWN_TOKENS, "image_seq_len", "fake_image_token"),
        facts_of_size=grid_facts,
        quick=split_tiles,
        grid_of=rows_and_columns,
        join=joined_by_row,
    )


_LLAVA_OWN = ("vision_feature_select_strategy", "patch_size", "num_additional_image_tokens")

PROCESSORS: dict[str, Family] = {
    "qwen2_vl": _qwen("Qwen2VLProcessor", "Qwen2_5_VLProcessor"),
    "qwen3_vl": _qwen("Qwen3VLProcessor"),
    "internvl": Family(
        classes=("InternVLProcessor",),
        image_settings=("crop_to_patches", "min_patches", "max_patches"),
        own_settings=(*_OWN_TOKENS, "image_seq_length", "start_image_token", "end_image_token"),
        facts_of_size=internvl_facts,
        quick=tiles_of_canvas,
        grid_of=row_of("num_patches"),
        join=joined,
    ),
    "llava": Family(
        classes=("LlavaProcessor",),
        image_settings=(),
        own_settings=(*_OWN_TOKENS, *_LLAVA_OWN),
        facts_of_size=one_size_facts,
        quick=middle,
        grid_of=no_grid,
        join=joined,
    ),
    "llava_next": Family(
        classes=("LlavaNextProcessor",),
        image_settings=("image_grid_pinpoints",),
        own_settings=(*_OWN_TOKENS, *_LLAVA_OWN),
        facts_of_size=tiled_facts,
        grid_of=row_of("image_sizes"),
        join=joined_padded,
    ),
    "llava_onevision": Family(
        classes=("LlavaOnevisionProcessor",),
        image_settings=("image_grid_pinpoints",),
        own_settings=(
            *_OWN_TOKENS,
            "num_image_tokens",
            "vision_feature_select_strategy",
            "vision_aspect_ratio",
        ),
        facts_of_size=tiled_facts,
        grid_of=row_of("image_sizes"),
        join=joined_by_document,
        by_document=True,
    ),
    "idefics3": _idefics("Idefics3Processor"),
    "smolvlm": _idefics("SmolVLMProcessor"),
    "pixtral": Family(
        classes=("PixtralProcessor",),
        image_settings=(),
        own_settings=(
            *_OWN_TOKENS,
            "patch_size",
            "spatial_merge_size",
            "image_break_token",
            "image_end_token",
        ),
        facts_of_size=pixtral_facts,
        quick=pixtral_resize,
        grid_of=row_of("image_sizes"),
        join=joined_padded,
    ),
    "gemma3": Family(
        classes=("Gemma3Processor",),
        image_settings=(
            "do_pan_and_scan",
            "pan_and_scan_min_crop_size",
            "pan_and_scan_max_num_crops",
            "pan_and_scan_min_ratio_to_activate",
        ),
        own_settings=(*_OWN_TOKENS, "image_seq_length"),
        facts_of_size=gemma_facts,
        quick=one_resize,
        grid_of=row_of("num_crops"),
        join=joined,
        type_key="token_type_ids",
        packs=False,  # transformers 5.24 lays the first document's pictures over all (sliding mask)
    ),
}
"""Every family, by the name that recipes store."""
