"""XTuner 0.1.x and 0.2.0: a packed dataset as the `train_dataset` of a config.

    from shardkit.integrations.xtuner import XTunerDataset
    train_dataset = dict(type=XTunerDataset, path="alpaca", tokenizer=tokenizer,
                         template=prompt_template, max_length=max_length)

Takes the place of `process_hf_dataset` and of `LLaVADataset`. Every rank opens the folder by
itself: nothing is tokenised, mapped, broadcast or waited for (docs/xtuner.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from shardkit.errors import MissingPackage, UsageError
from shardkit.format.recipe import SFT, RowRules
from shardkit.format.samples import IMAGE_PLACEHOLDER
from shardkit.images.decode import decode_rgb
from shardkit.images.files import expand_to_square
from shardkit.loader import ShardTable
from shardkit.loader.collate import Padding, RawBatch, make_batch
from shardkit.tokens.templates import Template

Item = dict[str, Any]
_DUMPED = "xtuner.utils.PROMPT_TEMPLATE."
"""How a dumped config begins the name of a template."""


class XTunerDataset(Dataset[Item]):
    """A map-style dataset whose items, lengths and modalities are what XTuner's are.

    An item has `input_ids` and `labels` (lists); of packed data also `cumulative_len` and
    `position_ids`, for use_varlen_attn; with an `image_processor`, `pixel_values`: a text-only
    sample has zeros, as XTuner does it. `length` and `modality_length` are lists for its
    samplers, from the indexes.

    `tokenizer`, `template`, `max_length`: what the run uses; a dataset that was packed with
    something else is refused. `tokenizer` and `image_processor` may be config dicts, `template`
    one of PROMPT_TEMPLATE. Raises UsageError for images that XTuner cannot take: several in a
    sample, another placeholder than -200, or no `image_processor`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: Any = None,
        template: Any = None,
        max_length: int | None = None,
        image_processor: Any = None,
        pad_image_to_square: bool = False,
    ) -> None:
        self.table = ShardTable(
            path,
            tokenizer=_fast(tokenizer),
            template=_template(template),
            max_length=max_length,
        )
        task = RowRules.of(self.table.member.manifest.recipe).task
        if task != SFT:
            raise UsageError(
                "the dataset holds preferences, and this one is for plain examples",
                where=self.table.member.root,
                found=f"the task {task}",
                fix="Train it with ShardLoader, or TRL (docs/how-to/preference.md).",
            )
        self.image_processor = _built(image_processor)
        self.pad_image_to_square = pad_image_to_square
        if self.table.member.manifest.n_images:
            self._check_images()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Item:
        """One item; raises IndexError, CorruptShard for a sample that does not match its hash."""
        sample = self.table[index]
        item: Item = {name: sample[name].tolist() for name in ("input_ids", "labels")}
        if "position_ids" in sample:
            positions = sample["position_ids"]
            item["position_ids"] = positions.tolist()
            borders = torch.nonzero(positions == 0).flatten().tolist()
            item["cumulative_len"] = [*borders, len(positions)]
        if self.image_processor is not None:
            item["pixel_values"] = self._pixels(sample.get("images", ()))
        return item

    @cached_property
    def length(self) -> list[int]:
        """Ids of every sample, an image counting one as XTuner counts it (`length_property`)."""
        return [int(n) for n in self.table.n_tokens]

    @cached_property
    def modality_length(self) -> list[int]:
        """Ids of every sample, negative where it has no image (`modality_length` of XTuner)."""
        signs = np.where(self.table.n_images > 0, 1, -1)
        return [int(n) for n in self.table.n_tokens * signs]

    def _pixels(self, images: Sequence[bytes]) -> torch.Tensor:
        processor = self.image_processor
        if not images:
            size = getattr(processor, "crop_size", None) or processor.size
            return torch.zeros(3, size["height"], size["width"])
        picture = decode_rgb(images[0])
        if self.pad_image_to_square:
            red, green, blue = (int(level * 255) for level in processor.image_mean)
            picture = expand_to_square(picture, (red, green, blue))
        pixels: torch.Tensor = processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
        return pixels

    def _check_images(self) -> None:
        member = self.table.member
        placeholder = (member.manifest.image_recipe or {}).get("image_token", IMAGE_PLACEHOLDER)
        if placeholder != IMAGE_PLACEHOLDER:
            raise UsageError(
                "XTuner knows an image by another placeholder than this dataset has",
                where=member.root,
                expected=str(IMAGE_PLACEHOLDER),
                found=str(placeholder),
                fix="Pack the data without --image-token.",
            )
        if self.image_processor is None:
            raise UsageError(
                "the dataset has images and the config no image_processor",
                where=member.root,
                fix="Give image_processor=, as for XTuner's LLaVADataset.",
            )
        most = int(self.table.n_images.max())
        if most > 1:
            raise UsageError(
                "XTuner takes one image a sample",
                where=f"{self.table.member.root}, sample {int(self.table.n_images.argmax())}",
                found=f"{most} images",
                fix="Pack with --max-images 1, or train with ShardLoader.",
            )


def collate(
    instances: Sequence[Mapping[str, Any]],
    pad_index: int = 0,
    return_hf_format: bool = False,
    use_varlen_attn: bool = False,
) -> dict[str, Any]:
    """The batch that XTuner's default_collate_fn makes of these items, of one sequence rank.

    Padded on the right with `pad_index` and -100, to the longest. `attention_mask` (bool) and
    positions 0, 1, ... on every row; with `use_varlen_attn`, for one packed item, its own
    positions, `cumulative_len` and `max_seqlen` instead. Raises UsageError for several items then.
    """
    if use_varlen_attn and len(instances) != 1:
        raise UsageError(
            "use_varlen_attn takes one pack a batch",
            found=f"{len(instances)} items",
            fix="Set batch_size = 1 in the config, and a larger --max-length.",
        )
    rows = [
        np.concatenate([item["input_ids"], item["labels"]]).astype(np.int32).data
        for item in instances
    ]
    made = make_batch(RawBatch(rows=rows), Padding(pad_index))
    made["labels"][:, 0] = torch.tensor([item["labels"][0] for item in instances])  # not -100
    made["attention_mask"] = made["attention_mask"].bool()
    names = ["input_ids", "attention_mask", "position_ids", "labels"]
    if use_varlen_attn:
        ends = np.array(instances[0]["cumulative_len"], np.int32)
        made["cumulative_len"] = [torch.from_numpy(ends)]
        made["max_seqlen"] = int(np.diff(ends).max())
        made["position_ids"] = torch.tensor([instances[0]["position_ids"]])
        names = ["input_ids", "cumulative_len", "position_ids", "labels", "max_seqlen"]
    batch = {name: made[name] for name in names}
    pixels = [item["pixel_values"] for item in instances if item.get("pixel_values") is not None]
    if pixels:
        alike = all(one.shape == pixels[0].shape for one in pixels)
        batch["pixel_values"] = torch.stack(pixels) if alike else pixels
    return batch if return_hf_format else {"data": batch, "data_samples": None}


def _built(value: Any) -> Any:
    """What a config dict describes, built as XTuner builds it; anything else as it is."""
    if not isinstance(value, Mapping) or "type" not in value:
        return value
    try:
        builder = importlib.import_module("xtuner.registry").BUILDER
    except ImportError as err:
        raise MissingPackage(
            "a config dict is built by XTuner", fix="pip install xtuner, or pass the object itself"
        ) from err
    return builder.build(value)


def _fast(value: Any) -> Any:
    """The tokenizer of a config; raises UsageError for a slow one, whose ids may be others."""
    if isinstance(value, Mapping) and value.get("use_fast") is False:
        raise UsageError(
            "a slow tokenizer: the config says use_fast=False",
            expected="a fast tokenizer, with which the data were packed",
            found="use_fast=False",
            fix="Take use_fast=False out of the config's tokenizer, or leave tokenizer= out of "
            "this dataset.",
        )
    return _built(value)


def _template(value: Any) -> Any:
    """A PROMPT_TEMPLATE entry as a template of ours; anything else as it is.

    A config that mmengine dumped names the entry: `xtuner.utils.PROMPT_TEMPLATE.llama2_chat`.
    """
    if isinstance(value, str):
        return value.removeprefix(_DUMPED)
    if not isinstance(value, Mapping):
        return value
    return Template(
        name="the config's template",
        instruction=value["INSTRUCTION"],
        system=value.get("SYSTEM"),
        suffix=value.get("SUFFIX", ""),
        suffix_as_eos=value.get("SUFFIX_AS_EOS", False),
        sep=value.get("SEP", ""),
    )
