"""A dataset card: README.md with the header that the hub reads, from the manifest alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shardkit.dataset import Dataset
from shardkit.format.manifest import Manifest
from shardkit.report.page.facts import findings, identity_rows
from shardkit.report.page.rendering import percent, render_text
from shardkit.units import readable

CARD_NAME = "README.md"
_SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
    10**10: "1B<n<10B",
    10**11: "10B<n<100B",
    10**12: "100B<n<1T",
}
"""The hub's words for how many samples there are, below each number."""


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What a card says that the manifest does not know."""

    title: str | None = None
    """The heading of the card; None: the name of the dataset's folder."""
    license: str | None = None
    """The licence as the hub names it: apache-2.0, cc-by-4.0 ... None: not stated."""
    languages: Sequence[str] = ()
    """Codes of the languages of the texts, as en, zh."""


def make_card(dataset: Dataset, options: CardOptions | None = None) -> str:
    """The text of the card: a YAML header, then Markdown."""
    options = options or CardOptions()
    manifest = dataset.manifest
    title = options.title or dataset.root.rstrip("/").rsplit("/", 1)[-1] or "dataset"
    rejected: dict[str, int] = {}
    for source in manifest.sources:
        for reason, n in source.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + n
    body = render_text(
        "card.md",
        title=plain(title),
        manifest=manifest,
        n_rows=sum(source.n_rows for source in manifest.sources),
        n_kept=sum(source.n_kept for source in manifest.sources),
        n_bytes=readable(sum(shard.n_bytes for shard in manifest.shards)),
        supervised=percent(manifest.n_supervised, manifest.n_tokens),
        identity=[(name, plain(value)) for name, value in identity_rows(dataset)],
        sources=[(plain(s.name), s) for s in manifest.sources[:50]],
        n_sources=len(manifest.sources),
        rejected=sorted(rejected.items(), key=lambda item: -item[1]),
        findings=[(plain(one.words), one.n) for one in findings(manifest) if one.n],
        license=options.license,
    )
    return f"---\n{header(manifest, title, options)}---\n\n{body}"


def header(manifest: Manifest, title: str, options: CardOptions) -> str:
    """The YAML header; every value is written as JSON, which is YAML."""
    with_images = bool(manifest.n_images)
    fields: dict[str, object] = {"pretty_name": title}
    if options.license:
        fields["license"] = options.license
    if options.languages:
        fields["language"] = list(options.languages)
    fields["task_categories"] = ["image-text-to-text" if with_images else "text-generation"]
    fields["size_categories"] = [size_category(manifest.n_samples)]
    fields["tags"] = ["shardkit", "webdataset", "tokenized"]
    if manifest.compression == "none":
        data = [{"split": "train", "path": "shard-*.tar"}]
        fields["configs"] = [{"config_name": "default", "data_files": data}]
    return "".join(
        f"{name}: {json.dumps(value, ensure_ascii=True)}\n" for name, value in fields.items()
    )


def size_category(n: int) -> str:
    """The hub's word for so many samples."""
    return next((name for below, name in _SIZES.items() if n < below), "n>1T")


def plain(text: str) -> str:
    """Text that Markdown and HTML take as it is: one line, no markup."""
    line = " ".join(text.split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        line = line.replace(sign, safe)
    for sign in "\\`*[]!":
        line = line.replace(sign, f"&#{ord(sign)};")
    return line
