"""Models written to folders and repositories, and read again."""

from __future__ import annotations

import errno
import json
import os
import shutil

import mlx.core as mx
import pytest
from conftest import DECODERS, TINY, TINY_S2T, edit_json, random_decoder
from conversions import logits, same, tensors

from mlx_speech import (
    CheckpointError,
    GraniteSpeechForConditionalGeneration,
    HubError,
    InputError,
    LlamaForCausalLM,
    UnsupportedOptionError,
)
from mlx_speech.checkpoint.saving import write_text
from mlx_speech.checkpoint.shards import ShardWriter
from mlx_speech.loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FAMILIES = [TINY, TINY_S2T, *sorted(DECODERS.iterdir())]
REPO = "me/model"


@pytest.fixture
def me(hub, monkeypatch):
    """Logged in as me."""
    hub.tokens["hf_secret"] = ("me", "our-lab")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return hub


class TestSaving:
    @pytest.mark.parametrize("source", FAMILIES, ids=lambda path: path.name)
    def test_nothing_changes(self, tmp_path, source):
        """In the checkpoint's own type: not a bit of any tensor, nor of the configuration."""
        model = load_model(source, dtype="auto")
        files = model.save_pretrained(tmp_path / "a")
        assert files == sorted(map(str, (tmp_path / "a").iterdir()))
        again = load_model(tmp_path / "a", dtype="auto")
        assert type(again) is type(model)
        assert again.dtype == model.dtype
        added = {"architectures", "dtype", "torch_dtype", "rope_theta", "rope_scaling"}
        added.add("_name_or_path")  # which is another
        before, after = (
            {k: v for k, v in m.config.to_dict().items() if k not in added} for m in (model, again)
        )
        assert before == after
        assert mx.array_equal(logits(again), logits(model)).item()
        assert again.generation_config == model.generation_config
        again.save_pretrained(tmp_path / "b")
        assert same(tensors(tmp_path / "a", "pt"), tensors(tmp_path / "b", "pt"))
        for file in (tmp_path / "a").glob("*.json"):
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()

    def test_layout(self, tmp_path):
        """That of the checkpoint, where BatchNorms are for themselves; the adapter beside it."""
        load_model(TINY).save_pretrained(tmp_path)
        stored = mx.load(str(TINY / "model.safetensors"))
        found = tensors(tmp_path, "pt")
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in stored.items()}
        adapter, expected = (
            mx.load(str(folder / "adapter_model.safetensors")) for folder in (tmp_path, TINY)
        )
        names = {name.removeprefix("base_model.model.") for name in expected}
        assert adapter.keys() == {f"base_model.model.{name}" for name in names}
        configs = [json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path, TINY)]
        assert configs[0] == configs[1]

    def test_a_changed_model(self, tmp_path):
        """What is set since it was loaded is what is written."""
        model = load_model(DECODERS / "llama")
        model.resize_token_embeddings(70)
        model.generation_config = model.generation_config.overridden(num_beams=3, max_new_tokens=7)
        model.save_pretrained(tmp_path)
        again = load_model(tmp_path)
        assert again.config.vocab_size == 70
        assert again.generation_config.num_beams == 3
        stored = json.loads((tmp_path / "generation_config.json").read_text())
        assert stored["max_new_tokens"] == 7
        assert mx.array_equal(logits(again), logits(model)).item()

    def test_what_a_checkpoint_says_of_generation_stays(self, tmp_path):
        source = shutil.copytree(DECODERS / "llama", tmp_path / "source")
        changes = {"top_h": 0.5, "eos_token_id": [0, 2], "num_beams": 4}
        edit_json(source / "generation_config.json", **changes)
        model = load_model(source)
        model.generation_config = model.generation_config.overridden(num_beams=1)
        model.save_pretrained(tmp_path / "saved")
        stored = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
        assert [stored[name] for name in changes] == [0.5, [0, 2], 1]

    @pytest.mark.parametrize("mode", ["affine", "mxfp4"])
    def test_quantized(self, tmp_path, mode):
        model = LlamaForCausalLM.from_pretrained(
            DECODERS / "llama", quantization_config={"bits": 4, "group_size": 32, "mode": mode}
        )
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["quantization"] == config["quantization_config"]
        assert config["quantization"]["mode"] == mode
        assert mx.array_equal(logits(load_model(tmp_path)), logits(model)).item()
        assert "model.layers.0.self_attn.q_proj.scales" in tensors(tmp_path)

    def test_a_quantized_model_with_an_adapter(self, tmp_path):
        model = load_model(TINY, quantization_config={"bits": 8})
        model.save_pretrained(tmp_path)
        assert mx.array_equal(logits(load_model(tmp_path)), logits(model)).item()

    def test_shards_of_an_earlier_save_go(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "model.fp16.safetensors").write_text("mine, too")
        model = random_decoder()
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        load_model(TINY).save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            *("config.json", "generation_config.json", "notes.txt"),
            *("model.safetensors", "model.safetensors.index.json", "model.fp16.safetensors"),
        }
        assert mx.array_equal(logits(load_model(tmp_path)), logits(model)).item()

    def test_over_itself(self, tmp_path):
        folder = shutil.copytree(DECODERS / "granite", tmp_path / "model")
        model = load_model(folder)
        model.save_pretrained(folder, safe_serialization=True)
        assert mx.array_equal(logits(load_model(folder)), logits(model)).item()

    def test_mistakes(self, tmp_path):
        model = random_decoder()
        with pytest.raises(InputError, match="save_pretrained has no option novelty"):
            model.save_pretrained(tmp_path / "a", novelty=1)
        with pytest.raises(UnsupportedOptionError, match="safe_serialization can only be True"):
            model.save_pretrained(tmp_path / "a", safe_serialization=False)
        with pytest.raises(InputError, match="max_shard_size is '5', but must be"):
            model.save_pretrained(tmp_path / "a", max_shard_size="5")
        with pytest.raises(InputError, match="save_directory is None, but must be the path"):
            model.save_pretrained(None)
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="is a file"):
            model.save_pretrained(tmp_path / "file")
        assert not list(tmp_path.glob("a/*"))

    def test_a_full_disk(self, tmp_path, monkeypatch):
        """One line, and what was there before is whole."""
        model = random_decoder()
        model.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        write = ShardWriter.write

        def full(writer, name, array):
            write(writer, name, array)
            if "layers.1" in name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(ShardWriter, "write", full)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            model.save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestPushing:
    def test_a_model(self, me, tmp_path):
        model = load_model(TINY)
        commit = model.push_to_hub(REPO, tags=["speech"], max_shard_size="1MB")
        assert commit.commit_message == "Upload GraniteSpeechForConditionalGeneration"
        held = me.files(REPO)
        assert sum(name.startswith("model-") for name in held) > 2
        card = held["README.md"].decode()
        assert "- speech" in card
        assert "- mlx" in card
        again = GraniteSpeechForConditionalGeneration.from_pretrained(REPO)
        assert mx.array_equal(logits(again), logits(model)).item()

    def test_what_was_there(self, me):
        """Another model's shards go, and so does its adapter; its card stays, with further tags."""
        load_model(TINY).push_to_hub(REPO, max_shard_size="1MB")
        me.commit(REPO, {**me.files(REPO), "README.md": b"---\ntags: [a]\n---\nMine.\n"})
        random_decoder().push_to_hub(REPO, tags=["a", "b"])
        held = me.files(REPO)
        assert "model.safetensors" in held
        assert not [name for name in held if name.startswith(("model-", "adapter_"))]
        card = held["README.md"].decode()
        assert card.split() == ["---", "tags:", "-", "a", "-", "b", "---", "Mine."]

    def test_while_saving(self, me, tmp_path):
        """Under the folder's name, of the user."""
        random_decoder().save_pretrained(
            tmp_path / "small", push_to_hub=True, commit_message="first", token=True
        )
        assert "config.json" in me.files("me/small")
        assert (tmp_path / "small" / "config.json").exists()
        assert not (tmp_path / "small" / "README.md").exists()

    def test_parts(self, me):
        """With arguments of transformers that are for models, or change nothing."""
        config = random_decoder().config
        config.push_to_hub(REPO, max_shard_size="5GB", use_temp_dir=True, safe_serialization=True)
        assert me.files(REPO).keys() == {".gitattributes", "README.md", "config.json"}

    def test_to_a_branch(self, me):
        """Which is made from the main one, and goes on there."""
        model = random_decoder()
        model.config.push_to_hub(REPO)
        model.config.push_to_hub(REPO, revision="tuned")
        model.push_to_hub(REPO, revision="tuned", tags="speech")
        assert "model.safetensors" not in me.files(REPO)
        assert "model.safetensors" in me.files(REPO, "tuned")
        assert "- speech" in me.files(REPO, "tuned")["README.md"].decode()
        again = LlamaForCausalLM.from_pretrained(REPO, revision="tuned")
        assert mx.array_equal(logits(again), logits(model)).item()

    def test_no_repository(self, me):
        with pytest.raises(InputError, match="repo_id is None, but must be owner/name"):
            random_decoder().push_to_hub(None)
        with pytest.raises(InputError, match="'a/b/c' is not the name of a Hub repository"):
            random_decoder().push_to_hub("a/b/c")

    def test_without_a_token(self, hub):
        with pytest.raises(HubError, match="needs an access token"):
            random_decoder().push_to_hub(REPO)


class TestWriteText:
    def test_whole_or_not_at_all(self, tmp_path):
        file = tmp_path / "config.json"
        write_text(file, "old")
        with pytest.raises(UnicodeEncodeError):
            write_text(file, "half of it \ud800")
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]

    def test_no_folder(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"none/a\.json: cannot be written: No such file"):
            write_text(tmp_path / "none" / "a.json", "text")
