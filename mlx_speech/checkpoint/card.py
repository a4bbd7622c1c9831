"""Model cards: README.md of a folder, with the metadata that the Hub reads at its top."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CARD = "README.md"


def name_of(folder: Path) -> str:
    """Of the repository that a folder in the Hub's cache is of, or else of the folder."""
    cached = re.search(r"models--(.+)--(.+?)/snapshots/", f"{folder.resolve()}/")
    return f"{cached[1]}/{cached[2]}" if cached else folder.resolve().name


def source_metadata(folder: Path) -> dict[str, Any]:
    """What the card of a checkpoint says at its top; nothing if there is none that can be read."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / CARD) or {}
    except (FileNotFoundError, UnicodeDecodeError, ValueError, yaml.YAMLError):
        return {}


def own_tags(metadata: dict[str, Any]) -> list[str]:
    """The tags of a card's metadata that are tags."""
    tags = metadata.get("tags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def licence(metadata: dict[str, Any], link: str) -> str:
    """A sentence about the licence of a derived model.

    Args:
        metadata: of the card of what it was made from.
        link: to that.
    """
    named = metadata.get("license_name") or metadata.get("license")
    if not named:
        return f"{link} names no licence: ask who made it before you pass this on."
    listed = ", ".join(map(str, named)) if isinstance(named, list) else named
    return f"That of {link}: {listed}."


def link_to(source: str) -> str:
    """What `name_of` gives: a repository as a link, a folder by its name."""
    if "/" not in source:
        return f"`{source}`"
    return f"[{source}](https://huggingface.co/{source})"


def write_card(folder: Path, card: ModelCard) -> None:
    """Write README.md, at once."""
    with replacing(folder / CARD) as file:
        file.write_text(str(card), encoding="utf-8")
