"""Which words of the template stand around a question and its answer?

A named template is data: the text around the user's words, the text around a system prompt, what
ends an answer, what follows it. The names and texts are XTuner's (`PROMPT_TEMPLATE`, Apache-2.0),
so that ids and labels equal its own (docs/xtuner.md); they stand in `templates.json`, each in the
form of a user's own template file. Encoding them is `render.py`'s part; a chat
template in Jinja is `chat_template.py`'s.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from shardkit.errors import TemplateError
from shardkit.format.canonical import canonical_json, sha256_hex
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.tokenizer import Tokenizer

_FIELDS: Mapping[str, tuple[type, str]] = {
    "SYSTEM": (str, "a string"),
    "INSTRUCTION": (str, "a string"),
    "SUFFIX": (str, "a string"),
    "SUFFIX_AS_EOS": (bool, "true or false"),
    "SEP": (str, "a string"),
    "STOP_WORDS": (list, "a list of strings"),
}
"""XTuner's names for the fields of a template, with the type of each."""


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

    @classmethod
    def of_fields(cls, name: str, fields: Mapping[str, object], where: str) -> Self:
        """A template from XTuner's fields; null is absent.

        Raises TemplateError, naming the field, where one is unknown, of a wrong type, or not a
        format string of the fields there are.
        """
        values: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
        for key, value in values.items():
            _check_field(key, value, f"{where}: $.{key}")
        template = cls(
            name=name,
            instruction=values.get("INSTRUCTION", ""),
            system=values.get("SYSTEM"),
            suffix=values.get("SUFFIX", ""),
            suffix_as_eos=values.get("SUFFIX_AS_EOS", False),
            sep=values.get("SEP", ""),
            stop_words=tuple(map(str, values.get("STOP_WORDS", ()))),
        )
        if "input" not in [field for _, field in template.instruction_parts]:
            raise TemplateError(
                "INSTRUCTION has no {input}",
                where=where,
                fix="Put {input} where the user's words go.",
            )
        _ = template.system_parts
        return template

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
    args: Mapping[str, object] | None = None,
) -> Template | ChatTemplate:
    """The template that `source` names (a name, `tokenizer`, a .json or .jinja file), or is.

    `date` (YYYY-MM-DD) is what a chat template that prints today's date prints instead; `args` are
    values of its variables (`enable_thinking`). A ChatTemplate was made with its own.
    Raises TemplateError when there is none of that name or it cannot be used.
    """
    if isinstance(source, ChatTemplate):
        if date is not None or args:
            raise TemplateError(
                "a ChatTemplate was made with its own date and arguments",
                where=f"template {source.name!r}",
                found=", ".join([*([] if date is None else [date]), *(args or {})]),
                fix="Leave them out here, or make the ChatTemplate with them.",
            )
        return source
    if not isinstance(source, Template) and source == "tokenizer":
        return ChatTemplate.of_tokenizer(tokenizer, date=date, args=args)
    if not isinstance(source, Template) and Path(source).suffix in (".jinja", ".jinja2", ".j2"):
        text, name = _read(Path(source)), Path(source).name
        return ChatTemplate.of_text(text, tokenizer, name, date=date, args=args)
    if date is not None:
        raise TemplateError(
            "only a chat template prints a date",
            where=str(source),
            fix="Leave the date out, or use --template tokenizer.",
        )
    if args:
        raise TemplateError(
            "only a chat template has arguments",
            where=str(source),
            found=", ".join(args),
            fix="Leave --template-arg out, or use --template tokenizer.",
        )
    if isinstance(source, Template):
        return source
    if str(source) in TEMPLATES:
        return TEMPLATES[str(source)]
    if Path(source).suffix == ".json":
        path = Path(source)
        return Template.of_fields(path.stem, _fields_of(_read(path), str(path)), str(path))
    raise _unknown(str(source))


def template_of(identity: Mapping[str, Any], tokenizer: Tokenizer) -> Template | ChatTemplate:
    """The template that a manifest's recipe holds whole: no name is looked up, no file is read.

    `tokenizer` is the one the dataset was packed with. Raises TemplateError where the text is not
    a template.
    """
    name, text = str(identity["name"]), str(identity["text"])
    with suppress(msgspec.DecodeError, RecursionError):
        fields = msgspec.json.decode(text, type=dict[str, object])
        if "INSTRUCTION" in fields:
            return Template.of_fields(name, fields, f"template {name!r}")
    return ChatTemplate.of_identity(identity, tokenizer)


def _unknown(name: str) -> TemplateError:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    close = [new for old, new in _CALLED_ELSEWHERE.items() if plain.startswith(old)][:1]
    close = close or difflib.get_close_matches(name.lower(), TEMPLATES, n=3)
    advice = f"Did you mean {', '.join(close)}? " if close else ""
    if plain in _FORMATS_OF_ROWS:
        advice = (
            f"{name} says what rows look like (--format, found by itself); the template is the "
            "model's: tokenizer (its own), qwen_chat, llama3_chat, vicuna ... "
        )
    return TemplateError(
        "there is no such template",
        where=f"template {name!r}",
        fix=f"{advice}Names: {', '.join(TEMPLATES)}; or tokenizer, a .json or a .jinja file.",
    )


_CALLED_ELSEWHERE = {
    "chatml": "qwen_chat",
    "qwen": "qwen_chat",
    "llama3": "llama3_chat",
    "llama2": "llama2_chat",
    "codellama": "code_llama_chat",
    "internlm2": "internlm2_chat",
    "internlm": "internlm_chat",
    "baichuan2": "baichuan2_chat",
    "baichuan": "baichuan_chat",
    "phi3": "phi3_chat",
    "cohere": "cohere_chat",
    "commandr": "cohere_chat",
    "gemma": "gemma",
    "mistral": "mistral",
    "llava": "vicuna",
    "vicunav1": "vicuna",
    "plain": "default",
    "chatglm": "chatglm3",
    "glm": "chatglm3",
    "auto": "tokenizer",
    "chattemplate": "tokenizer",
    "hf": "tokenizer",
}
"""What other tools call the templates, in letters and digits; the first that begins a name."""
_FORMATS_OF_ROWS = ("alpaca", "sharegpt", "messages", "openai", "text", "tokenized")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"cannot read the template file: {error}", where=str(path), fix="Check the path."
        ) from error


def _fields_of(text: str, where: str) -> dict[str, object]:
    """The fields of a template file."""
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise TemplateError(
            f"not a JSON object: {error}", where=where, fix="Write the fields as JSON."
        ) from error


def _check_field(name: str, value: object, where: str) -> None:
    kind, expected = _FIELDS.get(name, (None, None))
    if kind is None:
        raise TemplateError(
            "unknown field of a template",
            where=where,
            expected=", ".join(_FIELDS),
            fix="Rename or remove it.",
        )
    if not isinstance(value, kind):
        raise TemplateError(
            "wrong type",
            where=where,
            expected=expected,
            found=repr(value),
            fix="Correct the template file.",
        )


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


def _shipped() -> dict[str, Template]:
    path = Path(__file__).with_name("templates.json")
    fields = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, object]])
    return {name: Template.of_fields(name, fields[name], f"{path}: {name}") for name in fields}


TEMPLATES: Mapping[str, Template] = _shipped()
"""Every named template. A new one is an entry of templates.json."""
