"""resolve_checkpoint against a Hub in miniature: what is fetched, what is kept, what is said."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from conftest import TINY
from huggingface_hub import constants, file_download
from repositories import (
    ADAPTER,
    BIN,
    BIN_SHARDED,
    BIN_SHARDS,
    BPE_HEAD,
    REPO,
    SHARDED,
    SHARDS,
    SINGLE,
    SMALL,
    STRAY,
    contents,
    error_of,
)

import mlx_speech
from mlx_speech.checkpoint.hub import resolve_checkpoint
from mlx_speech.errors import CheckpointError

# Folders and names


def test_folder_is_returned_as_it_is(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(tmp_path) == tmp_path
    assert resolve_checkpoint("owner/model") == Path("owner/model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_checkpoint("~/owner") == tmp_path / "owner"
    assert hub.requests == []


def test_folder_has_no_revision(tmp_path):
    assert resolve_checkpoint(tmp_path, revision="main") == tmp_path
    assert "'v1'" in error_of(tmp_path, revision="v1", kind=CheckpointError)


def test_file_is_not_a_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert f"the folder that holds it, {tmp_path}" in error_of(file, kind=CheckpointError)


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "~/none", "a\\b", "a/b/c", Path("owner/model")]
)
def test_path_that_does_not_exist(hub, name):
    assert "no such folder" in error_of(name, kind=CheckpointError)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "my model/x", "owner/mo--del", "owner/"])
def test_neither_path_nor_repository(hub, name):
    assert "owner/name" in error_of(name, kind=CheckpointError)
    assert hub.requests == []


def test_a_name_longer_than_any_of_the_hub(hub):
    with pytest.raises(CheckpointError, match=r"with at most 96 characters$"):
        resolve_checkpoint("a" * 97)
    assert hub.requests == []


def test_bare_name_gets_both_readings(hub):
    message = error_of("granite", kind=CheckpointError)
    assert "no folder 'granite'" in message
    assert "owner/granite" in message
    assert hub.requests == []


# What is fetched


@pytest.mark.parametrize(
    "weights",
    [
        SINGLE,
        SHARDED,
        {**SINGLE, **ADAPTER},
        {**SHARDED, **ADAPTER},
        {"model_a.safetensors": b"a"},
        BIN,
        BIN_SHARDED,
        {**BIN, **ADAPTER},
        {**SINGLE, **BPE_HEAD},
        {**BIN, **ADAPTER, **BPE_HEAD},
    ],
    ids=[
        "single",
        "sharded",
        "adapter",
        "sharded adapter",
        "other name",
        "PyTorch",
        "sharded PyTorch",
        "PyTorch adapter",
        "BPE head",
        "PyTorch adapter BPE head",
    ],
)
def test_only_needed_files_are_fetched(hub, publish, weights):
    commit = publish(SMALL, STRAY, weights)
    folder = resolve_checkpoint(REPO, progress=False)
    assert folder.name == commit
    assert contents(folder) == {**SMALL, **weights}
    assert hub.fetched() == sorted({**SMALL, **weights})


def test_index_and_single_file_win_over_other_names(hub, publish):
    publish(SMALL, SHARDED, {"model-extra.safetensors": b"", "model.safetensors": b""})
    assert {*contents(resolve_checkpoint(REPO))} == {*SMALL, *SHARDED}
    publish(SMALL, SINGLE, {"model.fp16.safetensors": b""})
    assert {*contents(resolve_checkpoint(REPO))} == {*SMALL, *SINGLE}


@pytest.mark.parametrize(
    "weights",
    [SINGLE, SHARDED, {"model_a.safetensors": b"a"}],
    ids=["single", "sharded", "other name"],
)
def test_safetensors_win_over_pytorch(hub, publish, weights):
    publish(SMALL, weights, BIN, BIN_SHARDED)
    resolve_checkpoint(REPO)
    assert hub.fetched() == sorted({**SMALL, **weights, "pytorch_model.bin.index.json": b""})


def test_adapter_repository(publish):
    publish(ADAPTER)
    assert contents(resolve_checkpoint(REPO)) == ADAPTER


def test_second_call_asks_only_for_the_commit(hub, publish):
    publish(SMALL, SHARDED, ADAPTER)
    first = resolve_checkpoint(REPO)
    hub.forget()
    assert resolve_checkpoint(REPO) == first
    assert [str(request) for request in hub.requests] == [f"GET /api/models/{REPO}/revision/main"]


def test_revision_is_resolved_once(hub, publish):
    """The branch moves after the first file: all files still come from the first commit."""
    first = publish(SMALL, SHARDED)

    def move(request):
        if request.path.endswith("/config.json"):
            hub.on_request = lambda request: None
            publish(SMALL, {name: b"new" if name in SHARDS else SHARDED[name] for name in SHARDED})

    hub.on_request = move
    folder = resolve_checkpoint(REPO)
    assert len(hub.repositories[REPO].commits) == 2
    assert folder.name == first
    assert contents(folder) == {**SMALL, **SHARDED}
    asked = [request.path for request in hub.requests]
    assert all(f"/resolve/{first}/" in path for path in asked if "/resolve/" in path)
    assert sum("/api/models/" in path and "/tree/" not in path for path in asked) == 1


def test_revision_by_branch_and_by_commit(publish):
    old = publish(SMALL, {"model.safetensors": b"old"}, ref="v1")
    publish(SMALL, {"model.safetensors": b"new"})
    for revision, weights in (("v1", b"old"), (old, b"old"), ("main", b"new"), (None, b"new")):
        folder = resolve_checkpoint(REPO, revision=revision)
        assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "kind",
    [
        mlx_speech.GraniteSpeechConfig,
        mlx_speech.GraniteSpeechFeatureExtractor,
        mlx_speech.GraniteSpeechProcessor,
        mlx_speech.Tokenizer,
        mlx_speech.Speech2TextFeatureExtractor,
        mlx_speech.Speech2TextProcessor,
        mlx_speech.Speech2TextTokenizer,
    ],
)
def test_what_needs_no_weights_fetches_none(hub, publish, kind):
    folder = TINY.with_name("tiny-s2t") if "Speech2Text" in kind.__name__ else TINY
    suffixes = (".json", ".jinja", ".model")
    small = {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix in suffixes}
    publish(small, SINGLE, ADAPTER, ref="v1")
    publish({"config.json": b"{"}, SINGLE)
    assert isinstance(kind.from_pretrained(REPO, revision="v1"), kind)
    assert hub.fetched() == sorted({**small, "adapter_config.json": b""})


# Repositories that cannot be loaded


def test_no_weights(hub, publish):
    publish(SMALL, STRAY, BPE_HEAD)
    message = error_of(REPO, kind=CheckpointError)
    assert "no model.safetensors and no pytorch_model.bin" in message
    assert hub.fetched() == sorted(SMALL)


def test_no_config(hub, publish):
    publish(SINGLE)
    assert "no config.json" in error_of(REPO, kind=CheckpointError)
    assert hub.fetched() == []


def test_index_names_a_file_that_is_not_there(hub, publish):
    publish(SMALL, {name: SHARDED[name] for name in SHARDED if name != SHARDS[1]})
    assert f"names {SHARDS[1]}" in error_of(REPO, kind=CheckpointError)
    assert SHARDS[0] not in hub.fetched()
    publish(SMALL, {name: BIN_SHARDED[name] for name in BIN_SHARDED if name != BIN_SHARDS[1]})
    assert f"names {BIN_SHARDS[1]}" in error_of(REPO, kind=CheckpointError)


@pytest.mark.parametrize(
    "index", [b"<html>", b"[]", b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": 1}}', b"\xff"]
)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_malformed_index(publish, name, index):
    publish(SMALL, {name: index})
    assert f"{name} is not an index of weights" in error_of(REPO, kind=CheckpointError)


# Files that a checkpoint names

ELSEWHERE = ["../../x", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\x1b[2Jb", "a\nb"]


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("file", ELSEWHERE)
def test_index_names_a_file_elsewhere(hub, publish, index, file):
    publish(SMALL, {index: json.dumps({"weight_map": {"a": file}}).encode()})
    message = error_of(REPO, kind=CheckpointError)
    assert f"{index}: {file!r} is not the name of a file in its folder" in message
    assert message.isprintable()
    assert {*hub.fetched()} == {*SMALL, index}


def test_names_of_weights_are_judged_too(publish):
    publish(SMALL, {"model\x1b[2J.safetensors": b""})
    assert error_of(REPO, kind=CheckpointError).isprintable()


# Without the network


def go_offline(hub, monkeypatch, how: str = "environment") -> None:
    """Take the network away."""
    if how == "environment":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "closed port":
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    elif how == "server error":
        hub.fail("*", status=500)


WAYS = pytest.mark.parametrize("how", ["environment", "closed port", "server error"])
SAID = {
    "environment": "the network is switched off",
    "closed port": "no working connection to http://127.0.0.1:",
    "server error": "the Hub has a fault of its own (500)",
}


@WAYS
def test_cache_serves_without_network(hub, publish, monkeypatch, how):
    publish(SMALL, SHARDED, ADAPTER)
    first = resolve_checkpoint(REPO)
    go_offline(hub, monkeypatch, how)
    assert resolve_checkpoint(REPO) == first
    assert resolve_checkpoint(REPO, revision=first.name) == first


@WAYS
def test_empty_cache_without_network(hub, publish, monkeypatch, how):
    publish(SMALL, SHARDED)
    go_offline(hub, monkeypatch, how)
    message = error_of(REPO)
    assert SAID[how] in message
    # a path that was misspelled may look like owner/name
    assert "cache does not hold it, nor is there a folder of that name here: " in message
    assert hub.fetched() == []


@WAYS
@pytest.mark.parametrize(
    "lost", [SHARDS[1], "tokenizer.json", "additional_chat_templates/tool_use.jinja"]
)
def test_half_cache_names_the_missing_file(hub, publish, monkeypatch, how, lost):
    commit = publish(SMALL, SHARDED, ADAPTER)
    (resolve_checkpoint(REPO) / lost).unlink()
    go_offline(hub, monkeypatch, how)
    for revision in (None, commit):
        message = error_of(REPO, revision=revision)
        assert SAID[how] in message
        assert f"the local cache lacks {lost}" in message


def forget_listing(folder: Path) -> None:
    (folder.parent.parent / "trees" / f"{folder.name}.json").unlink()
    file_download.read_tree_cache.__globals__["_IN_MEMORY_TREE_CACHE"].clear()


def test_pytorch_cache_of_another_tool(hub, publish, monkeypatch):
    publish(SMALL, BIN)
    folder = resolve_checkpoint(REPO)
    forget_listing(folder)
    go_offline(hub, monkeypatch)
    assert resolve_checkpoint(REPO) == folder


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "adapter_model.safetensors"])
def test_half_cache_of_another_tool(hub, publish, lost, monkeypatch):
    """Files fetched one by one leave no listing: what must be there is still missed."""
    publish(SMALL, SINGLE, ADAPTER)
    folder = resolve_checkpoint(REPO)
    forget_listing(folder)
    go_offline(hub, monkeypatch)
    assert resolve_checkpoint(REPO) == folder
    (folder / lost).unlink()
    if lost == "config.json":
        (folder / "adapter_config.json").unlink()
    assert f"lacks {lost}" in error_of(REPO)


def test_half_cache_is_completed(hub, publish):
    publish(SMALL, SHARDED)
    folder = resolve_checkpoint(REPO)
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).resolve().unlink(missing_ok=True)
    for blob in (folder.parent.parent / "blobs").iterdir():
        if blob.read_bytes() == SHARDED[SHARDS[1]]:
            blob.unlink()
    hub.forget()
    assert contents(resolve_checkpoint(REPO)) == {**SMALL, **SHARDED}
    assert hub.fetched() == [SHARDS[1]]
