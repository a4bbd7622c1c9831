"""What a conversion will write: every tensor, before any is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """To come: rows of modules, bytes before and after."""
