"""Small processors of real classes over the small tokenizer, and tiny models to go with them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardkit.processors.transformers_door import without_videos

TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "tokenizer"
EDGE = 56
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
_VIDEO = {
    "Qwen2VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen2_5_VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen3VLProcessor": "Qwen3VLVideoProcessor",
    "InternVLProcessor": "InternVLVideoProcessor",
    "LlavaOnevisionProcessor": "LlavaOnevisionVideoProcessor",
    "SmolVLMProcessor": "SmolVLMVideoProcessor",
}

SIZES = ((300, 200), (100, 640), (50, 50), (57, 211), (112, 112))
"""(width, height) of pictures that every family cuts up differently."""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: no two pixels of two pictures are the same by chance."""
    noise = np.random.default_rng([width, height, seed]).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


def template(image: str, *, begin: str = "", end: str = "") -> str:
    """A chat template with content parts, and marks around the assistant's words."""
    part = f"{begin}{image}{end}"
    return (
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message['role'] + '\\n' }}"
        "{%- if message['role'] == 'assistant' %}{%- generation %}"
        "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
        "{%- for part in message['content'] %}{%- if part['type'] == 'text' %}"
        "{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>' }}"
        "{%- endgeneration %}{%- else %}"
        "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
        "{%- for part in message['content'] %}{%- if part['type'] == 'image' %}"
        "{{- '" + part + "' }}{%- else %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}"
        "{{- '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )


def tokenizer(*tokens: str, **named: str) -> Any:
    """The small tokenizer with more special tokens; named ones become attributes."""
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"extra_special_tokens": named} if named else {}
    made = AutoTokenizer.from_pretrained(TOKENIZER, **options)
    made.add_tokens(["<image>", *tokens], special_tokens=True)
    return made


def image_processor(name: str, **settings: Any) -> Any:
    """An image processor class: with torchvision where it is there, else the one of Pillow."""
    import transformers

    return getattr(transformers, name if HAS_TORCHVISION else f"{name}Pil")(**settings)


def _class(name: str) -> Any:
    import transformers

    found = getattr(transformers, name)
    return found if HAS_TORCHVISION else without_videos(found)


def _with_videos(name: str) -> dict[str, Any]:
    """Its video processor, for a class that wants one, where torchvision is there."""
    import transformers

    if not HAS_TORCHVISION or "video_processor" not in getattr(transformers, name).get_attributes():
        return {"video_processor": None} if name == "SmolVLMProcessor" else {}
    return {"video_processor": getattr(transformers, _VIDEO[name])()}


def _qwen(name: str, patch_size: int) -> Any:
    edge = 2 * patch_size
    images = image_processor(
        "Qwen2VLImageProcessor",
        patch_size=patch_size,
        min_pixels=edge * edge * 4,
        max_pixels=edge * edge * 64,
    )
    extra = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    wrapped = template("<|image_pad|>", begin="<|vision_start|>", end="<|vision_end|>")
    options = _with_videos(name)
    return _class(name)(images, tokenizer(*extra), chat_template=wrapped, **options)


def _internvl() -> Any:
    images = image_processor(
        "GotOcr2ImageProcessor",
        size={"height": EDGE, "width": EDGE},
        min_patches=1,
        max_patches=4,
    )
    named = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    return _class("InternVLProcessor")(
        images,
        named,
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>", end="\\n"),
        **_with_videos("InternVLProcessor"),
    )


def _llava() -> Any:
    images = image_processor(
        "CLIPImageProcessor",
        size={"shortest_edge": EDGE},
        crop_size={"height": EDGE, "width": EDGE},
    )
    return _class("LlavaProcessor")(
        images,
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>", end="\\n"),
    )


def _llava_next() -> Any:
    images = image_processor(
        "LlavaNextImageProcessor",
        size={"shortest_edge": EDGE},
        crop_size={"height": EDGE, "width": EDGE},
        image_grid_pinpoints=[[EDGE, 2 * EDGE], [2 * EDGE, EDGE], [2 * EDGE, 2 * EDGE]],
    )
    return _class("LlavaNextProcessor")(
        images,
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>", end="\\n"),
    )


def _onevision() -> Any:
    pinpoints = [[EDGE, EDGE], [EDGE, 2 * EDGE], [2 * EDGE, EDGE], [2 * EDGE, 2 * EDGE]]
    images = image_processor(
        "LlavaOnevisionImageProcessor",
        size={"height": EDGE, "width": EDGE},
        image_grid_pinpoints=pinpoints,
    )
    return _class("LlavaOnevisionProcessor")(
        images,
        tokenizer("<video>"),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>", end="\\n"),
        **_with_videos("LlavaOnevisionProcessor"),
    )


def _idefics(name: str, images_name: str) -> Any:
    images = image_processor(
        images_name, size={"longest_edge": 2 * EDGE}, max_image_size={"longest_edge": EDGE}
    )
    extra = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    options = {"image_seq_len": 4, "chat_template": template("<image>"), **_with_videos(name)}
    return _class(name)(images, tokenizer(*extra), **options)


def _pixtral() -> Any:
    images = image_processor(
        "PixtralImageProcessor",
        size={"longest_edge": 2 * EDGE},
        patch_size={"height": 14, "width": 14},
    )
    return _class("PixtralProcessor")(
        images,
        tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=14,
        spatial_merge_size=2,
        chat_template=template("[IMG]"),
    )


def _gemma3() -> Any:
    images = image_processor(
        "Gemma3ImageProcessor",
        size={"height": EDGE, "width": EDGE},
        do_pan_and_scan=None,
    )
    named = tokenizer(
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    return _class("Gemma3Processor")(
        images, named, image_seq_length=4, chat_template=template("<start_of_image>")
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "qwen2_vl": lambda: _qwen("Qwen2VLProcessor", 14),
    "qwen2_5_vl": lambda: _qwen("Qwen2_5_VLProcessor", 14),
    "qwen3_vl": lambda: _qwen("Qwen3VLProcessor", 16),
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _onevision,
    "idefics3": lambda: _idefics("Idefics3Processor", "Idefics3ImageProcessor"),
    "smolvlm": lambda: _idefics("SmolVLMProcessor", "SmolVLMImageProcessor"),
    "pixtral": _pixtral,
    "gemma3": _gemma3,
}
"""Every processor class that the table names, by a name for the test."""

CLASSES = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "internvl": "InternVLProcessor",
    "llava": "LlavaProcessor",
    "llava_next": "LlavaNextProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
    "idefics3": "Idefics3Processor",
    "smolvlm": "SmolVLMProcessor",
    "pixtral": "PixtralProcessor",
    "gemma3": "Gemma3Processor",
}
"""Which class each of them is of."""


@cache
def build(name: str) -> Any:
    """The processor; skips the test where a package that its class wants is not here."""
    try:
        built = BUILDERS[name]()
        assert type(built).__name__ == CLASSES[name]
        return built
    except ImportError as error:
        pytest.skip(f"{name}: {' '.join(str(error).split())[:100]}")
