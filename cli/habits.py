"""Words of other tools, and what they are called here: for the advice in an error."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from shardkit.options import nearest

_OPTIONS: Mapping[str, str] = {
    "--out": "output output-dir output-folder output-path out-dir outdir outfile dest destination "
    "target save-to save-dir save-path to",
    "--tokenizer": "model model-name model-path model-name-or-path tokenizer-name tokenizer-path "
    "tokenizer-name-or-path tokenizer-model pretrained checkpoint",
    "--template": "chat-template prompt-template conv-template conversation-template",
    "--max-length": "seq-len seq-length sequence-length sequence-len max-seq-length max-seq-len "
    "max-tokens context-length ctx cutoff-len cutoff block-size model-max-length length",
    "--workers": "num-proc nproc n-proc num-processes processes n-jobs jobs threads num-threads "
    "num-workers n-workers cpus cores preprocessing-num-workers j",
    "--shuffle-seed": "seed shuffle random-seed",
    "--overwrite": "force f overwrite-output-dir replace clobber",
    "--shard-size": "max-shard-size maxsize size-limit chunk-bytes shard-bytes",
    "--format": "dataset-format data-format type dataset-type input-format",
    "--map": "columns column-map field-map rename fields",
    "--system": "system-prompt system-message default-system",
    "--image-root": "image-dir image-folder images image-path media-dir root",
    "--packing": "pack packer pack-method packing-strategy",
    "--overlong": "truncation truncate truncation-side truncation-strategy",
    "--train-on": "roles-to-train train-on-inputs mask-history mask loss-on",
    "--dry-run": "dry n preview simulate",
    "--split": "subset splits",
    "--compression": "compress codec zstd",
    "--drop-duplicates": "dedup dedupe deduplicate unique",
    "--quiet": "silent s",
    "--log-json": "verbose v progress log-level debug",
    "--sample": "samples index row example show",
    "--head": "limit first rows n",
    "--source": "sources src raw input inputs data original file files",
    "--world-size": "gpus n-gpus num-gpus nproc-per-node ranks world-ranks nodes devices n",
    "--batch-size": "micro-batch-size micro-batch per-device-train-batch-size bs b mbs",
    "--seed": "random-seed",
    "--to": "format type as f t",
    "--port": "p",
    "--retokenise": "retokenize deep full thorough",
}
"""An option here, and what others call it; the first one that a command has is named."""

_INPUTS = (
    "input inputs input-file input-dir data dataset datasets dataset-name dataset-path data-path "
    "data-file data-files data-dir file files train-file train-data path dir folder i d"
)
"""What others take as an option, and every command here as plain words."""

_COMMANDS: Mapping[str, str] = {
    "pack": "build create tokenize tokenise tokenizer prepare preprocess process convert make run",
    "verify": "check validate test fsck lint hash checksum",
    "inspect": "show head cat info stats stat ls list describe print dump look samples",
    "report": "html summary dashboard",
    "view": "browse serve open ui web viewer explore",
    "card": "readme datacard",
    "plan": "simulate estimate balance",
    "trace": "why where find locate lookup",
    "repair": "fix heal recover restore",
    "append": "add extend",
    "repack": "resize reshard rechunk truncate relength",
    "merge": "join concat combine",
    "export": "save upload push to-hf to-jsonl",
    "completion": "completions autocomplete install-completion",
}

_VALUES: Mapping[str, str] = {
    "messages": "openai chatml conversation conversations chat-completions harmony",
    "alpaca": "instruct instruction sft-alpaca",
    "text": "pretrain pretraining corpus raw plain completion txt",
    "webdataset": "wds tar",
    "preference": "dpo orpo rm reward pairs ranking pairwise",
    "sft": "chat supervised instruct train",
    "best-fit": "bfd ffd best first-fit bin-packing neat true yes on",
    "concat": "wrapped greedy concatenate stream",
    "none": "false no off 0",
    "test": "validation valid val dev eval",
    "all": "both any everything",
    "zstd": "zst gz gzip lz4 xz",
    "jsonl": "json ndjson jsonlines",
    "hf": "arrow datasets huggingface parquet dataset",
    "hub-folder": "hub folder repo",
    "llamafactory": "llama-factory",
    "drop": "skip remove filter discard",
    "cut": "truncate right longest-first",
    "fail": "raise stop abort error",
    "reject": "ignore warn continue",
}
"""A value here, and what others call it."""


def option_meant(word: str, options: Iterable[str], *, has_inputs: bool) -> str:
    """Advice for an option that a command does not have: what was meant, or an empty text."""
    known = list(options)
    plain = word.lstrip("-").lower().replace("_", "-")
    named = _called(plain, _OPTIONS, known)
    if named is None and has_inputs and plain in _INPUTS.split():
        return ": files and folders are named without an option"
    close = named or nearest(word, known)
    return f": did you mean {close}?" if close else ""


def command_meant(word: str, commands: Iterable[str]) -> str | None:
    """The command that a word stands for; None when it is like none."""
    known = list(commands)
    return nearest(word, known) or _called(word.lower(), _COMMANDS, known)


def value_meant(word: str, values: Iterable[str]) -> str | None:
    """The value of an option that a word stands for; None when it is like none."""
    known = list(values)
    plain = word.lower().replace("_", "-")
    return _called(plain, _VALUES, known) or nearest(word, known)


def _called(word: str, table: Mapping[str, str], known: Container[str]) -> str | None:
    found = (ours for ours, others in table.items() if word in others.split() and ours in known)
    return next(found, None)
