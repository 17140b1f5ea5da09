"""Tokens: templates, tokenizers, ids and labels, and packing."""

from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.encode import Encoded, Encoder, EncodeStats
from shardkit.tokens.engines import ENGINES, Difference
from shardkit.tokens.identity import TokenizerIdentity, differences
from shardkit.tokens.load import load_tokenizer
from shardkit.tokens.packing import RULES, pack
from shardkit.tokens.pieces import Notes
from shardkit.tokens.templates import TEMPLATES, Template, load_template
from shardkit.tokens.tokenizer import Tokenizer

__all__ = [
    "ENGINES",
    "RULES",
    "TEMPLATES",
    "ChatTemplate",
    "Difference",
    "EncodeStats",
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
]
