"""A template to compare, over a tokenizer that has its markers, as we and transformers see it."""

from __future__ import annotations

import copy
import datetime
import importlib
import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from small_tokenizer import FOLDER as SMALL

from shardkit.tokens import ChatTemplate, Tokenizer, load_tokenizer
from template_oracle.rows import Row

_MARKERS = re.compile(
    r"<[|｜][^<>\s|｜]+[|｜]>|<\|\w+>|<\w+\|>|</?(?:start_of_turn|end_of_turn|start_of_image|think|tool_call"
    r"|tool_response|s|bos|eos)>|\[/?[A-Z_]{4,}\]"
)


def trl_folder() -> Path | None:
    """Where the installed trl package has its templates."""
    spec = importlib.util.find_spec("trl")
    return None if spec is None or not spec.origin else Path(spec.origin).parent / "chat_templates"


@dataclass(frozen=True)
class Subject:
    """A template, and its twin with `{% generation %}` marks where there is one."""

    name: str
    text: str
    twin: str | None = None
    over: Path = SMALL
    """The folder of the tokenizer; the small one of the tests otherwise."""
    is_own: bool = False
    """Whether the template is the tokenizer's own: no marker is added to its vocabulary."""

    @classmethod
    def of_file(cls, path: Path, over: Path = SMALL) -> Subject:
        """The template of a file, with the twin beside it (NAME_training.jinja)."""
        beside = path.with_name(f"{path.stem}_training.jinja")
        twin = beside.read_text() if beside.exists() else None
        return cls(path.stem, path.read_text(), twin, over)

    @classmethod
    def of_tokenizer(cls, folder: Path) -> Subject | None:
        """A tokenizer's own template; None where it has none."""
        text = load_tokenizer(folder).chat_template
        return None if text is None else cls(folder.name, text, over=folder, is_own=True)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with the markers of the template and its twin as special tokens."""
        if self.is_own:
            return load_tokenizer(self.over)
        transformers: Any = importlib.import_module("transformers")
        if self.over == SMALL:
            hf = transformers.PreTrainedTokenizerFast(
                tokenizer_object=tokenizers.Tokenizer.from_file(str(SMALL / "tokenizer.json")),
                bos_token="<|endoftext|>",
                eos_token="<|im_end|>",
            )
        else:
            hf = transformers.AutoTokenizer.from_pretrained(str(self.over))
        texts = [text for text in (self.text, self.twin) if text is not None]
        markers = sorted({marker for text in texts for marker in _MARKERS.findall(text)})
        hf.add_special_tokens({"additional_special_tokens": markers})
        return load_tokenizer(hf)

    @cached_property
    def hf(self) -> Any:
        """The tokenizer of transformers."""
        return self.tokenizer.hf

    @cached_property
    def template(self) -> ChatTemplate:
        """What `--template FILE.jinja` makes of it."""
        date = datetime.date.today().isoformat() if "strftime_now" in self.text else None
        return ChatTemplate.of_text(self.text, self.tokenizer, self.name, date=date)

    def normalised(self, row: Row) -> list[dict[str, Any]]:
        """The messages as a user of transformers must write them for this template."""
        messages = copy.deepcopy(row[0])
        form = self.template.form
        for message in messages:
            for one in message.get("tool_calls", ()):
                given = one["function"]["arguments"]
                if isinstance(given, str) and form.takes_objects:
                    one["function"]["arguments"] = json.loads(given)
            reasoning = message.get("thinking", message.get("reasoning_content"))
            if reasoning is not None:  # transformers does so itself from 5.24 on
                message |= {"thinking": reasoning, "reasoning_content": reasoning}
            if message["role"] not in form.text_roles and form.part_roles:
                message["content"] = [{"type": "text", "text": message["content"]}]
        return messages

    def applied(self, row: Row, **more: Any) -> Any:
        """What apply_chat_template makes of a row: a dict of ids, and of the mask if asked for."""
        options = {"chat_template": self.text, "return_dict": True} | more
        return self.hf.apply_chat_template(self.normalised(row), tools=row[1], **options)

    def ids(self, row: Row, **more: Any) -> list[int]:
        """The ids alone."""
        found: list[int] = self.applied(row, **more)["input_ids"]
        return found

    def printed(self, row: Row, **more: Any) -> str:
        """The text alone."""
        text: str = self.applied(row, tokenize=False, return_dict=False, **more)
        return text
