"""The first rows of a plan, encoded as they would be packed, for --dry-run."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardkit.builder.plan import Plan
from shardkit.conversation import Conversation, Reject
from shardkit.format.samples import IGNORE_INDEX
from shardkit.images import ImageStore, upright_size
from shardkit.sources import source_named
from shardkit.tokens import REFERENCE, Encoder


@dataclass(frozen=True, slots=True)
class PreviewSample:
    """A row: its decoded text in pieces, each with loss (True) or not; or why it is rejected."""

    source: str
    row: int
    n_tokens: int = 0
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    rejected: str | None = None


def preview(plan: Plan, n: int = 3) -> list[PreviewSample]:
    """The first n rows of the planned order; images are read only where a processor is used."""
    options = plan.options
    encoder = Encoder(
        plan.tokenizer,
        plan.template,
        max_length=options.max_length,
        special_tokens_in_text=options.special_tokens_in_text,
        image_tokens=options.image_tokens,
        image_placeholder=plan.image_token,
        engine=REFERENCE,
        pictures=plan.processor,
        rules=options.rules,
        task=options.task,
    )
    sources, rows = plan.rows(0, min(n, plan.n_rows))
    return [
        _preview(plan, encoder, source, row)
        for source, row in zip(sources.tolist(), rows.tolist(), strict=True)
    ]


def _preview(plan: Plan, encoder: Encoder, source: int, row: int) -> PreviewSample:
    name = plan.scans[source].name
    kind = source_named(plan.source_format)
    found = kind.read_row(plan.scans[source], row, plan.read_options)
    sizes: list[tuple[int, int]] | Reject = []
    if plan.processor is not None and isinstance(found, Conversation):
        sizes = _sizes(plan, found)
        found = sizes if isinstance(sizes, Reject) else found
    if not isinstance(found, Reject) and not isinstance(sizes, Reject):
        encoded = encoder.encode([found], {0: sizes})
        if not encoded.rejects:
            ids, labels = encoded.samples.ids, encoded.samples.labels
            pieces = masked_pieces(ids.tolist(), (labels != IGNORE_INDEX).tolist(), plan)
            return PreviewSample(name, row, len(ids), pieces)
        found = encoded.rejects[0][1]
    if not isinstance(found, Reject):
        return PreviewSample(name, row)
    return PreviewSample(name, row, rejected=f"{found.reason}: {found.detail}".rstrip(": "))


def _sizes(plan: Plan, conversation: Conversation) -> list[tuple[int, int]] | Reject:
    """The sizes of the pictures, as they would be stored; or what is wrong with one."""
    options = plan.options
    store = ImageStore(
        options.image_root,
        options.image_size,
        options.image_fit,
        max_pixels=options.store_max_pixels,
    )
    sizes = []
    for reference in conversation.images:
        image = store.load(reference)
        if isinstance(image, Reject):
            return image
        sizes.append(upright_size(image.data))
    return sizes


def masked_pieces(ids: list[int], is_supervised: list[bool], plan: Plan) -> list[tuple[str, bool]]:
    """Runs of tokens of one kind, decoded; image placeholders as <image>."""
    runs: list[tuple[list[int], bool]] = []
    for token, supervised in zip(ids, is_supervised, strict=True):
        if not runs or runs[-1][1] != supervised:
            runs.append(([], supervised))
        runs[-1][0].append(token)
    return [(_decode(plan, run), supervised) for run, supervised in runs]


def _decode(plan: Plan, ids: list[int]) -> str:
    text = ""
    pending: list[int] = []
    for token in [*ids, None]:
        if token is None or token == plan.image_token:
            text += plan.tokenizer.backend.decode(pending, skip_special_tokens=False)
            text += "<image>" if token is not None else ""
            pending = []
        else:
            pending.append(token)
    return text
