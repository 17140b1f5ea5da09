"""Are two processors the same, for the tokens and pixels that they make?

What counts is the family and the settings that its entry names, and the token counts of a few
sizes. Class suffixes (Fast, Pil), image backends and library versions do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardkit.format.canonical import canonical_json, sha256_hex
from shardkit.processors.counting import setting
from shardkit.processors.family import COMMON_SETTINGS, Size
from shardkit.processors.processor import VisionProcessor

PROBE: tuple[Size, ...] = ((64, 64), (640, 480), (300, 200), (100, 640), (1024, 1024))
"""Sizes whose token counts stand in the recipe."""


def settings_of(processor: VisionProcessor) -> dict[str, object]:
    """The settings that decide tokens or pixels, by name; what is off or absent is left out."""
    family, found = processor.family, dict[str, object]()
    for name in (*COMMON_SETTINGS, *family.image_settings):
        _put(found, name, setting(processor.real, processor.arguments, name))
    for name in family.own_settings:
        _put(found, _own_name(name, found), getattr(processor.real, name, None))
    size = found.get("size")
    if family.has_pixel_limits and isinstance(size, dict):
        del found["size"]
        found["min_pixels"], found["max_pixels"] = (
            size.get("shortest_edge"),
            size.get("longest_edge"),
        )
    return dict(sorted(found.items()))


def _own_name(name: str, taken: Mapping[str, object]) -> str:
    return f"processor.{name}" if name in taken else name


def _put(found: dict[str, object], name: str, value: object) -> None:
    plain = _plain(value)
    if plain not in (None, False, {}, []):
        found[name] = plain


def _plain(value: Any) -> Any:
    """The value as JSON has it: numbers, strings, lists, objects without their nulls."""
    if value is None or isinstance(value, bool | str):
        return value
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in sorted(value.items()) if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if hasattr(value, "__dict__"):
        return {k: _plain(v) for k, v in sorted(vars(value).items()) if v is not None}
    return str(value)


def identity_of(processor: VisionProcessor) -> dict[str, object]:
    """What a recipe keeps: family, settings, their sha256, and the probe of token counts."""
    settings = settings_of(processor)
    content: dict[str, object] = {"family": processor.family_name, "settings": settings}
    return {
        **content,
        "sha256": sha256_hex(canonical_json(content)),
        "probe": [[*size, processor.picture(size).n_tokens] for size in PROBE],
    }


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, a line each: name, expected / found."""
    if expected.get("family") != found.get("family"):
        return [f"family {expected.get('family')} / {found.get('family')}"]
    ours, theirs = expected.get("settings", {}), found.get("settings", {})
    names = sorted({*ours, *theirs})
    lines = [
        f"{name} {_shown(ours.get(name))} / {_shown(theirs.get(name))}"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
    if lines or expected.get("probe") == found.get("probe"):
        return lines
    return [
        f"tokens of a {a[0]} x {a[1]} picture {a[2]} / {b[2]}"
        for a, b in zip(expected.get("probe", []), found.get("probe", []), strict=False)
        if a != b
    ]


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
