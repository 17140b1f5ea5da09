"""Options of tokens and labels: what makes ids, what is in the loss, how rows are packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from shardkit.builder.options.kept import RECIPE, RECIPE_IF_GIVEN, TOKENS, Kept
from shardkit.builder.options.rows import RowOptions
from shardkit.builder.options.values import is_date, named_value
from shardkit.options import (
    Fits,
    Flag,
    OneOf,
    Positive,
    ProcessorSource,
    TemplateSource,
    TokenizerSource,
)
from shardkit.tokens import RULES
from shardkit.tokens.train_rules import (
    DEFAULT,
    History,
    Overlong,
    ToolCalls,
    TrainRules,
    is_train_on,
)
from shardkit.units import length_of

PACKINGS = OneOf(lambda: RULES)


class TokenOptions(RowOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of rows, and of what becomes of a row's text."""

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
    """Values of the chat template's variables, which the template's identity keeps."""
    date: Annotated[
        str | None,
        Fits("a date as 2026-12-31, or None", is_date),
        Flag("what a chat template prints as today's date", "YYYY-MM-DD", TOKENS),
    ] = None
    trust_remote_code: Annotated[bool, Flag("run a hub tokenizer's code", group=TOKENS)] = False

    @property
    def rules(self) -> TrainRules:
        """What of a row is trained, what is put right in it, and how it ends."""
        return TrainRules(**{rule.name: getattr(self, rule.name) for rule in fields(TrainRules)})
