"""Which words of the template stand around a question and its answer?

A named template is data: the text around the user's words, the text around a system prompt, what
ends an answer, what follows it. The names and texts are XTuner's (`PROMPT_TEMPLATE`, Apache-2.0),
so that ids and labels equal its own (docs/xtuner.md). Encoding them is `render.py`'s part; a chat
template in Jinja is `chat_template.py`'s.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shardkit.errors import TemplateError
from shardkit.format.canonical import canonical_json, sha256_hex
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.tokenizer import Tokenizer

_FIELDS = {"SYSTEM": str, "INSTRUCTION": str, "SUFFIX": str, "SUFFIX_AS_EOS": bool, "SEP": str}
_IGNORED = {"STOP_WORDS"}


@dataclass(frozen=True, slots=True)
class Template:
    """A named template: pieces of text around each turn."""

    name: str
    instruction: str
    """Around the user's words: `{input}`, and `{round}` from 1 on."""
    system: str | None = None
    """Around a system prompt, `{system}`; None: the template has no place for one."""
    suffix: str = ""
    """After an answer, in the loss."""
    suffix_as_eos: bool = False
    """True: no EOS after the answer, and no BOS before the next turn."""
    sep: str = ""
    """After an answer and its EOS, not in the loss; after the last answer too."""
    stop_words: tuple[str, ...] = ()
    """Where generation should stop; not part of the identity."""

    @property
    def text(self) -> str:
        """What decides the tokens, as canonical JSON with XTuner's names for the fields."""
        values = {
            "SYSTEM": self.system,
            "INSTRUCTION": self.instruction,
            "SUFFIX": self.suffix,
            "SUFFIX_AS_EOS": self.suffix_as_eos,
            "SEP": self.sep,
        }
        return canonical_json(values).decode()

    @property
    def identity(self) -> dict[str, object]:
        """Name, text and the text's sha256, as the manifest keeps them."""
        text = self.text
        return {"name": self.name, "text": text, "sha256": sha256_hex(text.encode())}

    @property
    def instruction_parts(self) -> list[tuple[str, str | None]]:
        """(text, field after it) of the instruction; fields: input, round."""
        return _parts(self.instruction, {"input", "round"}, "INSTRUCTION", self.name)

    @property
    def system_parts(self) -> list[tuple[str, str | None]]:
        """(text, field after it) of the system text; field: system."""
        return _parts(self.system or "", {"system"}, "SYSTEM", self.name)


def load_template(
    source: str | Path | Template | ChatTemplate,
    tokenizer: Tokenizer,
    *,
    date: str | None = None,
) -> Template | ChatTemplate:
    """The template that `source` names: a name, `tokenizer`, a .json or a .jinja file.

    `date` (YYYY-MM-DD) is what a chat template that prints today's date prints instead.
    Raises TemplateError when there is none of that name or it cannot be used.
    """
    if isinstance(source, ChatTemplate):
        return source
    if not isinstance(source, Template) and source == "tokenizer":
        return ChatTemplate.of_tokenizer(tokenizer, date=date)
    if not isinstance(source, Template) and Path(source).suffix in (".jinja", ".jinja2", ".j2"):
        return ChatTemplate.of_text(_read(Path(source)), tokenizer, Path(source).name, date=date)
    if date is not None:
        raise TemplateError(
            "only a chat template prints a date",
            where=str(source),
            fix="Leave the date out, or use --template tokenizer.",
        )
    if isinstance(source, Template):
        return source
    if str(source) in TEMPLATES:
        return TEMPLATES[str(source)]
    if Path(source).suffix == ".json":
        return _template_from_json(_read(Path(source)), Path(source))
    raise _unknown(str(source))


def _unknown(name: str) -> TemplateError:
    close = difflib.get_close_matches(name, TEMPLATES, n=3)
    return TemplateError(
        "there is no such template",
        where=f"template {name!r}",
        fix=(f"Did you mean {', '.join(close)}? " if close else "")
        + f"Names: {', '.join(TEMPLATES)}; or tokenizer, a .json or a .jinja file.",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"cannot read the template file: {error}", where=str(path), fix="Check the path."
        ) from error


def _template_from_json(text: str, path: Path) -> Template:
    """A template from a file with XTuner's field names."""
    try:
        raw = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise TemplateError(
            f"not a JSON object: {error}", where=str(path), fix="Write the fields as JSON."
        ) from error
    values = {name: value for name, value in raw.items() if value is not None}
    for name, value in values.items():
        _check_field(name, value, f"{path}: $.{name}")
    template = Template(
        name=path.stem,
        instruction=str(values.get("INSTRUCTION", "")),
        system=_text_or_none(values.get("SYSTEM")),
        suffix=str(values.get("SUFFIX", "")),
        suffix_as_eos=bool(values.get("SUFFIX_AS_EOS", False)),
        sep=str(values.get("SEP", "")),
    )
    fields = [name for _, name in template.instruction_parts]
    if "input" not in fields:
        raise TemplateError(
            "INSTRUCTION has no {input}",
            where=str(path),
            fix="Put {input} where the user's words go.",
        )
    _ = template.system_parts
    return template


def _check_field(name: str, value: object, where: str) -> None:
    kind = _FIELDS.get(name)
    if kind is None and name not in _IGNORED:
        raise TemplateError(
            "unknown field of a template",
            where=where,
            expected=", ".join([*_FIELDS, *_IGNORED]),
            fix="Rename or remove it.",
        )
    if kind is not None and not isinstance(value, kind):
        raise TemplateError(
            "wrong type",
            where=where,
            expected="a string" if kind is str else "true or false",
            found=repr(value),
            fix="Correct the template file.",
        )


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _parts(text: str, known: set[str], field: str, name: str) -> list[tuple[str, str | None]]:
    """A format string as (literal, field name or None); the fields are plain `{name}` only."""
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise TemplateError(
            f"{field} is not a format string: {error}",
            where=f"template {name!r}",
            fix="Write a literal brace twice: {{ or }}.",
        ) from error
    for _, key, spec, conversion in parsed:
        if key is not None and (key not in known or spec or conversion):
            raise TemplateError(
                f"{field} has a field that is not known",
                where=f"template {name!r}",
                expected=", ".join(f"{{{k}}}" for k in sorted(known)),
                found=f"{{{key}}}",
                fix="Write a literal brace twice: {{ or }}.",
            )
    return [(literal, key) for literal, key, _, _ in parsed]


_ALL = (
    Template(
        name="default",
        system="<|System|>:{system}\n",
        instruction="<|User|>:{input}\n<|Bot|>:",
        sep="\n",
    ),
    Template(
        name="zephyr",
        system="<|system|>\n{system}\n",
        instruction="<|user|>\n{input}\n<|assistant|>\n",
        sep="\n",
    ),
    Template(
        name="internlm_chat",
        system="<|System|>:{system}\n",
        instruction="<|User|>:{input}<eoh>\n<|Bot|>:",
        suffix="<eoa>",
        suffix_as_eos=True,
        sep="\n",
        stop_words=("<eoa>",),
    ),
    Template(
        name="internlm2_chat",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        instruction="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
        suffix="<|im_end|>",
        suffix_as_eos=True,
        sep="\n",
        stop_words=("<|im_end|>",),
    ),
    Template(
        name="moss_sft",
        system="{system}\n",
        instruction="<|Human|>: {input}<eoh>\n",
        sep="\n",
        stop_words=(
            "<eoc>",
            "<eom>",
        ),
    ),
    Template(
        name="llama2_chat",
        system=(
            "[INST] <<SYS>>\n You are a helpful, respectful and honest assistant. Always "
            "answer as helpfully as possible, while being safe. Your answers should not "
            "include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
            "content. Please ensure that your responses are socially unbiased and positive "
            "in nature.\n{system}\n<</SYS>>\n [/INST] "
        ),
        instruction="[INST] {input} [/INST]",
        sep="\n",
    ),
    Template(
        name="code_llama_chat",
        system="{system}\n",
        instruction="[INST] {input} [/INST]",
    ),
    Template(
        name="chatglm2",
        system="{system}\n",
        instruction="[Round {round}]\n\n问：{input}\n\n答：",
        sep="\n\n",
    ),
    Template(
        name="chatglm3",
        system="<|system|>\n{system}",
        instruction="<|user|>\n{input}<|assistant|>\n",
        sep="\n",
    ),
    Template(
        name="qwen_chat",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        instruction="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
        suffix="<|im_end|>",
        suffix_as_eos=True,
        sep="\n",
        stop_words=(
            "<|im_end|>",
            "<|endoftext|>",
        ),
    ),
    Template(
        name="baichuan_chat",
        system="{system}\n",
        instruction="<reserved_102>{input}<reserved_103>",
        sep="\n",
    ),
    Template(
        name="baichuan2_chat",
        system="{system}\n",
        instruction="<reserved_106>{input}<reserved_107>",
        sep="\n",
    ),
    Template(
        name="wizardlm",
        system=(
            "A chat between a curious user and an artificial intelligence assistant. The "
            "assistant gives helpful, detailed, and polite answers to the user's "
            "questions. {system}\n "
        ),
        instruction="USER: {input} ASSISTANT:",
        sep="\n",
    ),
    Template(
        name="wizardcoder",
        system=(
            "Below is an instruction that describes a task. Write a response that "
            "appropriately completes the request.\n\n{system}\n "
        ),
        instruction="### Instruction:\n{input}\n\n### Response:",
        sep="\n\n",
    ),
    Template(
        name="vicuna",
        system=(
            "A chat between a curious user and an artificial intelligence assistant. The "
            "assistant gives helpful, detailed, and polite answers to the user's "
            "questions. {system}\n "
        ),
        instruction="USER: {input} ASSISTANT:",
        sep="\n",
    ),
    Template(
        name="deepseek_coder",
        system=(
            "You are an AI programming assistant, utilizing the DeepSeek Coder model, "
            "developed by DeepSeekCompany, and you only answer questions related to "
            "computer science. For politically sensitive questions, security and privacy "
            "issues, and other non-computer science questions, you will refuse to answer. "
            "{system}\n"
        ),
        instruction="### Instruction:\n{input}\n### Response:\n",
        sep="\n",
    ),
    Template(
        name="deepseekcoder",
        system=(
            "You are an AI programming assistant, utilizing the DeepSeek Coder model, "
            "developed by DeepSeekCompany, and you only answer questions related to "
            "computer science. For politically sensitive questions, security and privacy "
            "issues, and other non-computer science questions, you will refuse to answer. "
            "{system}\n"
        ),
        instruction="### Instruction:\n{input}\n### Response:\n",
        sep="\n",
    ),
    Template(
        name="deepseek_moe",
        system="[INST] {system} [/INST]\n",
        instruction="[INST] {input} [/INST]",
        sep="\n",
    ),
    Template(
        name="deepseek_v2",
        system="{system}\n\n",
        instruction="User: {input}\n\nAssistant: ",
        suffix="<｜end▁of▁sentence｜>",
        suffix_as_eos=True,
        stop_words=("<｜end▁of▁sentence｜>",),
    ),
    Template(
        name="mistral",
        system="[INST] {system} [/INST]\n",
        instruction="[INST] {input} [/INST]",
        sep="\n",
    ),
    Template(
        name="mixtral",
        system="[INST] {system} [/INST]\n",
        instruction="[INST] {input} [/INST]",
        sep="\n",
    ),
    Template(
        name="minicpm",
        instruction="<用户> {input} <AI>",
        sep="\n",
    ),
    Template(
        name="gemma",
        system="<start_of_turn>system\n{system}<end_of_turn>\n",
        instruction="<start_of_turn>user\n{input}<end_of_turn>\n<start_of_turn>model\n",
        suffix="<end_of_turn>",
        sep="\n",
        stop_words=("<end_of_turn>",),
    ),
    Template(
        name="cohere_chat",
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{system}<|END_OF_TURN_TOKEN|>",
        instruction=(
            ""
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{input}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        ),
        suffix="<|END_OF_TURN_TOKEN|>",
        suffix_as_eos=True,
        stop_words=("<|END_OF_TURN_TOKEN|>",),
    ),
    Template(
        name="llama3_chat",
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        instruction=(
            ""
            "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        suffix="<|eot_id|>",
        suffix_as_eos=True,
        stop_words=("<|eot_id|>",),
    ),
    Template(
        name="phi3_chat",
        system="<|system|>\n{system}<|end|>\n",
        instruction="<|user|>\n{input}<|end|>\n<|assistant|>\n",
        suffix="<|end|>",
        suffix_as_eos=True,
        sep="\n",
        stop_words=("<|end|>",),
    ),
    Template(
        name="minicpm3",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        instruction="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
        suffix="<|im_end|>",
        suffix_as_eos=True,
        sep="\n",
        stop_words=(
            "<|im_end|>",
            "<|endoftext|>",
        ),
    ),
)

TEMPLATES: Mapping[str, Template] = {template.name: template for template in _ALL}
"""Every named template. A new one is an entry of `_ALL`."""
