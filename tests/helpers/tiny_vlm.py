"""Tiny randomly initialised vision-language models, one for each small processor."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from processors import EDGE, build

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": EDGE,
    "patch_size": 14,
}


@cache
def tiny_model(name: str) -> Any:
    """The model of a processor of helpers/processors.py, in float32, in evaluation mode."""
    torch.manual_seed(0)
    config = CONFIGS[name](build(name))
    import transformers

    auto: Any = transformers.AutoModelForImageTextToText
    made = auto.from_config(config)
    for parameter in made.parameters():  # zero-initialised parts would hide mistakes
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.float().eval()


def _config(name: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**settings)


def _text(processor: Any, model_type: str, **others: Any) -> dict[str, Any]:
    return {"model_type": model_type, "vocab_size": len(processor.tokenizer), **TEXT, **others}


def _qwen(name: str) -> Any:
    def config(processor: Any) -> Any:
        tokens = processor.tokenizer.convert_tokens_to_ids
        ids = {
            "image_token_id": tokens("<|image_pad|>"),
            "video_token_id": tokens("<|video_pad|>"),
            "vision_start_token_id": tokens("<|vision_start|>"),
            "vision_end_token_id": tokens("<|vision_end|>"),
        }
        rope: dict[str, Any] = {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}
        rope["rope_theta"] = 10000.0
        text = {**TEXT, "vocab_size": len(processor.tokenizer), "rope_scaling": rope}
        text["rope_parameters"] = rope
        if name == "Qwen3VL":
            rope["mrope_interleaved"] = True
            text["head_dim"] = 8
            vision = {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 4,
                "out_hidden_size": 32,
                "patch_size": 16,
                "num_position_embeddings": 256,
                "deepstack_visual_indexes": [0],
            }
        elif name == "Qwen2_5_VL":
            vision = {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 4,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
                "window_size": 56,
                "patch_size": 14,
            }
        else:
            vision = {
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 14,
            }
        return _config(
            f"{name}Config",
            text_config=text,
            vision_config=vision,
            tie_word_embeddings=False,
            **ids,
        )

    return config


def _llava(processor: Any) -> Any:
    return _config(
        "LlavaConfig",
        text_config=_text(processor, "llama"),
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
        image_token_id=processor.image_token_id,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
    )


def _llava_next(processor: Any) -> Any:
    return _config(
        "LlavaNextConfig",
        text_config=_text(processor, "llama"),
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
        image_token_id=processor.image_token_id,
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
        vision_feature_layer=-1,
    )


def _onevision(processor: Any) -> Any:
    return _config(
        "LlavaOnevisionConfig",
        text_config=_text(processor, "qwen2"),
        vision_config={
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **VISION,
        },
        image_token_id=processor.image_token_id,
        image_token_index=processor.image_token_id,
        video_token_id=processor.video_token_id,
        image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
        vision_feature_layer=-1,
    )


def _internvl(processor: Any) -> Any:
    vision = {**VISION, "image_size": [EDGE, EDGE], "patch_size": [14, 14]}
    return _config(
        "InternVLConfig",
        text_config=_text(processor, "qwen2"),
        vision_config={"model_type": "internvl_vision", **vision},
        image_token_id=processor.image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
    )


def _idefics(name: str) -> Any:
    def config(processor: Any) -> Any:
        return _config(
            f"{name}Config",
            text_config=_text(processor, "llama"),
            vision_config=dict(VISION),
            image_token_id=processor.image_token_id,
            scale_factor=2,
            use_cache=False,
        )

    return config


def _pixtral(processor: Any) -> Any:
    vision = {**VISION, "model_type": "pixtral", "image_size": 2 * EDGE, "head_dim": 8}
    return _config(
        "Mistral3Config",
        text_config=_text(processor, "mistral", head_dim=8),
        vision_config=vision,
        image_token_id=processor.image_token_id,
        image_token_index=processor.image_token_id,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def _gemma3(processor: Any) -> Any:
    tokenizer = processor.tokenizer
    text = _text(processor, "gemma3_text", head_dim=8, sliding_window=4096)
    return _config(
        "Gemma3Config",
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        mm_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )


CONFIGS: dict[str, Any] = {
    "qwen2_vl": _qwen("Qwen2VL"),
    "qwen2_5_vl": _qwen("Qwen2_5_VL"),
    "qwen3_vl": _qwen("Qwen3VL"),
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _onevision,
    "idefics3": _idefics("Idefics3"),
    "smolvlm": _idefics("SmolVLM"),
    "pixtral": _pixtral,
    "gemma3": _gemma3,
}
