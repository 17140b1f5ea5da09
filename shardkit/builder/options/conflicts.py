"""Options that contradict each other are refused, before anything is opened."""

from __future__ import annotations

from shardkit.builder.options.images import ImageOptions
from shardkit.builder.options.kept import defaults_of
from shardkit.errors import UsageError
from shardkit.format.recipe import SFT
from shardkit.format.samples import IMAGE_PLACEHOLDER
from shardkit.options import flag_name
from shardkit.storage.open import is_url, text_of
from shardkit.storage.urls import shown_url
from shardkit.tokens.padding import check_multiple
from shardkit.tokens.train_rules import DEFAULT


def refuse_conflicts(options: ImageOptions) -> None:
    """Raise UsageError where two options cannot both hold, or one needs another."""
    _check_processor(options)
    _refuse_for_task(options)
    _refuse_remote_pictures(options)
    if options.packing != "none" and options.max_length is None:
        raise UsageError(
            f"--packing {options.packing} needs --max-length",
            fix="Say how long a packed row is: --max-length 2048.",
        )
    if options.packing == "none" and options.pack_scope == "all":
        raise UsageError(
            "--pack-scope all without packs",
            fix="Say how rows are packed: --packing best-fit.",
        )
    if options.pad_documents_to_multiple > 1 and options.packing == "none":
        raise UsageError(
            "--pad-documents-to-multiple is for the documents of packs",
            found="--packing none",
            fix="Leave it out (the loader's pad_to_multiple_of pads rows), or give --packing.",
        )
    if options.max_length is not None:
        check_multiple(options.pad_documents_to_multiple, options.max_length)
    if options.image_size is not None and options.store_max_pixels is not None:
        raise UsageError(
            "--image-size and --store-max-pixels both say how large pictures are stored",
            fix="Give one of them.",
        )
    if options.overlong != DEFAULT.overlong and options.max_length is None:
        raise UsageError(
            f"--overlong {options.overlong} needs --max-length",
            fix="Say how long a row may be: --max-length 2048.",
        )


def _refuse_remote_pictures(options: ImageOptions) -> None:
    root = None if options.image_root is None else text_of(options.image_root)
    if root is not None and is_url(root):
        raise UsageError(
            "pictures are read from a folder of this machine",
            where="--image-root",
            found=shown_url(root),
            fix="Fetch them first (aws s3 sync, hf download, rclone copy ...) or mount the "
            "storage, and name the folder; or pack rows that hold their pictures (Parquet, tar).",
        )


def _check_processor(options: ImageOptions) -> None:
    if options.processor is None and options.tokenizer is None:
        raise UsageError(
            "tokenizer is missing",
            expected="a hub name, a folder, a tokenizer.json or a tokenizer object",
            fix="Give tokenizer (--tokenizer), or for pictures processor (--processor).",
        )
    if options.processor is None and options.processor_arguments:
        raise UsageError(
            f"{', '.join(options.processor_arguments)} without a processor",
            fix="Name the processor that has these settings: --processor DIR_OR_NAME.",
        )
    if options.processor is None:
        return
    if options.tokenizer is not None:
        raise UsageError("a tokenizer and a processor are given", fix="Leave --tokenizer out.")
    if options.image_tokens != 1 or options.image_token != IMAGE_PLACEHOLDER:
        raise UsageError(
            "a processor counts the tokens of pictures itself",
            fix="Leave --image-tokens and --image-token out.",
        )


def _refuse_for_task(options: ImageOptions) -> None:
    """Raise UsageError for options that have no meaning in rows of preferences."""
    if options.task == SFT:
        return
    default = defaults_of(type(options))
    for name, why in _NOT_FOR_PREFERENCES.items():
        value = getattr(options, name)
        if value != default[name]:
            raise UsageError(
                f"{flag_name(name)} with --task {options.task}: {why}",
                found=f"{flag_name(name)} {value}",
                fix=f"Leave {flag_name(name)} out.",
            )
    if options.source_format not in ("auto", "chat"):
        raise UsageError(
            f"--task {options.task} reads shapes of its own",
            found=f"--format {options.source_format}",
            fix="Leave --format out.",
        )


_NOT_FOR_PREFERENCES = {
    "packing": "trainers take rows of preferences one by one, so they are not packed",
    "train_on": "the answers are in the loss, and the prompt is not",
    "history": "the answers are in the loss, and the prompt is not",
    "append_eos": "it is for documents",
    "train_empty_think": "all of an answer is in the loss already",
}
"""Options that would say something else than the task, and why."""
