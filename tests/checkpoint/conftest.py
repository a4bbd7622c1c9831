"""Commits on the Hub in miniature."""

from __future__ import annotations

import pytest
from repositories import REPO


@pytest.fixture
def publish(hub, tmp_path):
    """Write files into a new folder, and make it the newest commit of a repository."""
    count = 0

    def publish(*parts: dict[str, bytes], ref: str = "main") -> str:
        nonlocal count
        count += 1
        folder = tmp_path / f"commit{count}"
        for name, data in {k: v for part in parts for k, v in part.items()}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return hub.add(REPO, folder, ref)

    return publish
