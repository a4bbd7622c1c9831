"""What of a model is trained, and what it makes of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..checkpoint.adapters import has_adapter
from ..checkpoint.folder import ADAPTER_CONFIG
from ..errors import InputError, UnsupportedOptionError
from ..layers.lora import LoRALinear, SavedModule, module_at, replace_module
from ..models.conformer import BLANK
from ..models.loss import IGNORED, ctc_losses, unchecked_cross_entropy
from .batches import Batch
from .options import FineTuneOptions
from .ranks import Ranks

TRAINABLE = ("granite_speech", "granite_speech_plus")
#: text decoders, and whether mlx-lm has them
_TEXT_MODELS = {"granite": True, "llama": True, "jais2": False}
_DECODER = "language_model.model"
_CTC_HEAD = "encoder.out"
_PLACES = 16  #: their number is a multiple of it


def check_trainable(model_type: str | None) -> None:
    """Refuse models that are not fine-tuned here.

    Args:
        model_type: as in config.json.

    Raises:
        UnsupportedOptionError: it is such a one; says what trains it, or what can be trained.
    """
    if model_type in TRAINABLE:
        return
    if model_type not in _TEXT_MODELS:
        remedy = f"models of type {' and '.join(TRAINABLE)} can"
    elif _TEXT_MODELS[model_type]:
        remedy = "it is a text model: mlx_lm.lora --train trains it, from the same folder"
    else:
        remedy = "nor by mlx_lm.lora, which has no such model: peft trains it, with transformers"
    raise UnsupportedOptionError(f"a {model_type} model cannot be fine-tuned here; {remedy}")


@dataclass(frozen=True)
class Trained:
    """Paths of what is trained in a model.

    whole: modules that are trained as they are.
    terms: linear layers that have a low-rank term over them.
    """

    whole: tuple[str, ...]
    terms: tuple[str, ...] = ()


class Trainable(nn.Module):
    """A model prepared for training, all of it frozen but what the options say.

    What is trained is kept in float32, since small steps of training are lost in half precision;
    quantized modules that are trained as a whole are dequantized. An adapter that is part of the
    model's checkpoint is on and frozen: low-rank terms are stacked over it, and decoder layers are
    trained beneath it.

    Frozen modules stay in evaluation mode, so dropout is only where something is trained: in the
    projector and whole decoder layers as their configurations say, as in transformers, and before
    low-rank terms as `lora_dropout` does.

    Args:
        model: is changed.

    Raises:
        InputError: the options ask for layers that the model has not.
        UnsupportedOptionError: models of this family are not fine-tuned, or the model was loaded
            with an adapter, without which the new one would do something else.
    """

    def __init__(self, model: Any, options: FineTuneOptions):
        super().__init__()
        check_trainable(model.config.model_type)
        if _has_foreign_adapter(model):
            what = "the model has an adapter over it that it was not released with"
            raise UnsupportedOptionError(f"{what}; load it without, or convert it with that fused")
        self.model = model
        self.options = options
        self.freeze()
        for module in model.modules():
            if isinstance(module, LoRALinear):
                # gradient checkpointing calls layers again after the model's own call is over
                module.on_by_default = True
        whole = ["projector"]
        terms: tuple[str, ...] = ()
        count = self._count_layers()
        if options.fine_tune_type == "lora":
            terms = self._add_terms(count)
        elif options.fine_tune_type == "full":
            if options.grad_checkpoint and model.config.text_config.attention_dropout:
                message = "{option} computes layers twice, with another dropout: leave it out"
                raise InputError.about(message, option="grad_checkpoint")
            number = len(self.layers)
            whole += [f"{_DECODER}.layers.{index}" for index in range(number - count, number)]
        if options.train_ctc_head:
            whole.append(_CTC_HEAD)
        self.trained = Trained(tuple(whole), terms)
        for path in whole:
            self._train_whole(path)
        self.train()

    @property
    def layers(self) -> list[nn.Module]:
        """Those of the decoder; their states are what gradient checkpointing computes twice."""
        return self.model.language_model.model.layers

    @property
    def runs_encoder(self) -> bool:
        """Whether batches bring features, since what is trained is inside the encoder."""
        return _CTC_HEAD in self.trained.whole

    def train(self, mode: bool = True) -> "Trainable":
        """As in MLX, but what is frozen stays in evaluation mode."""
        super().train(False)
        for path in self.trained.whole:
            module_at(self.model, path).train(mode)
        for path in self.trained.terms:
            module_at(self.model, path).dropout.train(mode)
        return self

    def __call__(self, batch: Batch, places: mx.array) -> tuple[mx.array, mx.array | None]:
        """Logits of the decoder, (rows, places, vocab_size), in float32; and where it is trained
        those of the CTC head, (rows, frames, labels).

        They are divided by the decoder's `logits_scaling`, with which the released models were
        trained, whatever their own call divides them by; transformers' loss leaves that out.

        Nothing is checked, so nothing is waited for and it can be compiled. Rows are padded on the
        right, where causal attention does not see it.

        Args:
            places: (rows, places) positions of which logits are wanted.
        """
        states, of_frames = self.encoded(batch)
        audio = self.model.projector(states)
        embeds = self.model.embed_text(batch.input_ids)
        positions = batch.audio_positions[..., None]
        spoken = mx.take_along_axis(audio, mx.maximum(positions, 0), axis=1)
        embeds = mx.where(positions >= 0, spoken.astype(embeds.dtype), embeds)
        decoder = self.model.language_model
        hidden = decoder.model.run_layers(embeds)
        kept = mx.take_along_axis(hidden, places[..., None], axis=1)
        logits = decoder.logits(kept).astype(mx.float32)
        return logits / self.model.logits_temperature, of_frames

    def encoded(self, batch: Batch) -> tuple[mx.array, mx.array | None]:
        """States of the encoder, and where it is run in each step logits of its CTC head."""
        if not self.runs_encoder:
            return batch.audio, None
        output = self.model.encoder.encode(batch.audio, batch.lengths)
        return output.last_hidden_state, output.ctc_logits

    def weights(self) -> dict[str, mx.array]:
        """What is trained, by its name in the model."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    def low_rank_terms(self) -> dict[str, tuple[mx.array, mx.array]]:
        """What is trained over layers, by their paths: (inputs, rank) and (rank, outputs)."""
        layers = {path: module_at(self.model, path) for path in self.trained.terms}
        return {path: (layer.lora_a, layer.lora_b) for path, layer in layers.items()}

    def _count_layers(self) -> int:
        """How many of the decoder's last layers the options mean."""
        kind, asked = self.options.fine_tune_type, self.options.num_layers
        if kind == "projector":
            if asked:
                rule = "0 where the projector alone is trained"
                raise InputError.must_be("num_layers", asked, rule)
            return 0
        number = len(self.layers)
        if asked == 0 or (asked or 0) > number:
            raise InputError.must_be("num_layers", asked, f"within 1 and {number}, or -1 for all")
        count = self.options.layers
        return number if count < 0 else min(count, number)

    def _add_terms(self, count: int) -> tuple[str, ...]:
        from mlx_lm.tuner.utils import linear_to_lora_layers

        start, options = len(self.layers) - count, self.options
        kinds = nn.Linear | nn.QuantizedLinear | LoRALinear
        found = {
            (index, name)
            for index, layer in enumerate(self.layers[start:], start)
            for name, module in layer.named_modules()
            # what is inside an adapted layer is no layer of its own
            if isinstance(module, kinds) and not name.endswith(".base")
        }
        for key in options.lora_keys or [""]:
            if not any(_ends(name, key) for _, name in found):
                rule = f"ends of {', '.join(sorted({name for _, name in found}))}"
                raise InputError.must_be("lora_keys", key, rule)
        chosen = {(i, name) for i, name in found if any(_ends(name, k) for k in options.lora_keys)}
        decoder = self.model.language_model.model
        linear_to_lora_layers(
            decoder,
            count,
            {
                "keys": {name for _, name in chosen},
                "rank": options.lora_rank,
                "scale": options.lora_scale,
                "dropout": options.lora_dropout,
            },
        )
        return tuple(f"{_DECODER}.layers.{index}.{name}" for index, name in sorted(chosen))

    def _train_whole(self, path: str) -> None:
        from mlx_lm.utils import dequantize_model

        holder = nn.Module()
        holder.module = module_at(self.model, path)
        dequantize_model(holder)
        replace_module(self.model, path, holder.module)
        holder.module.unfreeze()
        for _, module in holder.module.named_modules():
            if isinstance(module, LoRALinear):
                module.freeze(recurse=False)
        in_float32 = tree_map(lambda x: x.astype(mx.float32), holder.module.trainable_parameters())
        holder.module.update(in_float32)


def loss_inputs(batch: Batch, ranks: Ranks | None = None) -> tuple[mx.array, ...]:
    """A batch as `loss` takes it: with the positions of which logits are needed, and its weights.

    Logits of a whole vocabulary are the largest arrays of a step, and most positions are audio.

    The weights, (3,), are factors on the losses of labels and of letters, which are means over what
    this rank has of a batch, and how many labels all of it has for each rank. So means over ranks
    are means over all of the batch, as of one process, however unequal the shares are.

    Args:
        ranks: that have a share of the batch each; all have to call it.
    """
    ranks = Ranks(None) if ranks is None else ranks
    counts = np.array(batch.labels)[:, 1:] != IGNORED
    ours = int(counts.sum()), int(counts.any(axis=1).sum())
    all_labels, all_rows = (max(total, 1) / ranks.size for total in ranks.totals(*ours))
    weights = ours[0] / all_labels, ours[1] / all_rows, all_labels
    number = int(counts.sum(axis=1).max(initial=1))
    # those that count come first; shapes differ little, since each is compiled for itself
    number = min(-(-number // _PLACES) * _PLACES, counts.shape[1])
    places = np.argsort(~counts, axis=1, kind="stable")[:, :number]
    return *batch, mx.array(places.astype(np.int32)), mx.array(weights, mx.float32)


def loss(trainable: Trainable, *inputs: mx.array) -> tuple[mx.array, mx.array]:
    """What mlx-lm's trainer asks for: the mean cross-entropy of the labels that count, each from
    the logits of the position before it, and where the CTC head is trained its loss added, a mean
    over recordings (see `ctc_loss`); and how many labels count.

    A recording too short for its letters has no loss of the CTC head. Where several ranks have a
    share of the batch, it is the mean over theirs that is this.

    Args:
        inputs: see `loss_inputs`.
    """
    *arrays, places, weights = inputs
    batch = Batch(*arrays)
    logits, of_frames = trainable(batch, places)
    labels = mx.take_along_axis(batch.labels, places + 1, axis=1)
    number = (labels != IGNORED).sum()
    total = unchecked_cross_entropy(logits, labels, mx.maximum(number, 1)) * weights[0]
    if of_frames is not None:
        given = of_frames, batch.letters, batch.lengths
        losses, letters = ctc_losses(*given, blank=BLANK, zero_infinity=True)
        total = total + (losses / mx.maximum(letters, 1)).mean() * weights[1]
    return total, number


@contextmanager
def restored_layers(trainable: Trainable) -> Iterator[None]:
    """Undoes at the end what gradient checkpointing does to the class of the decoder's layers."""
    kind = type(trainable.layers[0])
    call = kind.__call__
    try:
        yield
    finally:
        kind.__call__ = call  # type: ignore[method-assign]


def _has_foreign_adapter(model: Any) -> bool:
    """Whether there are terms beside those of the checkpoint's own adapter, or whole modules."""
    if any(isinstance(module, SavedModule) for module in model.modules()):
        return True
    own = model.folder is not None and (model.folder / ADAPTER_CONFIG).exists()
    return has_adapter(model) and not (own and model.adapter_config is not None)


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
