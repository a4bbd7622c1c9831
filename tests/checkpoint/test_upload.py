"""Uploads to a Hub in miniature: what is sent, what is sent again, and what is said."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from huggingface_hub import constants

from mlx_speech.checkpoint.upload import check_token, upload
from mlx_speech.errors import HubError, InputError

# huggingface_hub's own, where it uploads without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "me/model-4bit"
SHARDS = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 5000 for n in (1, 2)}
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# model\n",
    "config.json": b'{"a": 1}',
    "model.safetensors.index.json": b"{}",
    **SHARDS,
    "other.safetensors": b"beside",
}


@pytest.fixture
def me(hub, monkeypatch):
    """Logged in as me, of an organization."""
    hub.tokens["hf_secret"] = ("me", "our-lab")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return hub


@pytest.fixture
def folder(tmp_path) -> Path:
    return written(tmp_path / "model", FILES)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def held(hub, repo_id: str = REPO) -> dict[str, bytes]:
    return {k: v for k, v in hub.files(repo_id).items() if k != ".gitattributes"}


def sent(hub) -> list[str]:
    """Names of the large files that were sent, each part once, with repetitions."""
    names = {hashlib.sha256(data).hexdigest(): name for name, data in FILES.items()}
    puts = [r.path.split("/")[2] for r in hub.requests if r.method == "PUT"]
    return sorted(names[oid] for oid in puts)


def error_of(*args, kind=HubError, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        upload(*args, **kwargs)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is sent


@pytest.mark.parametrize("repo_id", [REPO, "our-lab/model"])
def test_new_repository(me, folder, repo_id):
    (folder / "._config.json").write_bytes(b"of macOS")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "._rag.jinja").write_bytes(b"of macOS")
    assert upload(folder, repo_id).repo_url == f"{me.url}/{repo_id}"
    assert held(me, repo_id) == FILES
    assert not me.repositories[repo_id].private
    assert sent(me) == sorted([*SHARDS, "other.safetensors"])
    written = [r for r in me.requests if r.method == "POST"]
    assert {r.headers["authorization"] for r in written if "/lfs/" not in r.path} == {
        "Bearer hf_secret"
    }


def test_private_repository(me, folder):
    upload(folder, REPO, private=True)
    assert me.repositories[REPO].private
    assert held(me) == FILES
    upload(folder, REPO, private=True)


def test_public_repository_is_not_made_private(me, folder):
    upload(folder, REPO)
    me.forget()
    message = error_of(folder, REPO, private=True, kind=InputError)
    assert f"{REPO} is there already, and public" in message
    assert sent(me) == []


def test_token_of_a_file(hub, folder):
    hub.tokens["hf_stored"] = ("me",)
    token = Path(constants.HF_TOKEN_PATH)
    token.parent.mkdir(parents=True)
    token.write_text("hf_stored\n")
    assert check_token() == "me"
    upload(folder, REPO)
    assert held(hub) == FILES


def test_large_files_go_in_parts(me, folder):
    me.part_size = 2000
    upload(folder, REPO)
    assert held(me) == FILES
    assert sent(me) == sorted(["other.safetensors", *[name for name in SHARDS for _ in range(3)]])


def test_second_upload_sends_what_changed(me, folder):
    upload(folder, REPO)
    me.forget()
    commits = len(me.repositories[REPO].commits)
    upload(folder, REPO)
    assert sent(me) == []
    assert len(me.repositories[REPO].commits) == commits
    (folder / "config.json").write_bytes(b'{"a": 2}')
    upload(folder, REPO)
    assert held(me) == {**FILES, "config.json": b'{"a": 2}'}
    assert sent(me) == []


def test_weights_of_an_earlier_model_go(me, folder, tmp_path):
    """An index that stayed would be taken for that of the new weights, a head for theirs."""
    (folder / "out_llm.safetensors").write_bytes(b"head")
    upload(folder, REPO)
    new = {"config.json": b'{"a": 1}', "model.safetensors": b"one"}
    upload(written(tmp_path / "new", new), REPO)
    kept = ("README.md", "other.safetensors")
    assert held(me) == {**new, **{name: FILES[name] for name in kept}}


# Requests that fail, uploads that are cut


@pytest.mark.parametrize(
    "pattern",
    ["PUT *", "POST */objects/batch", "POST */preupload/*", "POST */complete", "POST */lfs/verify"],
)
def test_failed_request_is_tried_again(me, folder, pattern):
    me.part_size = 2000
    me.fail(pattern, status=503, times=2)
    upload(folder, REPO)
    assert held(me) == FILES


def test_cut_connection_is_tried_again(me, folder):
    me.cut("PUT *", after=100, times=1)
    upload(folder, REPO)
    assert held(me) == FILES
    assert len(sent(me)) == len(SHARDS) + 2


@pytest.mark.parametrize("how", ["fault", "cut", "Ctrl-C"])
def test_interrupted_upload_is_resumed(me, folder, how):
    first, second = SHARDS
    broken = f"PUT /lfs/{hashlib.sha256(SHARDS[second]).hexdigest()}"
    # the second shard's turn comes when the others have been stored
    (folder / "other.safetensors").unlink()

    def when_first_is_stored(request):
        if str(request) == broken:
            while hashlib.sha256(SHARDS[first]).hexdigest() not in me.objects:
                pass
            if how == "Ctrl-C":
                raise_in_client()

    interrupted = []

    def raise_in_client():
        import _thread

        if not interrupted:
            interrupted.append(True)
            _thread.interrupt_main()

    me.on_request = when_first_is_stored
    if how == "cut":
        me.cut(broken, after=100)
    else:
        me.fail(broken, status=500)
    if how == "Ctrl-C":
        with pytest.raises(KeyboardInterrupt):
            upload(folder, REPO)
    else:
        assert REPO in error_of(folder, REPO)
    assert first in sent(me)
    assert held(me) == {}

    me.forget()
    me.on_request = lambda request: None
    upload(folder, REPO)
    assert sent(me) == [second]
    assert held(me) == {k: v for k, v in FILES.items() if k != "other.safetensors"}


# Refusals


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model-4bit", "give owner/model-4bit"),
        ("", "not the name of a Hub repository"),
        ("me/my model", "not the name of a Hub repository"),
        ("me/mo--del", "not the name of a Hub repository"),
        ("https://huggingface.co/me/model", "not the name of a Hub repository"),
        ("me/" + "a" * 100, "at most 96"),
    ],
)
def test_name_of_a_repository(me, folder, name, said):
    assert said in error_of(folder, name, kind=InputError)
    assert me.requests == []


def test_no_token(hub, folder):
    for call in (lambda: upload(folder, REPO), check_token):
        with pytest.raises(HubError, match=r"hf auth login.*HF_TOKEN"):
            call()
    assert hub.requests == []


def test_token_that_is_not_valid(me, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "wants an access token, or another one (401)" in error_of(folder, REPO)
    with pytest.raises(HubError, match="wants an access token, or another one"):
        check_token()


def test_namespace_of_others(me, folder):
    message = error_of(folder, "others/model")
    assert message.startswith("others/model: the Hub forbids this (403)")
    assert "others/model" not in me.repositories


def test_token_that_may_only_read(me, folder):
    me.fail("POST *", status=403)
    assert "has the right" in error_of(folder, REPO)


def test_repository_of_others_that_is_there(me, folder):
    me.commit("others/model", {"config.json": b"theirs"})
    assert "the Hub forbids this" in error_of(folder, "others/model")
    assert held(me, "others/model") == {"config.json": b"theirs"}


@pytest.mark.parametrize(
    ("pattern", "status", "said"),
    [
        ("POST */commit/*", 403, "the Hub forbids this"),
        ("POST */create", 500, "a fault of its own (500)"),
        ("POST */commit/*", 413, "refused the request"),
        ("PUT *", 403, "the Hub forbids this"),
        ("PUT *", 503, "a fault of its own (503)"),
        ("POST */create", 429, "wait a few minutes"),
    ],
)
def test_other_answers(me, folder, pattern, status, said):
    me.fail(pattern, status=status)
    assert said in error_of(folder, REPO)


def test_not_a_hub(me, folder):
    me.fail("*", status=200, body=b"<html>log in to the hotel's network</html>")
    assert "does not answer like a Hub" in error_of(folder, REPO)


def test_no_network(me, folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    assert f"no working connection to {url}" in error_of(folder, REPO)


def test_network_switched_off(me, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in error_of(folder, REPO)
    assert me.requests == []


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bars(me, folder, capsys, progress):
    from huggingface_hub.utils import are_progress_bars_disabled

    upload(folder, REPO, progress=progress)
    shown = capsys.readouterr()
    assert ("100%" in shown.err) == progress
    assert shown.out == ""
    assert not are_progress_bars_disabled()


# By Xet, as it is where nothing switches it off


def xet_upload(me, folder: Path) -> subprocess.CompletedProcess:
    """In a process of its own: Xet reads the environment, and keeps its threads."""
    imports = "from mlx_speech.checkpoint.upload import upload"
    script = f"{imports}\nupload({str(folder)!r}, {REPO!r}, progress=False)"
    home = {"HF_HOME": constants.HF_HOME, "HF_ENDPOINT": me.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_xet(me, tmp_path):
    """A refused commit: the next upload does not send again what the store has taken."""
    weights = random.Random(0).randbytes(300_000)  # which cannot be packed
    folder = written(tmp_path / "model", {"config.json": b"{}", "model.safetensors": weights})
    me.fail("POST /v1/xorbs/*", status=503, times=1)
    me.fail("POST */commit/*", status=403)
    refused = xet_upload(me, folder)
    assert refused.returncode == 1
    assert f"HubError: {REPO}: the Hub forbids this (403)" in refused.stderr
    assert sum("/v1/xorbs/" in request.path for request in me.requests) == 2
    # blocks begin with a header, and so does each piece of data in them
    (xorb,) = me.xorbs.values()
    assert weights[:1000] in xorb
    assert 0 < len(xorb) - len(weights) < 1000
    assert held(me) == {}

    me.forget()
    done = xet_upload(me, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not any("/v1/xorbs/" in request.path for request in me.requests)
    oid = hashlib.sha256(weights).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 300000\n"
    assert held(me) == {"config.json": b"{}", "model.safetensors": pointer.encode()}
    assert not any("/lfs/" in request.path for request in me.requests)
