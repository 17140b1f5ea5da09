"""Tokens: templates, tokenizers, ids and labels, and packing.

In the order of the way from a conversation to ids, a module each:

1. `tokenizer`, `load`, `identity`, `tokenizer_cache`: which tokenizer, and is it the same one?
2. `templates`, `chat_template`: which words stand around a turn, and which are the assistant's?
   A template in Jinja sees `messages` and runs in `template_environment` over a `sandbox`;
   `answers` finds the assistant's words, `lost_text` what was not printed, and `train_rules` say
   what is in the loss.
3. `render`: a conversation becomes `pieces`, under a named template in `named_pieces`, with a
   processor's `pictures`; `special_text` keeps what only looks like a marker.
4. `tokenizer_engines`: texts become ids.
5. `masks`, `assemble`: supervised characters become labels, the pieces of a row a sample;
   `overlong` rows are cut up; `encoded`: what became of every row.
6. `encode`: all of that for a batch of conversations, with `preference` for prompts of two answers.
7. `layout`, `best_fit`, `packing`, `padding`: samples become packs.
"""

from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.encode import Encoder
from shardkit.tokens.encoded import Encoded
from shardkit.tokens.identity import TokenizerIdentity, differences
from shardkit.tokens.layout import RULES
from shardkit.tokens.load import load_tokenizer
from shardkit.tokens.packing import pack
from shardkit.tokens.pieces import Notes
from shardkit.tokens.templates import TEMPLATES, Template, load_template, template_of
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.tokenizer_engines import ENGINES, REFERENCE, Difference

__all__ = [
    "ENGINES",
    "REFERENCE",
    "RULES",
    "TEMPLATES",
    "ChatTemplate",
    "Difference",
    "Encoded",
    "Encoder",
    "Notes",
    "Template",
    "Tokenizer",
    "TokenizerIdentity",
    "differences",
    "load_template",
    "load_tokenizer",
    "pack",
    "template_of",
]
