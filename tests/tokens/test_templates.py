"""Named templates, template files, and what is refused."""

from __future__ import annotations

import configparser
import json
from pathlib import Path

import pytest
from shared import shared
from small_tokenizer import small_tokenizer

from shardkit.conversation import Conversation, Message
from shardkit.errors import TemplateError
from shardkit.tokens import TEMPLATES, Encoder, Template, load_template, template_of
from shardkit.tokens.named_pieces import NamedPieces
from shardkit.tokens.pieces import BOS, EOS, SEP, Pieces


def _texts(template: Template, conversation: Conversation) -> tuple[list[str], list[int]]:
    """The texts that are encoded, and the constants between them."""
    pieces = Pieces()
    reject = NamedPieces(template, has_bos=True, has_eos=True).add(conversation, pieces)
    assert reject is None
    return pieces.texts, [piece for piece in pieces.order if piece < 4]


@pytest.mark.needs_shared
def test_texts_equal_xtuner() -> None:
    """Every template prints what XTuner's prints, turn by turn, with EOS and separator."""
    golden = json.loads(shared("goldens/xtuner/templates.json").read_text())
    turns = golden["rendered_input"]
    n_compared = 0
    for name, rendered in golden["rendered"].items():
        if not isinstance(rendered, list):
            continue
        messages = []
        for turn in turns:
            if turn["system"] and name != "minicpm":  # which has no place for one
                messages.append(Message("system", turn["system"]))
            messages += [Message("user", turn["input"]), Message("assistant", turn["output"])]
        texts, constants = _texts(TEMPLATES[name], Conversation(tuple(messages)))
        assert texts == [one[key] for one in rendered for key in ("input", "output")]
        expected = [BOS]
        for i, one in enumerate(rendered):
            if i and rendered[i - 1]["need_eos_token"]:
                expected.append(BOS)
            expected += [EOS] * one["need_eos_token"] + [SEP] * bool(one["sep"])
        assert constants == expected
        n_compared += 1
    assert n_compared >= 25


@pytest.mark.needs_shared
def test_data_equals_xtuner() -> None:
    """All 26 templates of 0.1.23, field by field, and minicpm3, which is qwen_chat's twin."""
    golden = json.loads(shared("goldens/xtuner/templates.json").read_text())["templates"]

    for name, fields in golden.items():
        template = TEMPLATES[name]
        assert template.system == fields.get("SYSTEM")
        assert template.instruction == fields["INSTRUCTION"]
        assert template.suffix == fields.get("SUFFIX", "")
        assert template.suffix_as_eos == fields.get("SUFFIX_AS_EOS", False)
        assert template.sep == fields.get("SEP", "")
        assert list(template.stop_words) == fields.get("STOP_WORDS", [])
    assert set(TEMPLATES) == {*golden, "minicpm3"}
    assert TEMPLATES["minicpm3"].text == TEMPLATES["qwen_chat"].text


def test_identity_changes_with_the_text_only() -> None:
    """The identity's hash is that of what decides tokens: not of the name, not of stop words."""
    qwen = TEMPLATES["qwen_chat"].identity

    assert qwen["sha256"] == TEMPLATES["internlm2_chat"].identity["sha256"]
    assert qwen["name"] == "qwen_chat"
    assert qwen["sha256"] != TEMPLATES["zephyr"].identity["sha256"]
    assert json.loads(str(qwen["text"]))["SUFFIX"] == "<|im_end|>"


def test_round_counts_turns() -> None:
    """chatglm2 prints the number of the turn, from 1."""
    words = [Message("user", "a"), Message("assistant", "b")] * 2

    texts, _ = _texts(TEMPLATES["chatglm2"], Conversation(tuple(words)))

    assert texts[0].startswith("[Round 1]")
    assert texts[2].startswith("[Round 2]")


def test_a_template_file(tmp_path: Path) -> None:
    """A .json file with XTuner's field names is a template; braces are written twice."""
    path = tmp_path / "mine.json"
    path.write_text('{"INSTRUCTION": "Q {{1}}: {input} A:", "SUFFIX": "!", "SEP": "\\n"}')

    template = load_template(str(path), small_tokenizer())

    assert isinstance(template, Template)
    assert template.name == "mine"
    row = Conversation((Message("user", "{x}"), Message("assistant", "y")))
    assert _texts(template, row) == (["Q {1}: {x} A:", "y!"], [BOS, EOS, SEP])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1]", "not a JSON object"),
        ('{"INSTRUCTION": "no place"}', "has no {input}"),
        ('{"INSTRUCTION": "{input} {name}"}', "field that is not known"),
        ('{"INSTRUCTION": "{input!r}"}', "field that is not known"),
        ('{"INSTRUCTION": "{input"}', "not a format string"),
        ('{"INSTRUCTION": "{input}", "SYSTEM": "{x}"}', "field that is not known"),
        ('{"INSTRUCTION": "{input}", "SEP": 3}', "wrong type"),
        ('{"INSTRUCTION": "{input}", "SUFFIX_AS_EOS": "yes"}', "wrong type"),
        ('{"INSTRUCTION": "{input}", "Separator": "x"}', "unknown field"),
        ('{"INSTRUCTION": "{input}", "STOP_WORDS": "x"}', "wrong type"),
    ],
)
def test_a_bad_template_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """What is wrong with the file is said before any row is read."""
    path = tmp_path / "bad.json"
    path.write_text(text)

    with pytest.raises(TemplateError, match=complaint) as caught:
        load_template(path, small_tokenizer())
    assert caught.value.fix


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    """A misspelt name gets the names that are near, and all of them."""
    with pytest.raises(TemplateError, match="Did you mean qwen_chat"):
        load_template("qwen_chart", small_tokenizer())


def test_a_template_that_needs_eos_refuses_a_tokenizer_without(tmp_path: Path) -> None:
    """Without an EOS the model would never learn to stop: no silent row without one."""
    from shardkit.tokens import load_tokenizer

    bare = load_tokenizer(small_tokenizer().backend)
    assert bare.eos_ids == ()

    with pytest.raises(TemplateError, match="the tokenizer has none"):
        Encoder(bare, TEMPLATES["vicuna"], max_length=8)
    Encoder(bare, TEMPLATES["qwen_chat"], max_length=8)


@pytest.mark.parametrize("name", ["qwen_chat", "minicpm", "mine.json", "tokenizer", "dated.jinja"])
def test_a_manifest_holds_the_whole_template(name: str, tmp_path: Path) -> None:
    """The same again from its identity alone; a file named like a shipped one does not fool it."""
    tokenizer = small_tokenizer()
    source: str | Path = name
    if name == "mine.json":
        source = tmp_path / "qwen_chat.json"
        source.write_text('{"INSTRUCTION": "Q: {input} A:", "STOP_WORDS": ["!"]}')
    elif name == "dated.jinja":
        source = tmp_path / name
        source.write_text(
            "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
        )
    date = "2024-07-26" if name == "dated.jinja" else None
    template = load_template(source, tokenizer, date=date)
    manifest = json.loads(json.dumps(template.identity))
    for file in tmp_path.iterdir():
        file.unlink()

    again = template_of(manifest, tokenizer)

    assert again.identity == template.identity
    assert type(again) is type(template)


def test_the_templates_are_installed() -> None:
    """setup.cfg names the data file: without it a wheel has no template."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "setup.cfg").exists():
        pytest.skip("the sources are not beside the tests")
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    assert config["options.package_data"]["shardkit.tokens"] == "templates.json"
