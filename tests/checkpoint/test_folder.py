"""The files of a checkpoint folder: which of them hold the weights, and the JSON among them."""

from __future__ import annotations

import json

import pytest

from mlx_speech.checkpoint.folder import inside, read_json, weight_files
from mlx_speech.errors import CheckpointError

SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


class TestJson:
    def test_an_object(self, tmp_path):
        (tmp_path / "config.json").write_text('{"name": "é"}', encoding="utf-8")
        assert read_json(tmp_path) == {"name": "é"}

    def test_a_missing_file(self, tmp_path):
        assert read_json(tmp_path, "a.json", required=False) == {}
        with pytest.raises(CheckpointError, match=r"no a\.json here, so this is not a model"):
            read_json(tmp_path, "a.json")

    @pytest.mark.parametrize("required", [True, False])
    def test_a_folder(self, tmp_path, required):
        (tmp_path / "a.json").mkdir()
        with pytest.raises(CheckpointError, match=r"a\.json: not a file"):
            read_json(tmp_path, "a.json", required=required)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff{}", b'{"a": }'])
    @pytest.mark.parametrize("required", [True, False])
    def test_a_damaged_file(self, tmp_path, content, required):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.json: not readable as JSON"):
            read_json(tmp_path, "a.json", required=required)

    def test_what_breaks_or_hides(self, tmp_path):
        depth = 100_000
        (tmp_path / "a.json").write_text('{"a":' + "[" * depth + "]" * depth + "}")
        with pytest.raises(
            CheckpointError, match=r"a\.json: not readable as JSON: nested too deep"
        ):
            read_json(tmp_path, "a.json")
        (tmp_path / "a.json").write_text('{"in": {"layers": 2, "width": 4, "layers": 3}}')
        with pytest.raises(CheckpointError, match=r"a\.json: .*'layers' stands twice in one obj"):
            read_json(tmp_path, "a.json")

    def test_no_object(self, tmp_path):
        (tmp_path / "a.json").write_text("[1]")
        with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
            read_json(tmp_path, "a.json")


class TestWeightFiles:
    @pytest.mark.parametrize(
        ("held", "expected"),
        [
            ([], []),
            (["adapter_model.safetensors", "out_llm.safetensors", "README.md"], []),
            ([SAFETENSORS, PYTORCH, *SHARDS], [SAFETENSORS]),
            ([PYTORCH, *SHARDS], SHARDS),
            ([PYTORCH, "pytorch_model-00001-of-00001.bin"], [PYTORCH]),
            (
                ["pytorch_model-2.bin", "pytorch_model-1.bin"],
                [f"pytorch_model-{i}.bin" for i in "12"],
            ),
            (["original/model.safetensors", "models/a.safetensors"], []),
            (["._model.safetensors", "._pytorch_model.bin"], []),
        ],
    )
    def test_the_best_there_are(self, tmp_path, held, expected):
        assert weight_files(tmp_path, {*held}) == expected
        for name in held:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert weight_files(tmp_path) == expected

    @pytest.mark.parametrize("single", [SAFETENSORS, PYTORCH])
    def test_an_index_says_which(self, tmp_path, single):
        end = single.rpartition(".")[2]
        names = {"a": f"x-2.{end}", "b": f"x-1.{end}", "c": f"x-2.{end}"}
        (tmp_path / f"{single}.index.json").write_text(json.dumps({"weight_map": names}))
        assert weight_files(tmp_path, {PYTORCH}) == [f"x-1.{end}", f"x-2.{end}"]
        names["b"] = "config.json"
        (tmp_path / f"{single}.index.json").write_text(json.dumps({"weight_map": names}))
        with pytest.raises(CheckpointError, match=rf"'config.json' is not the name of a \*\.{end}"):
            weight_files(tmp_path, {PYTORCH})

    @pytest.mark.parametrize(
        "index",
        ["{", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}'],
    )
    def test_a_damaged_index(self, tmp_path, index):
        (tmp_path / f"{SAFETENSORS}.index.json").write_text(index)
        with pytest.raises(CheckpointError, match=r"me/it: .* is not an index of weights"):
            weight_files(tmp_path, set(), "me/it")

    @pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "a/b", "a\\b", "a\n", "é" * 128])
    def test_names_of_files_elsewhere(self, tmp_path, name):
        (tmp_path / f"{SAFETENSORS}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="is not the name of a file in its folder"):
            weight_files(tmp_path)
        assert inside("a..b-1.bin", "x") == "a..b-1.bin"
