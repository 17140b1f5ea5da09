"""The only place of this folder that imports transformers."""

from __future__ import annotations

import importlib
from typing import Any


def version() -> str:
    """The installed transformers' version."""
    return str(importlib.import_module("transformers").__version__)


def load_auto(path: str, arguments: dict[str, object]) -> object:
    """AutoProcessor's processor; raises what transformers raises."""
    transformers = importlib.import_module("transformers")
    found: object = transformers.AutoProcessor.from_pretrained(
        path, trust_remote_code=False, **arguments
    )
    return found


def load_without_videos(class_name: str, path: str, arguments: dict[str, object]) -> object:
    """The processor of a transformers class, without its part for videos.

    Raises what transformers raises, ImportError for a package that is not here.
    """
    transformers = importlib.import_module("transformers")
    cls = without_videos(getattr(transformers, class_name))
    found: object = cls.from_pretrained(path, trust_remote_code=False, **arguments)
    return found


def without_videos(cls: Any) -> Any:
    """The processor class with no video processor; the class itself where it has none anyway."""
    every = list(cls.get_attributes())
    names = [name for name in every if "video" not in name]
    if names == every:
        return cls

    def validated(
        processor_config: dict[str, Any], valid_kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        unused, valid = cls.validate_init_kwargs(processor_config, valid_kwargs)
        return unused, {**valid, "video_processor": None}

    members = {
        "__module__": cls.__module__,
        "get_attributes": classmethod(lambda _: names),
        "validate_init_kwargs": staticmethod(validated),
    }
    return type(cls.__name__, (cls,), members)
