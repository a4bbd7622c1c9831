"""The decoder of a speech model as mlx-lm's layer-wise quantizers take one."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.checkpoint.quantization import Quantization
from mlx_speech.models.decoder import DecoderLayer

from .calibration import Utterance

DECODER = "language_model"  #: its name in the model
_LAYERS = f"{DECODER}.model.layers."
_PARTS = ("self_attn", "mlp")  #: of a layer


class Decoder:
    """A Granite decoder in a speech model, whose layers are mlx-lm's around the same modules, which
    have the same names. Until `restore` the model can only embed prompts.

    Args:
        model: changed in place.
        utterances: what goes through its decoder, with `audio_features`.
        quantization: how its modules are quantized.
    """

    def __init__(self, model: Any, utterances: Sequence[Utterance], quantization: Quantization):
        self._model, self._utterances, self._quantization = model, utterances, quantization
        self.settings = linear_settings(model, quantization)
        self.blocks = _mlx_lm_blocks(model.language_model)
        model.language_model.model.layers = self.blocks

    def block_settings(self) -> list[dict[str, dict[str, Any]]]:
        """Of `settings` those of each block that are quantized, by the names in it."""
        found: list[dict[str, dict[str, Any]]] = [{} for _ in self.blocks]
        for path, settings in self.settings.items():
            number, _, name = path.removeprefix(_LAYERS).partition(".")
            if settings:
                found[int(number)][name] = settings
        return found

    def restore(self) -> None:
        """Give the model its own layers again, with what is in these now."""
        decoder = self._model.language_model
        decoder.model.layers = [DecoderLayer(decoder.config).eval() for _ in self.blocks]
        for block, layer in zip(self.blocks, decoder.model.layers, strict=True):
            _share(block, layer)

    def inputs(self) -> list[mx.array]:
        """What the first block gets of each utterance, (1, length, hidden_size)."""
        scale = self._model.language_model.model.embedding_scale
        return [scale * utterance.embeddings(self._model) for utterance in self._utterances]

    def quantize_ends(self) -> None:
        """Round the embeddings, and the head where it is not these, to nearest."""
        decoder = self._model.language_model
        for part, name in ((decoder.model, "embed_tokens"), (decoder, "lm_head")):
            if name in part:
                prefix = f"{DECODER}.model." if part is decoder.model else f"{DECODER}."
                settings = self._quantization(prefix + name, part[name])
                if isinstance(settings, dict):
                    part[name] = part[name].to_quantized(**settings)


def linear_settings(model: nn.Module, quantization: Quantization) -> dict[str, Any]:
    """How the linear layers in a decoder's blocks are to be quantized, or False, by their names."""
    return {
        path: quantization(path, module)
        for path, module in model.named_modules()
        if path.startswith(_LAYERS) and isinstance(module, nn.Linear)
    }


def _mlx_lm_blocks(decoder: Any) -> list[nn.Module]:
    """A decoder's layers as mlx-lm calls them, `layer(x, mask=mask)`."""
    from mlx_lm.models.granite import ModelArgs, TransformerBlock

    config = decoder.config
    arguments = ModelArgs.from_dict({**vars(config), "model_type": config.model_type})
    blocks = [TransformerBlock(arguments) for _ in decoder.model.layers]
    for block, layer in zip(blocks, decoder.model.layers, strict=True):
        _share(layer, block)
    return blocks


def _share(layer: nn.Module, other: nn.Module) -> None:
    """Put the modules of a layer into another one that calls them the same."""
    for name, module in other.children().items():
        if name in _PARTS:
            for inner in module.children().keys() & layer[name].keys():
                module[inner] = layer[name][inner]
        else:
            other[name] = layer[name]
