"""What makes ids of the rows of a pack: a tokenizer and a template, or a processor with both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shardkit.builder.options import PackOptions
from shardkit.errors import TemplateError, UsageError
from shardkit.processors import VisionProcessor, load_processor, load_processor_like
from shardkit.tokens import RULES, ChatTemplate, Template, Tokenizer, load_template, load_tokenizer


@dataclass(frozen=True, slots=True)
class Texts:
    """A tokenizer, a template, and the processor that says what pictures are in their ids."""

    tokenizer: Tokenizer
    template: Template | ChatTemplate
    processor: VisionProcessor | None = None


def load_texts(options: PackOptions) -> Texts:
    """What the options name. Raises UsageError, TokenizerError, TemplateError, ProcessorError."""
    shared: dict[str, Any] = {"date": options.date, "args": options.template_args}
    if options.processor is None:
        tokenizer = load_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
        _check_eos(options, tokenizer)
        return Texts(tokenizer, _template(options, tokenizer, shared))
    processor = load_processor(options.processor, arguments=options.processor_arguments)
    tokenizer = tokenizer_of(processor)
    _check_eos(options, tokenizer)
    template = load_template(options.template, tokenizer, **shared)
    if not isinstance(template, ChatTemplate):
        raise UsageError(
            "a processor goes with its own chat template",
            where="--template",
            found=template.name,
            fix="Leave --template out, or give a .jinja file.",
        )
    if options.packing != "none" and not processor.family.packs:
        raise UsageError(
            f"transformers does not keep the documents of a packed {processor.family_name} row "
            "apart",
            where=processor.name,
            found=f"--packing {options.packing}",
            fix="Leave --packing out; group_by_length in the loader saves most of the padding.",
        )
    if RULES[options.packing].cuts and processor.family.by_document:
        raise UsageError(
            f"{processor.family_name} takes the pictures of a conversation together, and "
            f"{options.packing} would part them",
            where=processor.name,
            fix="Use --packing best-fit.",
        )
    return Texts(tokenizer, template, processor)


NO_TEMPLATE = Template("none", "{input}")
"""The template of rows that are tokens, where nobody says which one made them."""


def _template(
    options: PackOptions, tokenizer: Tokenizer, shared: Mapping[str, Any]
) -> Template | ChatTemplate:
    """What the options name; rows of tokens need no chat template of the tokenizer."""
    try:
        return load_template(options.template, tokenizer, **shared)
    except TemplateError:
        if options.source_format == "tokenized" and options.template == "tokenizer":
            return NO_TEMPLATE
        raise


def _check_eos(options: PackOptions, tokenizer: Tokenizer) -> None:
    if options.append_eos and not tokenizer.eos_ids:
        raise UsageError(
            "--append-eos: the tokenizer has no EOS token",
            where=tokenizer.name,
            fix="Set eos_token in its tokenizer_config.json.",
        )


def texts_again(recipe: Mapping[str, Any], processor: object) -> VisionProcessor | None:
    """The processor of a finished dataset, from what names it: its settings are the recipe's.

    None for a dataset without one. Raises UsageError when it is not named, or named for nothing.
    """
    identity = (recipe.get("images") or {}).get("processor")
    if identity is None and processor is None:
        return None
    if identity is None:
        raise UsageError("the dataset was packed without a processor", fix="Leave --processor out.")
    if processor is None:
        raise UsageError(
            "the dataset was packed with a processor",
            expected=f"one of the family {identity.get('family')}",
            fix="Name it: --processor DIR_OR_NAME.",
        )
    return load_processor_like(processor, identity)


def tokenizer_of(processor: VisionProcessor) -> Tokenizer:
    """The processor's tokenizer, with the processor's chat template where it has one."""
    tokenizer = load_tokenizer(processor.real.tokenizer)
    own = processor.real.chat_template
    if own is None:
        return tokenizer
    templates = {"default": own} if isinstance(own, str) else dict(own)
    return replace(
        tokenizer,
        name=processor.name,
        config=replace(tokenizer.config, chat_templates=templates),
        known=None,
    )
