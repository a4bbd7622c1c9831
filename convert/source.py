"""The checkpoint that is converted: its model, of which nothing is read yet, and its files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_speech.checkpoint.adapters import fuse_adapters, has_adapter, remove_adapters
from mlx_speech.checkpoint.card import name_of
from mlx_speech.checkpoint.folder import SMALL_FILES, is_apple_double, read_json, weight_files
from mlx_speech.checkpoint.hub import resolve_checkpoint, weight_headers
from mlx_speech.checkpoint.pytorch import read_pytorch_bin
from mlx_speech.checkpoint.quantization import dequantize
from mlx_speech.checkpoint.shards import save_sparse_placeholder, save_tensors
from mlx_speech.checkpoint.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    attach_adapter,
    cast,
    checkpoint_dtype,
    lazy_model,
    load_adapter,
)
from mlx_speech.errors import CheckpointError, InputError, MlxSpeechError
from mlx_speech.files import hidden_folder
from mlx_speech.loading import model_class
from mlx_speech.models.base import PretrainedModel

#: files that stay beside the weights, as far as there are any
_CARRIED = (*SMALL_FILES, "LICENSE*", "NOTICE*")
_DTYPES = ("bfloat16", "float16", "float32")


@dataclass
class Source:
    """A checkpoint to be converted.

    folder: where it is.
    name: of the repository, or else of the folder.
    config: its config.json.
    headers: of weights that are not in the folder, see `weight_headers`.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    headers: dict[str, dict]

    @classmethod
    def find(
        cls, path_or_repo: str | os.PathLike, revision: str | None, *, values: bool, progress: bool
    ) -> Self:
        """Find it, or fetch it from the Hub; errors are those of `load`.

        Args:
            values: of the weights, which a plan does not need.
        """
        also = (*_CARRIED, "README.md") if values else ()
        folder = resolve_checkpoint(
            path_or_repo, revision=revision, weights=values, also=also, progress=progress
        )
        headers = {} if values else weight_headers(path_or_repo, folder, progress)
        return cls(folder, name_of(folder), read_json(folder), headers)

    @contextmanager
    def as_safetensors(self, beside: Path | None) -> Iterator[Path]:
        """The folder in a form of which single tensors can be read, a temporary one `beside` a path
        if need be: PyTorch's files are rewritten as safetensors, one after the other, and for
        headers there are files with holes instead of values."""
        files = weight_files(self.folder, {*os.listdir(self.folder), *self.headers})
        rewritten = [file for file in files if file.endswith(".bin")]
        if not rewritten and not self.headers:
            yield self.folder
            return
        made = hidden_folder(beside) if beside else tempfile.TemporaryDirectory()
        with made as place:  # type: ignore[attr-defined]
            stage = Path(place)
            for path in self.folder.iterdir():
                if path.is_file() and not fnmatchcase(path.name, "*.bin*"):
                    (stage / path.name).symlink_to(path.resolve())
            for file, header in self.headers.items():
                save_sparse_placeholder(stage / file, header)
            for file in rewritten:
                arrays = read_pytorch_bin(self.folder / file)
                save_tensors(stage / f"model-{Path(file).stem}.safetensors", arrays)
            try:
                yield stage
            except MlxSpeechError as error:  # the folder that it names is gone when that is read
                raise error.renamed(stage, self.folder) from error

    def copy_carried(self, to: Path, adapter: bool) -> None:
        """Copy what the result has as it is: files of tokenizers, processors, templates,
        generation, the licence, and the adapter, if it is kept."""
        changed = {"config.json"} if adapter else {"config.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS}
        for file in {f for p in (*_CARRIED, ADAPTER_WEIGHTS) for f in self.folder.glob(p)}:
            left = file.name.endswith(".index.json") or is_apple_double(file.name)
            if file.is_file() and not left and file.name not in changed:
                copy = to / file.relative_to(self.folder)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


@dataclass
class OpenModel:
    """A source's model, ready to be written module by module; tensors are read when evaluated.

    dtype: name of the type that is not quantized.
    stored: bytes of each module's tensors in the source.
    fused_adapter: of the adapter that is in the weights now, see `Conversion`.
    changed_adapter: tensors of the adapter that stays beside the weights, where these are not the
        source's.
    """

    model: PretrainedModel
    dtype: str
    stored: dict[str, int]
    fused_adapter: dict[str, Any] | None
    changed_adapter: dict[str, mx.array] | None = None


def open_model(
    folder: Path,
    config: dict[str, Any],
    quantize: bool,
    dequantized: bool,
    dtype: str | None,
    fuse_adapter: bool,
    further: Path | None,
) -> OpenModel:
    """A folder's model with what comes before quantizing done to it, as far as asked.

    Args:
        further: an adapter to be fused as well, over that of the folder.

    Raises:
        CheckpointError: it is no whole model, or it is quantized and asked for what cannot be done
            to quantized weights.
        InputError: it is asked for what it does not need.
    """
    if dtype not in (None, *_DTYPES):
        raise InputError.must_be("dtype", dtype, f"one of {', '.join(_DTYPES)}")
    model: PretrainedModel = lazy_model(folder, config, model_class(config))
    stored: dict[str, int] = {}
    for name, value in tree_flatten(model.parameters()):
        path = name.rpartition(".")[0]
        stored[path] = stored.get(path, 0) + value.nbytes
    _check_quantized(model, folder, quantize, dequantized, fuse_adapter)
    weights = dict(tree_flatten(model.parameters()))
    chosen = getattr(mx, dtype) if dtype else checkpoint_dtype(config, weights)
    del weights
    cast(model, chosen)
    if dequantized:
        dequantize(model, chosen)
    attach_adapter(model, folder, mx.float32)
    if further is not None:
        load_adapter(model, further, mx.float32)
    kept = None
    if not fuse_adapter:
        remove_adapters(model)
    elif has_adapter(model):
        fuse_adapters(model)
        cast(model, chosen)
        kept = _fused(folder, further)
    else:
        text = "{folder}: there is no adapter to fuse; leave out {fuse_adapter}"
        raise InputError.about(text, folder=folder)
    return OpenModel(model, str(chosen).rpartition(".")[2], stored, kept)


def _check_quantized(
    model: nn.Module, folder: Path, quantize: bool, dequantized: bool, fuse_adapter: bool
) -> None:
    found = [m.bits for m in model.modules() if hasattr(m, "bits") and hasattr(m, "group_size")]
    if found and not dequantized:
        bits = max(set(found), key=found.count)
        if quantize:
            raise CheckpointError.about(
                "{folder}: already quantized, to {bits} bits for the most part; convert what it "
                "was made from, or give {dequantize} as well, to do it anew with the loss of both",
                folder=folder,
                bits=bits,
            )
        if fuse_adapter:
            raise CheckpointError.about(
                "{folder}: quantized, and an adapter vanishes in quantized weights; fuse it into "
                "what this was made from, or give {dequantize} as well",
                folder=folder,
            )
    if dequantized and not found:
        text = "{folder}: not quantized; leave out {dequantize}"
        raise CheckpointError.about(text, folder=folder)


def _fused(folder: Path, further: Path | None) -> dict[str, Any]:
    """What config.json says of adapters that are in the weights, see `Conversion`."""
    fields = ("r", "lora_alpha", "target_modules", "modules_to_save")
    told: dict[str, Any] = {}
    for place in filter(None, (folder, further)):
        stored = read_json(place, ADAPTER_CONFIG, required=False)
        under = {"over": told} if told else {}
        about = {name: stored[name] for name in fields if stored.get(name) is not None}
        told = about | under | ({"name": name_of(place)} if place == further else {})
    return told
