"""What is said where the Hub refuses, or a download breaks off."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from repositories import (
    REPO,
    SHARDED,
    SINGLE,
    SMALL,
    contents,
    error_of,
)

from mlx_speech.checkpoint.hub import resolve_checkpoint


def test_missing_repository(hub):
    message = error_of("owner/none")
    assert "no such repository" in message
    assert "hf auth login" in message


@pytest.mark.parametrize(
    ("code", "said"), [("RepoNotFound", "no such repository"), (None, "access token")]
)
def test_private_repository(hub, publish, code, said):
    publish(SMALL, SINGLE)
    hub.fail("GET /api/models/*", status=401, error_code=code)
    message = error_of(REPO)
    assert said in message
    assert "hf auth login" in message


def test_gated_repository(hub, publish):
    publish(SMALL, SINGLE)
    hub.fail("* /owner/model/resolve/*", status=403, error_code="GatedRepo")
    message = error_of(REPO)
    assert f"https://huggingface.co/{REPO}" in message
    assert "hf auth login" in message


def test_missing_revision(publish):
    publish(SMALL, SINGLE)
    for revision in ("v9", "0" * 40):
        assert f"no revision '{revision}'" in error_of(REPO, revision=revision)


@pytest.mark.parametrize(
    ("status", "said"), [(403, "forbids this"), (418, "418"), (429, "too many"), (503, "503")]
)
def test_other_answers(hub, publish, status, said):
    publish(SMALL, SINGLE)
    hub.fail("GET /api/models/*/revision/*", status=status)
    assert said in error_of(REPO)


def test_not_a_hub(hub, publish):
    publish(SMALL, SINGLE)
    hub.fail("GET /api/models/*", status=200, body=b"<html>log in to the hotel's network</html>")
    assert "does not answer like a Hub" in error_of(REPO)


def test_cut_connection_is_resumed(hub, publish, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1)
    publish(SMALL, SINGLE)
    hub.cut("GET *model.safetensors", after=3, times=2)
    assert contents(resolve_checkpoint(REPO)) == {**SMALL, **SINGLE}
    weights = [r for r in hub.requests if str(r).startswith("GET") and "safetensors" in r.path]
    assert [r.headers.get("range") for r in weights] == [None, "bytes=3-", "bytes=6-"]


def test_cut_connection(hub, publish):
    publish(SMALL, SINGLE)
    hub.cut("GET *model.safetensors", after=3)
    assert "lacks model.safetensors" in error_of(REPO)
    hub.forget()
    assert contents(resolve_checkpoint(REPO)) == {**SMALL, **SINGLE}
    assert hub.fetched() == ["model.safetensors"]


def test_short_file(hub, publish):
    publish(SMALL, SINGLE)
    hub.fail("GET *model.safetensors", status=200, body=b"wei")
    assert "broke off" in error_of(REPO)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_cache_that_cannot_be_written(publish, monkeypatch, code):
    publish(SMALL, SINGLE)

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_download, "_chmod_and_move", refuse)
    message = error_of(REPO)
    assert os.strerror(code) in message
    assert constants.HF_HUB_CACHE in message


# The real thing: environment variables, standard error, start-up


def run(hub, home, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    script = (
        "import sys, mlx_speech.checkpoint.hub as hub\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        f"print(hub.resolve_checkpoint({REPO!r}, {', '.join(arguments)}))\n"
        "from huggingface_hub.utils import are_progress_bars_disabled\n"
        "assert not are_progress_bars_disabled()\n"
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={
            **inherited,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_environment_and_progress(hub, publish, tmp_path):
    commit = publish(SMALL, SHARDED)
    shown = run(hub, tmp_path / "a", "progress=True")
    hidden = run(hub, tmp_path / "b", "progress=False")
    for done, home in ((shown, "a"), (hidden, "b")):
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip())
        assert folder.is_relative_to(tmp_path / home)
        assert folder.name == commit
        assert contents(folder) == {**SMALL, **SHARDED}
    assert "100%" in shown.stderr
    assert hidden.stderr == ""

    hub.forget()
    offline = run(hub, tmp_path / "a", "progress=False", HF_HUB_OFFLINE="1")
    assert (offline.stdout, offline.stderr) == (shown.stdout, "")
    assert hub.requests == []
