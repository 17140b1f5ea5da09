"""All kinds of faults. A new kind is a module with a `case`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from random import Random

from campaign import (
    buildings,
    cuts,
    disks,
    flips,
    kills,
    leaks,
    manifest_bits,
    manifest_forms,
    overwrites,
    pictures,
    remote,
    rights,
    rows,
    shard_forms,
    soak,
    swaps,
    tables,
    uploads,
)
from campaign.room import Room
from campaign.verdict import Verdict

Case = Callable[[Room, Random, int], Verdict]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: what does one, and its share of the time."""

    case: Case
    share: int
    """Of the time, in parts of all shares together."""
    patience_s: float = 15.0
    """A case that takes longer hangs."""
    why_not: Callable[[], str | None] = lambda: None
    """Why this kind cannot be done here; None when it can."""


def _needs(*packages: str) -> Callable[[], str | None]:
    """Skip a kind where one of these packages is not installed."""

    def why_not() -> str | None:
        missing = [name for name in packages if find_spec(name) is None]
        return f"needs {', '.join(missing)}" if missing else None

    return why_not


CAMPAIGNS: dict[str, Kind] = {
    "flips": Kind(flips.case, 14),
    "overwrites": Kind(overwrites.case, 8),
    "cuts": Kind(cuts.case, 6),
    "swaps": Kind(swaps.case, 4),
    "manifest-bits": Kind(manifest_bits.case, 8),
    "manifest-forms": Kind(manifest_forms.case, 6),
    "shard-forms": Kind(shard_forms.case, 5),
    "rows": Kind(rows.case, 7),
    "tables": Kind(tables.case, 5, why_not=_needs("pyarrow")),
    "pictures": Kind(pictures.case, 5),
    "kills": Kind(kills.case, 16, patience_s=400, why_not=_needs("psutil")),
    "uploads": Kind(uploads.case, 4, patience_s=400, why_not=_needs("moto", "flask", "s3fs")),
    "buildings": Kind(buildings.case, 4),
    "disks": Kind(disks.case, 3, why_not=disks.why_not),
    "rights": Kind(rights.case, 4, patience_s=60),
    "remote": Kind(remote.case, 5, patience_s=120, why_not=_needs("aiohttp")),
    "leaks": Kind(leaks.case, 2, patience_s=60, why_not=_needs("psutil")),
    "soak": Kind(soak.case, 6, patience_s=400),
    "long-soak": Kind(soak.long_case, 3, patience_s=1200),
}
