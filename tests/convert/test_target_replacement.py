"""A result is there as a whole, or what was there before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import DECODERS, ROOT, TINY
from pytorch_files import save_pytorch_bin

from convert import convert
from mlx_speech import CheckpointError, InputError, load
from mlx_speech.checkpoint.shards import ShardWriter
from mlx_speech.loading import load_model


class TestWhole:
    """A result is there as a whole, or what was there before."""

    def fail(self, monkeypatch, error, after: int = 20):
        """Have writing fail after some tensors."""
        write, count = ShardWriter.write, iter(range(10**6))

        def failing(self, name, array):
            if next(count) >= after:
                raise error
            write(self, name, array)

        monkeypatch.setattr(ShardWriter, "write", failing)

    def test_disk_full(self, monkeypatch, tmp_path):
        self.fail(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(CheckpointError, match="out: cannot be written: No space left on dev"):
            convert(TINY, tmp_path / "out", quantize=True)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("bits", [4, (4, 8)])
    def test_interrupted(self, monkeypatch, tmp_path, bits):
        self.fail(monkeypatch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            convert(TINY, tmp_path / "out", quantize=True, q_bits=bits)
        assert not list(tmp_path.iterdir())

    def test_what_was_there_stays_until_the_end(self, monkeypatch, tmp_path):
        (first,) = convert(DECODERS / "llama", tmp_path / "out")
        before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
        with pytest.raises(InputError, match="out exists already; overwrite replaces it"):
            convert(TINY, tmp_path / "out")
        with monkeypatch.context() as patch:
            self.fail(patch, OSError(errno.EIO, "broken disk"))
            with pytest.raises(CheckpointError, match="broken disk"):
                convert(TINY, tmp_path / "out", overwrite=True)
        assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
        (second,) = convert(TINY, tmp_path / "out", overwrite=True)
        assert load_model(second.folder).config.model_type == "granite_speech"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_the_last_step_fails(self, monkeypatch, tmp_path):
        """What was there has gone out of the way, and comes back."""
        (first,) = convert(DECODERS / "llama", tmp_path / "out")
        rename = Path.rename

        def failing(path, target):
            if path.name.startswith(".mlx-speech-") and not path.name.endswith(".old"):
                raise OSError(errno.EIO, "broken disk")
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", failing)
            with pytest.raises(CheckpointError, match="broken disk"):
                convert(TINY, tmp_path / "out", overwrite=True)
        assert load_model(first.folder).config.model_type == "llama"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @contextmanager
    def waiting(self, source: Path, target: Path, where: str) -> Iterator[subprocess.Popen]:
        """A conversion in a process of its own that comes to a place, and is killed there."""
        code = (
            "import time\n"
            "from pathlib import Path\n"
            "from convert import convert\n"
            "from convert.source import Source\n"
            "def wait(*args, **options): print('now', flush=True); time.sleep(60)\n"
            "def rename(path, target, rename=Path.rename):\n"
            "    result = rename(path, target)\n"
            f"    if path.name == {target.name!r}: wait()\n"
            "    return result\n"
            f"{where}\n"
            f"convert({str(source)!r}, {str(target)!r}, quantize=True, overwrite=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "now\n"
            yield process
            process.kill()
            assert process.wait() == -signal.SIGKILL

    def test_killed(self, tmp_path):
        """What is left of it does not load, and goes with the next conversion; not before."""
        (tmp_path / "bin").mkdir()
        shutil.copy(DECODERS / "llama" / "config.json", tmp_path / "bin")
        weights = mx.load(str(DECODERS / "llama" / "model.safetensors"))
        save_pytorch_bin(tmp_path / "bin" / "pytorch_model.bin", weights)
        out, others = tmp_path / "out", tmp_path / ".out.others"
        others.mkdir()
        for _ in range(2):
            with self.waiting(tmp_path / "bin", out, "Source.copy_carried = wait"):
                left = set(tmp_path.iterdir()) - {out, others, tmp_path / "bin"}
                assert len(left) == 2
                (written,) = (path for path in left if (path / "model.safetensors").exists())
                with pytest.raises(CheckpointError, match=r"no config.json"):
                    load_model(written)
                # of a living one, nothing is touched
                convert(DECODERS / "llama", out, overwrite=True)
                assert all(path.exists() for path in left)
        convert(DECODERS / "llama", tmp_path / "out2")
        assert all(path.exists() for path in left)
        convert(DECODERS / "llama", out, overwrite=True)
        assert {path.name for path in tmp_path.iterdir()} == {"bin", "out", "out2", ".out.others"}

    def test_killed_while_it_replaces_a_model(self, tmp_path):
        out = tmp_path / "out"
        convert(DECODERS / "llama", out)
        with self.waiting(TINY, out, "Path.rename = rename"):
            assert not out.exists()
            assert len(list(tmp_path.iterdir())) == 2
        with pytest.raises(InputError, match="out exists already; overwrite replaces it"):
            convert(TINY, out)
        assert load_model(out).config.model_type == "llama"
        assert list(tmp_path.iterdir()) == [out]
        with self.waiting(TINY, out, "import shutil; shutil.rmtree = wait"):
            assert load_model(out).config.model_type == "granite_speech"
            assert len(list(tmp_path.iterdir())) == 2
        convert(DECODERS / "llama", out, overwrite=True)
        assert list(tmp_path.iterdir()) == [out]

    def test_disk_full_while_a_bin_is_rewritten(self, tmp_path):
        """Under a limit that the system enforces."""
        (tmp_path / "bin").mkdir()
        shutil.copy(DECODERS / "llama" / "config.json", tmp_path / "bin")
        weights = mx.load(str(DECODERS / "llama" / "model.safetensors"))
        save_pytorch_bin(tmp_path / "bin" / "pytorch_model.bin", weights)
        code = (
            "import resource\n"
            "from convert import convert\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            f"convert({str(tmp_path / 'bin')!r}, {str(tmp_path / 'out')!r})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        last = done.stderr.splitlines()[-1]
        assert last.startswith("mlx_speech.errors.CheckpointError: ")
        assert "cannot be written: File too large" in last
        assert [path.name for path in tmp_path.iterdir()] == ["bin"]

    def test_too_little_room(self, monkeypatch, tmp_path):
        usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(CheckpointError, match=r"4.20 MB are to be written, but 1.00 MB are fr"):
            convert(TINY, tmp_path / "out", quantize=True)
        assert not list(tmp_path.iterdir())

    def test_never_over_the_source(self, tiny_copy, tmp_path):
        for target in (tiny_copy, tiny_copy.parent):
            with pytest.raises(InputError, match="is, or holds, the model to be converted"):
                convert(tiny_copy, target, quantize=True, overwrite=True)
        assert load(tiny_copy)

    @pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
    def test_never_by_a_file_outside_the_source(self, hub, tmp_path, kind):
        source, outside = tmp_path / "source", tmp_path / f"mine.{kind}"
        shutil.copytree(DECODERS / "llama", source)
        (source / "model.safetensors").rename(outside)
        weight_map = dict.fromkeys(
            mx.load(str(outside), format="safetensors"), f"../{outside.name}"
        )
        (source / f"{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        hub.add("owner/model", source)
        before = outside.read_bytes()
        (result,) = convert(DECODERS / "llama", tmp_path / "out")
        for path in (source, "owner/model"):
            for options in ({}, {"dry_run": True}, {"quantize": True}):
                with pytest.raises(CheckpointError, match="is not the name of a file in its fold"):
                    convert(path, result.folder, overwrite=True, **options)
        with pytest.raises(CheckpointError, match="is not the name of a file in its folder"):
            load_model(source)
        assert outside.read_bytes() == before
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"home", "source", "out", outside.name}
        assert load_model(result.folder)

    def test_an_empty_folder_is_taken(self, tmp_path):
        (tmp_path / "out").mkdir()
        (result,) = convert(DECODERS / "llama", tmp_path / "out")
        assert load_model(result.folder)
        # with the rights of any new folder
        umask = os.umask(0)
        os.umask(umask)
        assert result.folder.stat().st_mode & 0o777 == 0o777 & ~umask

    def test_a_dry_run_writes_nothing(self, tmp_path):
        (result,) = convert(TINY, tmp_path / "a" / "out", quantize=True, dry_run=True)
        assert result.plan.after == 4196480
        assert not list(tmp_path.iterdir())
