"""Everything that the user can say about a pack: each option is one field, and stands nowhere else.

A field's annotation holds its type and range, how the command line shows it (`Flag`), and where
the manifest keeps it (`Kept`): identity, `PackOptions.of` ("the same options again") and the
command's options all come from there. To add an option, add a field (and its line in
arguments.py, which only type checkers read; a test compares the two).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from shardkit.builder.values import (
    are_columns,
    columns_of,
    id_or_text,
    is_date,
    named_value,
    names_of_list,
)
from shardkit.errors import BadInput, UsageError
from shardkit.format.builds import Build
from shardkit.format.codec import compression_choices, parse_compression
from shardkit.format.layout import TOKENIZER_FOLDER
from shardkit.format.manifest import Manifest
from shardkit.format.recipe import SFT, Task
from shardkit.format.samples import IMAGE_PLACEHOLDER
from shardkit.options import (
    FilePath,
    Fits,
    Flag,
    OneOf,
    Positive,
    ProcessorSource,
    TemplateSource,
    TokenizerSource,
    chosen,
    flag_name,
    hints_of,
)
from shardkit.sources import OTHER_NAMES, SOURCES, SourceFormat, Split, source_named
from shardkit.tokens import ENGINES as TOKEN_ENGINES
from shardkit.tokens import RULES, load_tokenizer, template_of
from shardkit.tokens.padding import check_multiple
from shardkit.tokens.rules import DEFAULT, History, Overlong, ToolCalls, TrainRules, is_train_on
from shardkit.units import length_of, size_of

SHARD_SIZE = 64 << 20
"""Bytes of a shard, about, before compression."""
N_PARTS = 64
"""Parts of a large input, until they are as large as they may be."""
PART_BYTES = 8 << 20
"""Bytes of source rows in a part, at least, where an input has so many."""
MOST_PART_BYTES = 48 << 20
"""The same at most: a worker holds the tokens of a part that is packed."""
PART_ROWS = 8192
PART_ROWS_WITH_IMAGES = 1024

TOKENS, IMAGES, ROWS, RUNNING = "tokens and labels", "images", "rows and shards", "running"
"""The headings of the command's options."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the identity keeps an option."""

    place: Literal["recipe", "images", "layout", "identity"]
    always: bool = True
    """False: only when it is not the default, so that it changes no older fingerprint."""
    name: str | None = None
    """There, where that is not its own."""


RECIPE, LAYOUT = Kept("recipe"), Kept("layout")
RECIPE_IF_GIVEN = Kept("recipe", always=False)
IN_IMAGES = Kept("images")
IN_IMAGES_IF_GIVEN = Kept("images", always=False)


_SOURCE_FORMATS = OneOf(lambda: ("auto", *SOURCES, *OTHER_NAMES))
PACKINGS = OneOf(lambda: RULES)
_TOKENIZER_ENGINES = OneOf(lambda: ("auto", *TOKEN_ENGINES))


MaxRejects = Annotated[
    float,
    Fits("a whole number of rows, or a share below 1", lambda n: n >= 0 and (n < 1 or n % 1 == 0)),
]


class AppendOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options that an append may choose anew: they decide no bytes of a row that is kept."""

    on_error: Annotated[
        Literal["reject", "fail"],
        Flag("what a bad row does: it is listed (default), or it stops the run", group=ROWS),
    ] = "reject"
    max_rejects: Annotated[
        MaxRejects | None,
        Flag("fail above N rows, or above a share below 1 (default: 0.5)", "N", ROWS),
    ] = 0.5
    """A count, or a share of all rows when below 1; None: no limit."""
    exclude: Annotated[
        Sequence[str] | None,
        Flag(
            "leave these files of folders and globs out, as 'meta*.json'",
            "GLOB,...",
            ROWS,
            parse=names_of_list,
        ),
    ] = None
    engine: Annotated[
        str,
        _TOKENIZER_ENGINES,
        Flag(
            "auto takes a fast engine only where its ids agree (default)",
            group=RUNNING,
            name="--tokenizer-engine",
        ),
    ] = "auto"


class PackOptions(AppendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a pack; those that decide bytes are in the identity."""

    source_format: Annotated[
        str,
        _SOURCE_FORMATS,
        Flag("which fields the rows have (default: auto, from the first rows)", name="--format"),
        RECIPE,
    ] = "auto"
    task: Annotated[
        Task,
        Flag(
            "sft (default); preference: rows of a chosen and a rejected answer (DPO); kto: rows "
            "of one answer with a label",
            group=ROWS,
        ),
        RECIPE_IF_GIVEN,
    ] = SFT
    """What the rows are for."""
    tokenizer: Annotated[
        TokenizerSource | None, Flag("a folder or a hub name", "DIR_OR_NAME", TOKENS)
    ] = None
    """A hub name, a folder, a tokenizer object: what load_tokenizer takes."""
    processor: Annotated[
        ProcessorSource | None,
        Flag(
            "a vision-language processor, in place of --tokenizer: its tokenizer and chat "
            "template are taken, and rows become its ids, pictures expanded",
            "DIR_OR_NAME",
            TOKENS,
        ),
    ] = None
    """A hub name, a folder, a processor object: what load_processor takes."""
    template: Annotated[
        TemplateSource,
        Flag(
            "a named template, `tokenizer` (its own chat template, the default), or a "
            ".json or .jinja file",
            "NAME",
            TOKENS,
        ),
    ] = "tokenizer"
    """A name, `tokenizer`, or a file: what load_template takes."""
    columns: Annotated[
        Mapping[str, str] | None,
        Fits("names of fields, each with the name of the file's column", are_columns),
        Flag(
            "which columns the rows have for our fields, as question=prompt,answer=completion",
            "OURS=THEIRS,...",
            ROWS,
            name="--map",
            parse=columns_of,
        ),
        RECIPE_IF_GIVEN,
    ] = None
    """Our name of a field -> the name that the records have for it."""
    ignored_fields: Annotated[
        Sequence[str] | None,
        Flag(
            "drop these keys of records, although they may change the meaning",
            "NAME,...",
            ROWS,
            name="--ignore-field",
            parse=names_of_list,
        ),
        RECIPE_IF_GIVEN,
    ] = None
    drop_duplicates: Annotated[
        bool,
        Flag("reject a row that is, with its images, the same as an earlier one", group=ROWS),
        RECIPE_IF_GIVEN,
    ] = False
    split: Annotated[
        Split,
        Flag(
            "which files of a folder: train (default) leaves out test and validation files that "
            "lie beside others",
            group=ROWS,
        ),
    ] = "train"
    system: Annotated[
        str | None, Flag("for conversations without a system message", "TEXT", TOKENS), RECIPE
    ] = None
    max_length: Annotated[
        Positive | None,
        Flag(
            "tokens of a row (4k is 4,096); what becomes of longer ones: --overlong",
            "N",
            TOKENS,
            parse=length_of,
        ),
        RECIPE,
    ] = None
    overlong: Annotated[
        Overlong,
        Flag(
            "a row longer than max-length keeps its head (cut, the default), is rejected (drop), "
            "or becomes several samples (split: documents of text alone)",
            group=TOKENS,
        ),
        RECIPE_IF_GIVEN,
    ] = DEFAULT.overlong
    append_eos: Annotated[
        bool,
        Flag("end documents of text with the EOS token, in the loss", group=TOKENS),
        RECIPE_IF_GIVEN,
    ] = DEFAULT.append_eos
    packing: Annotated[
        str,
        PACKINGS,
        Flag(
            "none; concat (concatenate, cut at max-length); best-fit (split no sample)",
            group=TOKENS,
        ),
        RECIPE,
    ] = "none"
    pack_scope: Annotated[
        Literal["part", "all"],
        Flag(
            "which rows share packs: those of a part (default), or all, laid out in a second pass",
            group=TOKENS,
        ),
        Kept("layout", always=False, name="scope"),
    ] = "part"
    pad_documents_to_multiple: Annotated[
        Positive,
        Flag(
            "pad every document of a pack, for context parallelism: 2 x its ranks",
            "N",
            TOKENS,
        ),
        RECIPE_IF_GIVEN,
    ] = 1
    special_tokens_in_text: Annotated[
        Literal["parse", "literal"],
        Flag(
            "whether `<|im_end|>` typed by a user becomes that token (default: parse, as XTuner)",
            group=TOKENS,
        ),
        RECIPE,
    ] = "parse"
    train_on: Annotated[
        str,
        Fits("all, last, or roles with commas between", is_train_on),
        Flag(
            "which messages are in the loss: all answers (default), the last answer, or the "
            "messages of these roles",
            "all|last|ROLE,...",
            TOKENS,
        ),
        RECIPE_IF_GIVEN,
    ] = DEFAULT.train_on
    history: Annotated[
        History,
        Flag(
            "a row whose earlier answers the chat template prints differently is rejected "
            "(default), split into one sample an answer, or its last answer is trained",
            group=TOKENS,
        ),
        RECIPE_IF_GIVEN,
    ] = DEFAULT.history
    train_empty_think: Annotated[
        bool,
        Flag("have empty think blocks before an answer in the loss", group=TOKENS),
        RECIPE_IF_GIVEN,
    ] = DEFAULT.train_empty_think
    tool_calls: Annotated[
        ToolCalls,
        Flag(
            "normal: arguments given as JSON text become objects, function_call turns become "
            "tool calls (default); raw: as the record has them",
            group=TOKENS,
        ),
        RECIPE_IF_GIVEN,
    ] = DEFAULT.tool_calls
    fold_system: Annotated[
        bool,
        Flag(
            "put a system message before the first question where the template takes none",
            group=TOKENS,
        ),
        RECIPE_IF_GIVEN,
    ] = DEFAULT.fold_system
    template_args: Annotated[
        Mapping[str, Any] | None,
        Flag(
            "a variable of the chat template, as enable_thinking=false; may be repeated",
            "NAME=VALUE",
            TOKENS,
            name="--template-arg",
            parse=named_value,
        ),
    ] = None
    """In the template's identity."""
    date: Annotated[
        str | None,
        Fits("a date as 2026-12-31, or None", is_date),
        Flag("what a chat template prints as today's date", "YYYY-MM-DD", TOKENS),
    ] = None
    trust_remote_code: Annotated[bool, Flag("run a hub tokenizer's code", group=TOKENS)] = False
    image_root: Annotated[
        FilePath | None, Flag("where image paths begin", "DIR", IMAGES, parse=Path)
    ] = None
    image_tokens: Annotated[
        Positive, Flag("tokens of an image in the model", "N", IMAGES), IN_IMAGES
    ] = 1
    image_token: Annotated[
        int | str,
        Flag("the placeholder (default: -200)", "ID_OR_TEXT", IMAGES, parse=id_or_text),
        IN_IMAGES,
    ] = IMAGE_PLACEHOLDER
    """An id, or the text of a token of the tokenizer."""
    max_pixels: Annotated[
        Positive | None, Flag("the processor's max_pixels, of a picture", "N", IMAGES)
    ] = None
    min_pixels: Annotated[
        Positive | None, Flag("the processor's min_pixels, of a picture", "N", IMAGES)
    ] = None
    processor_args: Annotated[
        Mapping[str, Any] | None,
        Flag(
            "another setting of the processor (may be repeated)",
            "NAME=VALUE",
            IMAGES,
            name="--processor-arg",
            parse=named_value,
        ),
    ] = None
    """Settings that replace those of the processor's files, by name."""
    image_size: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=16384)] | None,
        Flag("store JPEGs of N x N pixels", "N", IMAGES),
        IN_IMAGES,
    ] = None
    image_fit: Annotated[
        Literal["pad", "crop", "resize"], Flag("how they get there", group=IMAGES), IN_IMAGES
    ] = "pad"
    store_max_pixels: Annotated[
        Positive | None,
        Flag("store a picture of more pixels as a JPEG of N", "N", IMAGES),
        IN_IMAGES_IF_GIVEN,
    ] = None
    """Its shape stays; a processor counts the tokens of what is stored."""
    image_quality: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)], Flag("1 to 100", "Q", IMAGES), IN_IMAGES
    ] = 90
    max_images: Annotated[
        Positive | None, Flag("of a row, and of a pack", "N", IMAGES), IN_IMAGES
    ] = None
    shuffle_seed: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=2**64 - 1)] | None,
        Flag("shuffle all rows first", "N", ROWS),
        Kept("identity"),
    ] = None
    shard_size: Annotated[
        Positive,
        Flag("of a shard: 64M (the default), 200MB, 1GiB", "SIZE", ROWS, parse=size_of),
        LAYOUT,
    ] = SHARD_SIZE
    compression: Annotated[str, Flag(compression_choices(), "CODEC", ROWS)] = "none"
    part_rows: Annotated[Positive | None, Flag("rows of a part, at most", "N", ROWS), LAYOUT] = None
    part_bytes: Annotated[Positive | None, LAYOUT] = None

    def __post_init__(self) -> None:
        """Refuse options that contradict each other; raises UsageError."""
        parse_compression(self.compression)
        self._check_processor()
        refuse_for_task(self)
        if self.packing != "none" and self.max_length is None:
            raise UsageError(
                f"--packing {self.packing} needs --max-length",
                fix="Say how long a packed row is: --max-length 2048.",
            )
        if self.packing == "none" and self.pack_scope == "all":
            raise UsageError(
                "--pack-scope all without packs",
                fix="Say how rows are packed: --packing best-fit.",
            )
        if self.pad_documents_to_multiple > 1 and self.packing == "none":
            raise UsageError(
                "--pad-documents-to-multiple is for the documents of packs",
                found="--packing none",
                fix="Leave it out (the loader's pad_to_multiple_of pads rows), or give --packing.",
            )
        if self.max_length is not None:
            check_multiple(self.pad_documents_to_multiple, self.max_length)
        if self.image_size is not None and self.store_max_pixels is not None:
            raise UsageError(
                "--image-size and --store-max-pixels both say how large pictures are stored",
                fix="Give one of them.",
            )
        if self.overlong != DEFAULT.overlong and self.max_length is None:
            raise UsageError(
                f"--overlong {self.overlong} needs --max-length",
                fix="Say how long a row may be: --max-length 2048.",
            )
        if self.source_format != "auto":
            self.check_family(source_named(self.source_format))

    def check_family(self, source: SourceFormat) -> None:
        """Raise UsageError where rows of this format cannot be treated as asked."""
        if self.overlong == "split" and source.family != "text":
            raise UsageError(
                "--overlong split is for documents of text",
                found=f"rows of the format {source.name}",
                fix="Rows with answers are cut (--overlong cut) or left out (--overlong drop): an "
                "answer without its question teaches something else.",
            )

    def _check_processor(self) -> None:
        if self.processor is None and self.tokenizer is None:
            raise UsageError(
                "tokenizer is missing",
                expected="a hub name, a folder, a tokenizer.json or a tokenizer object",
                fix="Give tokenizer (--tokenizer), or for pictures processor (--processor).",
            )
        if self.processor is None and self.processor_arguments:
            raise UsageError(
                f"{', '.join(self.processor_arguments)} without a processor",
                fix="Name the processor that has these settings: --processor DIR_OR_NAME.",
            )
        if self.processor is None:
            return
        if self.tokenizer is not None:
            raise UsageError("a tokenizer and a processor are given", fix="Leave --tokenizer out.")
        if self.image_tokens != 1 or self.image_token != IMAGE_PLACEHOLDER:
            raise UsageError(
                "a processor counts the tokens of pictures itself",
                fix="Leave --image-tokens and --image-token out.",
            )

    @property
    def processor_arguments(self) -> dict[str, Any]:
        """All settings that replace the processor's own."""
        limits = {"max_pixels": self.max_pixels, "min_pixels": self.min_pixels}
        given = {name: value for name, value in limits.items() if value is not None}
        return {**(self.processor_args or {}), **given}

    def part_size(self, n_rows: int, n_bytes: int) -> dict[str, int]:
        """The most rows and about the bytes of a part, for an input of so many rows and bytes.

        A function of the input and the options alone. Parts grow with the input, so that a shard
        has the size that was asked for: 64 of them from 8,192 rows and 8 MiB each, then larger
        ones up to 48 MiB, then more. With pictures a part has 1,024 rows.
        """
        rows = PART_ROWS_WITH_IMAGES
        if self.image_root is None:
            rows = max(PART_ROWS, n_rows // N_PARTS)
        size = min(max(PART_BYTES, n_bytes // N_PARTS), MOST_PART_BYTES)
        return {"part_rows": self.part_rows or rows, "part_bytes": self.part_bytes or size}

    @property
    def rules(self) -> TrainRules:
        """What of a row is trained, what is put right in it, and how it ends."""
        return TrainRules(
            train_on=self.train_on,
            history=self.history,
            train_empty_think=self.train_empty_think,
            tool_calls=self.tool_calls,
            fold_system=self.fold_system,
            overlong=self.overlong,
            append_eos=self.append_eos,
        )

    def kept(self, place: str) -> dict[str, Any]:
        """The options that the identity keeps in `place`, by name."""
        values: dict[str, Any] = {}
        for name, kept in kept_options().items():
            value = getattr(self, name)
            if kept.place == place and (kept.always or value != _default(name)):
                values[kept.name or name] = value
        return values

    def image_recipe(self, in_rows: bool = False) -> dict[str, object] | None:
        """The image settings of the identity; None for text.

        `in_rows`: whether records bring pictures along, or may (with a processor).
        """
        if self.image_root is None and not in_rows:
            return None
        recipe = self.kept("images") | {"processor": None}
        if self.image_size is None:
            recipe["image_fit"] = None
        if self.image_size is None and self.store_max_pixels is None:
            recipe["image_quality"] = None
        if self.image_root is None:
            recipe["in_rows"] = True
        return recipe

    @classmethod
    def of(cls, manifest: Manifest, build: Build, **more: object) -> PackOptions:
        """The options of a build of a finished dataset, to build rows of the same recipe again.

        `more`: what a manifest does not hold (tokenizer, template, image_root), and options that
        decide no bytes; None leaves the default. Settings of a later minor version are ignored.
        Raises BadInput when images need their folder, UsageError.
        """
        recipe = manifest.recipe
        images = recipe.get("images") or {}
        if images and not images.get("in_rows") and more.get("image_root") is None:
            raise BadInput("the dataset holds images", fix="Name their folder: --image-root DIR.")
        places = {
            "recipe": recipe,
            "images": images,
            "layout": build.identity["layout"],
            "identity": build.identity,
        }
        given: dict[str, object] = {"compression": manifest.compression}
        for name, kept in kept_options().items():
            value = places[kept.place].get(kept.name or name)
            if value is not None:
                given[name] = value
        if images.get("processor") is not None:
            given.pop("image_token", None)  # it is the processor's
        if given["packing"] == "kept":
            given["packing"] = "none"
        if given["packing"] == "none":
            given.pop("pack_scope", None)  # of a repacked dataset
        given["date"] = recipe["template"].get("date")
        given["template_args"] = recipe["template"].get("args")
        given |= {name: value for name, value in more.items() if value is not None}
        if not images:
            given.pop("image_root", None)
        return chosen(cls, given)


def refuse_for_task(options: PackOptions) -> None:
    """Raise UsageError for options that have no meaning in rows of preferences."""
    if options.task == SFT:
        return
    default = {field.name: field.default for field in msgspec.structs.fields(PackOptions)}
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


def of_dataset(
    manifest: Manifest, root: Path, tokenizer: object = None, template: object = None
) -> dict[str, object]:
    """The tokenizer and template that lie in a dataset, or those given in their place.

    The recipe holds the template's text: no file of it is needed, and no name is looked up.
    """
    loaded = load_tokenizer(tokenizer or root / TOKENIZER_FOLDER)
    return {
        "tokenizer": loaded,
        "template": template or template_of(manifest.recipe["template"], loaded),
    }


def kept_options() -> dict[str, Kept]:
    """The options that the identity keeps, with where it does."""
    found = {}
    for name, hint in hints_of(PackOptions).items():
        for part in get_args(hint):
            if isinstance(part, Kept):
                found[name] = part
    return found


def _default(name: str) -> object:
    return next(f.default for f in msgspec.structs.fields(PackOptions) if f.name == name)
