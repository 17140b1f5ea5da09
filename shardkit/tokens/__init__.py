"""Tokens: templates, tokenizers, ids and labels, and packing."""

from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.encode import Encoded, Encoder
from shardkit.tokens.engines import ENGINES, REFERENCE, Difference, EngineName
from shardkit.tokens.identity import TokenizerIdentity, differences
from shardkit.tokens.load import load_tokenizer
from shardkit.tokens.packing import RULES, pack
from shardkit.tokens.pieces import Notes
from shardkit.tokens.templates import TEMPLATES, Template, load_template
from shardkit.tokens.tokenizer import Tokenizer

__all__ = [
    "ENGINES",
    "REFERENCE",
    "RULES",
    "TEMPLATES",
    "ChatTemplate",
    "Difference",
    "Encoded",
    "Encoder",
    "EngineName",
    "Notes",
    "Template",
    "Tokenizer",
    "TokenizerIdentity",
    "differences",
    "load_template",
    "load_tokenizer",
    "pack",
]
