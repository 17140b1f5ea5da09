"""How is a processor loaded, whatever names it?

Through transformers' AutoProcessor. Where torchvision is absent its video part cannot be made;
pictures do not need it, so the processor is then made without.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardkit.errors import (
    IdentityMismatch,
    MissingPackage,
    ProcessorError,
    ShardkitError,
    UsageError,
)
from shardkit.processors.families import PROCESSORS
from shardkit.processors.family import COMMON_SETTINGS, Family
from shardkit.processors.identity import differences, identity_of, settings_of
from shardkit.processors.processor import VisionProcessor
from shardkit.storage.hub import find_model

_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


OLDEST_TRANSFORMERS = (5, 17)
"""The oldest version whose processors were compared with ours; 5.10's differ."""


def load_processor(
    source: object, *, arguments: Mapping[str, object] | None = None
) -> VisionProcessor:
    """The processor that `source` names: a hub name, a folder, or a processor object.

    `arguments` are settings that replace those of the files (`max_pixels` and so on); not for an
    object. Raises ProcessorError when there is none, when it is not one of PROCESSORS, or needs
    remote code, or transformers is too old; MissingPackage; UsageError for an argument that its
    family does not have, or that it cannot work with.
    """
    if isinstance(source, VisionProcessor):
        return source
    _check_transformers(str(source) if isinstance(source, str | Path) else type(source).__name__)
    if not isinstance(source, str | Path):
        return _known(source, type(source).__name__)
    name = str(source)
    found = _known(_load(name, {}), name)
    found.again = (_load_again, (name, {}))
    if not arguments:
        return found
    _check_arguments(found, arguments)
    try:
        changed = _known(_load(name, _translated(found, arguments)), name)
        _check_taken(changed, arguments)
        identity_of(changed)
    except ShardkitError:
        raise
    except Exception as err:  # what transformers says of a value is its own affair
        raise _unworkable(found, arguments, err) from err
    changed.again = (_load_again, (name, dict(arguments)))
    return changed


def _unworkable(
    processor: VisionProcessor, arguments: Mapping[str, object], err: Exception
) -> UsageError:
    """What to say of values that the processor takes and cannot work with."""
    own = settings_of(processor)
    return UsageError(
        f"the processor cannot work with {', '.join(sorted(arguments))}",
        where=processor.name,
        expected=", ".join(f"{name} like {own.get(name)}" for name in sorted(arguments)),
        found=", ".join(f"{name} {value}" for name, value in sorted(arguments.items())),
        fix=f"Give values of the same kind. (It said: {' '.join(str(err).split())[:200]})",
    )


def _load_again(name: str, arguments: dict[str, object]) -> VisionProcessor:
    return load_processor(name, arguments=arguments)


def load_processor_like(source: object, identity: Mapping[str, Any]) -> VisionProcessor:
    """The processor that `source` names, with the settings of a recipe's processor.

    Raises IdentityMismatch when it cannot be made the same.
    """
    found = load_processor(source)
    wanted = identity.get("settings") or {}
    own = settings_of(found)
    if isinstance(source, str | Path) and identity.get("family") == found.family_name:
        other = {name: value for name, value in wanted.items() if own.get(name) != value}
        other |= {name: _off(value) for name, value in own.items() if name not in wanted}
        if other:
            found = load_processor(source, arguments=other)
    refuse_other_processor(found, identity, found.name)
    return found


def _off(value: object) -> object:
    """A setting of such a value, as it is where identities leave it out."""
    return False if isinstance(value, bool) else None


def refuse_other_processor(
    processor: VisionProcessor, identity: Mapping[str, Any], where: str
) -> None:
    """Raise IdentityMismatch, naming each setting with both values, when it is not the recipe's."""
    lines = differences(identity, identity_of(processor))
    if lines:
        raise IdentityMismatch(
            "packed with another processor than the one given: " + "; ".join(lines),
            where=where,
            expected=f"{identity.get('family')} {str(identity.get('sha256'))[:12]}",
            found=f"{processor.family_name}, {processor.name}",
            fix="Use the processor and settings that the dataset was packed with (a setting is "
            "given as AutoProcessor.from_pretrained(NAME, max_pixels=...)), or pack again.",
        )


def family_of(real: object) -> tuple[str, Family] | None:
    """The entry of PROCESSORS that a processor object belongs to: by its class, else the nearest
    class that it is derived from. None for code of a model's own repository."""
    if type(real).__module__.startswith("transformers_modules"):
        return None
    by_class = {cls: (name, one) for name, one in PROCESSORS.items() for cls in one.classes}
    names = (_bare(cls.__name__) for cls in type(real).__mro__)
    return next((by_class[name] for name in names if name in by_class), None)


def _bare(name: str) -> str:
    return name.removesuffix("Fast").removesuffix("Pil")


def _check_transformers(where: str) -> None:
    from shardkit.processors.transformers_door import version

    found = version()
    if tuple(int(number) for number in found.split(".")[:2]) < OLDEST_TRANSFORMERS:
        raise ProcessorError(
            "this version of transformers has other processors than those that shardkit knows",
            where=where,
            expected="transformers {}.{} or newer".format(*OLDEST_TRANSFORMERS),
            found=f"transformers {found}",
            fix="Install a newer one: pip install -U transformers",
        )


def _known(real: object, name: str) -> VisionProcessor:
    found = family_of(real)
    if found is None:
        known = sorted(cls for family in PROCESSORS.values() for cls in family.classes)
        raise ProcessorError(
            "not a vision-language processor that shardkit knows",
            where=name,
            expected=", ".join(known),
            found=f"{type(real).__module__.split('.')[0]}'s {type(real).__name__}",
            fix="Use a model of one of these families; or pack with --tokenizer for LLaVA-1.5.",
        )
    processor = VisionProcessor(real, *found, name)
    _ = processor.image_token_id, processor.arguments
    return processor


def _load(name: str, arguments: dict[str, object]) -> object:
    path = Path(name).expanduser()
    if not path.is_dir():
        arguments = {**arguments, **_local_only(name)}
    from shardkit.processors.transformers_door import load_auto, load_without_videos

    try:
        return load_auto(os.path.expanduser(name), arguments)
    except Exception as error:  # transformers raises nearly every type here
        text = " ".join(str(error).split())
        lacks_videos = "orchvision" in text or "ideo processor" in text
        if "trust_remote_code" not in text and lacks_videos and not _has_torchvision():
            found = _without_videos(path, arguments, load_without_videos)
            if found is not None:
                return found
        raise _load_error(name, text) from error


def _local_only(name: str) -> dict[str, object]:
    is_local = find_model(name, _CONFIGS, ProcessorError)
    return {"local_files_only": True} if is_local else {}


def _without_videos(path: Path, arguments: dict[str, object], load: Any) -> object | None:
    class_name = _class_named_in(path)
    known = {cls for family in PROCESSORS.values() for cls in family.classes}
    if class_name is None or _bare(class_name) not in known:
        return None
    try:
        found: object = load(_bare(class_name), str(path), arguments)
    except ImportError as error:
        text = " ".join(str(error).split())
        raise MissingPackage(
            f"{class_name} needs a package that is not here: {text[:120]}",
            where=str(path),
            fix=_install(text),
        ) from error
    return found


def _class_named_in(path: Path) -> str | None:
    for name in _CONFIGS:
        try:
            found = json.loads((path / name).read_text()).get("processor_class")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, str):
            return found
    return None


def _has_torchvision() -> bool:
    return importlib.util.find_spec("torchvision") is not None


def _install(text: str) -> str:
    """What to do about a package that transformers misses."""
    if "num2words" in text:
        return 'Install it: pip install "shardkit[smolvlm]".'
    return 'Install it, of the version that fits torch: pip install "shardkit[torchvision]".'


def _load_error(name: str, text: str) -> ProcessorError | MissingPackage:
    if "trust_remote_code" in text:
        return ProcessorError(
            "the processor is written as remote code, which shardkit does not run",
            where=name,
            fix="Use a model whose processor is part of transformers.",
        )
    if "orchvision" in text or "num2words" in text:
        return MissingPackage(
            f"the processor needs a package that is not here: {text[:200]}",
            where=name,
            fix=_install(text),
        )
    return ProcessorError(
        f"cannot load the processor: {text[:300]}",
        where=name,
        fix="Give a folder saved by processor.save_pretrained, or a hub name that is reachable.",
    )


def _check_arguments(processor: VisionProcessor, arguments: Mapping[str, object]) -> None:
    family = processor.family
    known = {*COMMON_SETTINGS, *family.image_settings, *family.own_settings}
    known |= {"min_pixels", "max_pixels"} if family.has_pixel_limits else set()
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise UsageError(
            f"the processor has no setting {', '.join(unknown)}",
            where=processor.name,
            expected=f"for {processor.family_name}: {', '.join(sorted(known))}",
            fix="Use one of these names, or leave it out.",
        )


def _translated(processor: VisionProcessor, arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments as transformers takes them: limits of pixels are a `size` there."""
    given = dict(arguments)
    edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    limits = {edge: given.pop(name) for name, edge in edges.items() if name in given}
    if limits:
        size = processor.real.image_processor.size
        given["size"] = {edge: limits.get(edge, size[edge]) for edge in edges.values()}
    return given


def _check_taken(processor: VisionProcessor, arguments: Mapping[str, object]) -> None:
    settings = settings_of(processor)
    for name, value in arguments.items():
        found = settings.get(name)
        same = found == value or (not value and found is None)
        if isinstance(value, dict) and isinstance(found, dict):
            same = value.items() <= found.items()
        if not same and name in settings:
            raise UsageError(
                f"the processor does not take {name}",
                where=processor.name,
                expected=str(value),
                found=str(found),
                fix="Change it in the processor's own files (preprocessor_config.json).",
            )
