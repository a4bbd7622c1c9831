"""Granite Speech: encoder, projector and Granite decoder as one model."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Unpack

import mlx.core as mx
import mlx.nn as nn

from ...checkpoint.folder import BPE_HEAD
from ...errors import CheckpointError, InputError
from ...fields import fitted
from ...generation import GenerationConfig
from ...layers.cache import CACHE_OPTIONS, KVCache, LeftPadding
from ...layers.lora import adapter_in_use, use_adapter
from ...layers.model_output import can_return_tuple
from ...layers.token_ids import as_mlx, check_array, check_token_ids
from ..base import PretrainedModel
from ..causal_lm import CausalLMOutputWithPast, kept_positions
from ..conformer_window import Halos
from ..decoder import DecoderModel, DecoderOptions
from ..granite import GraniteForCausalLM
from ..initialization import init_weights
from ..loss import causal_lm_loss
from .config import GraniteSpeechConfig, GraniteSpeechPlusConfig
from .encoder import (
    BLANK,
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderOutput,
    encoder_to_checkpoint,
    sanitize_encoder,
)
from .encoder_stream import EncoderStream
from .encoder_window import encode_window
from .pooling import POOLED_FRAMES, pool_frames
from .projector import WindowedProjector


@dataclass(eq=False)
class GraniteSpeechCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and the projected audio, (recordings, audio tokens, hidden_size)."""

    audio_hidden_states: mx.array | None = None


@dataclass(eq=False)
class AudioFeatures(GraniteSpeechEncoderOutput):
    """What `get_audio_features` returns: the encoder's output, and in `pooler_output` the projected
    audio, (recordings, audio tokens, hidden_size). In transformers 4.56 that is all there is, so
    this can be used as that array, too."""

    def __mlx_array__(self) -> mx.array | None:
        return self.pooler_output

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.pooler_output, name)


_RENAMES = (
    (r"^model\.(encoder|projector)\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^language_model\.model\.(model|lm_head)\.", r"language_model.\1."),
    (r"^lm_head\.", "language_model.lm_head."),
    # transformers saves an adapted model's layers as peft has them in memory
    (r"\.base_layer\.", "."),
)
AUDIO_INPUTS = ("input_features", "input_features_mask", "feature_lengths", "audio_features")


class GraniteSpeechForConditionalGeneration(PretrainedModel):
    """A speech encoder, a projector, and a text decoder that takes the audio inside its prompt."""

    config_class: ClassVar[type[GraniteSpeechConfig]] = GraniteSpeechConfig
    adapter_by_default = False
    cache_options = CACHE_OPTIONS
    # its adapter is a file of its own, also where transformers wrote it into the weights as well
    computed_tensors = (
        *PretrainedModel.computed_tensors,
        *("num_batches_tracked", "lora_A.weight", "lora_B.weight"),
    )
    separate_files: ClassVar[dict[str, str]] = {BPE_HEAD: "encoder.out_llm."}
    tied_head = "language_model.lm_head."
    tied_embeddings = "language_model.model.embed_tokens."
    generation_inputs = (*GraniteForCausalLM.generation_inputs, *AUDIO_INPUTS)
    #: of the BPE head: frames that it takes together, its blank, and what label stands for token 0
    bpe_frames, bpe_blank, bpe_shift = POOLED_FRAMES, BLANK, 1

    def __init__(self, config: GraniteSpeechConfig):
        super().__init__(config)
        self.encoder = GraniteSpeechCTCEncoder(config.encoder_config)
        windows, text = (config.window_size, config.downsample_rate), config.text_config
        self.projector = WindowedProjector(config.projector_config, *windows, text.hidden_size)
        self.language_model = GraniteForCausalLM(text)
        self.language_model.logits_divisor = config.logits_divisor
        init_weights(self)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: mx.array,
        feature_lengths: mx.array | None = None,
        **options: bool | None,
    ) -> AudioFeatures:
        """The audio as the decoder gets it, in `pooler_output`, with the adapter on unless
        `use_adapter` says that it is off; arguments as in the encoder."""
        with use_adapter(adapter_in_use(default=True)):
            encoded = self.encoder(input_features, feature_lengths, return_dict=True, **options)
            encoded["pooler_output"] = self.projector(encoded.last_hidden_state)
        return AudioFeatures(**encoded)

    def audio_stages(self, input_features: mx.array) -> Iterator[tuple[str, mx.array]]:
        """What `get_audio_features` computes on its way, with the adapter on, stage by stage."""
        with use_adapter(True):
            encoded = self.encoder(input_features, return_dict=True).last_hidden_state
        yield "encoder", encoded
        yield "projector", self.project(encoded)

    def encode_stream(self) -> EncoderStream:
        """The encoder for one recording that comes part by part; the adapter is on in it."""
        return EncoderStream(self.encoder)

    def encode_window(
        self, features: mx.array, halos: Halos = (), places: Sequence[int] = ()
    ) -> tuple[GraniteSpeechEncoderOutput, list[Halos]]:
        """The encoder over a part of audio that is still coming in; see `encoder_window`."""
        return encode_window(self.encoder, features, halos, places)

    @property
    def has_bpe_head(self) -> bool:
        """Whether the encoder has a CTC head of the decoder's tokens, as some checkpoints do."""
        return "out_llm" in self.encoder

    def bpe_logits(self, hidden_states: mx.array, non_blank: mx.array) -> mx.array:
        """What the BPE head says to frames that it pools, with the adapter on.

        Args:
            hidden_states: (batch, frames, output size) of the encoder.
            non_blank: (batch, frames), likewise.

        Returns:
            (batch, frames / 4, labels), a last group of fewer than four frames included.
        """
        frames = hidden_states[..., -self.config.encoder_config.hidden_dim :]
        with use_adapter(True):
            return self.encoder.out_llm(pool_frames(frames, non_blank))

    def project(self, hidden_states: mx.array) -> mx.array:
        """What the projector makes of encoder frames, with the adapter on; shapes as there."""
        with use_adapter(True):
            return self.projector(hidden_states)

    def embed_text(self, input_ids: mx.array) -> mx.array:
        """Embeddings of token ids; an audio token, which may be beyond the table, has that of 0."""
        is_audio = input_ids == self.config.audio_token_index
        return self.language_model.model.embed(mx.where(is_audio, 0, input_ids))

    def get_merged_audio_embeddings(
        self,
        input_ids: mx.array,
        audio_features: mx.array | None,
        input_features_mask: mx.array | None = None,
    ) -> mx.array:
        """Embeddings of a prompt with the audio written over its audio tokens, (batch, length,
        hidden_size). Arguments as in the call; the recordings are in the order in which the
        prompts, one after the other, mention them.

        Raises:
            InputError: there are more or fewer audio tokens than audio features, arguments are of
                other shapes, or the model does not know an id.
        """
        input_ids = self._checked_ids(input_ids)
        is_audio = input_ids == self.config.audio_token_index
        embeds = self.embed_text(input_ids)
        features = embeds[:0, 0]
        if audio_features is not None:
            shape = "recordings", "audio tokens", embeds.shape[-1]
            audio = getattr(audio_features, "pooler_output", audio_features)
            audio = check_array(audio, "audio_features", mx.floating, shape)
            features = audio.flatten(0, 1)
            if input_features_mask is not None:
                shape = audio.shape[:2]
                mask = check_array(input_features_mask, "input_features_mask", mx.generic, shape)
                valid, index = mask.flatten() != 0, mx.arange(mask.size)
                first = mx.argsort(mx.where(valid, index, valid.size + index))
                features = features[first[: valid.sum().item()]]
        num_tokens = is_audio.sum().item()
        if num_tokens != len(features):
            raise InputError(
                f"the prompt has {num_tokens} audio tokens, but the recordings give "
                f"{len(features)} audio features"
            )
        if num_tokens:
            source = mx.cumsum(is_audio.flatten().astype(mx.int32)).reshape(is_audio.shape) - 1
            audio = features.astype(embeds.dtype)[mx.maximum(source, 0)]
            embeds = mx.where(is_audio[..., None], audio, embeds)
        return embeds

    def embed_prompt(
        self,
        input_ids: mx.array,
        input_features: mx.array | None = None,
        input_features_mask: mx.array | None = None,
        feature_lengths: mx.array | None = None,
        audio_features: mx.array | None = None,
    ) -> tuple[mx.array, mx.array | None]:
        """What `get_merged_audio_embeddings` gives, and the audio features. Arguments as in the
        call.

        Raises:
            InputError: see there; or both features are given.
        """
        if input_features is not None and audio_features is not None:
            raise InputError("input_features and audio_features are the same; give one of them")
        if input_features is not None:
            given = input_features, feature_lengths
            audio_features = self.get_audio_features(*given, return_dict=True)
        merged = self.get_merged_audio_embeddings(input_ids, audio_features, input_features_mask)
        return merged, getattr(audio_features, "pooler_output", audio_features)

    @can_return_tuple
    def __call__(
        self,
        input_ids: mx.array | None = None,
        input_features: mx.array | None = None,
        input_features_mask: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | mx.array = 0,
        *,
        feature_lengths: mx.array | None = None,
        audio_features: mx.array | None = None,
        adapter: bool | None = None,
        num_items_in_batch: int | mx.array | None = None,
        **options: Unpack[DecoderOptions],
    ) -> GraniteSpeechCausalLMOutputWithPast:
        """Run the model; what is not described here is as in `CausalLM`.

        Args:
            input_ids: (batch, length), with one audio token for each audio feature.
            input_features: (recordings, frames, 160) stacked log-mel frames.
            input_features_mask: (recordings, audio tokens), zero where a shorter recording of the
                batch has no audio features.
            labels: (batch, length), -100 where there is no loss, as there is none at padding.
            feature_lengths: (recordings,) real frames of each, for a batch of different lengths.
            audio_features: (recordings, audio tokens, hidden_size) what `get_audio_features` gave,
                instead of `input_features`; `input_features_mask` goes with them as well.
            adapter: whether the LoRA adapter is on. By default it is on exactly when this call
                brings audio, or continues a cache of one that did.

        Raises:
            InputError: arguments are missing, contradict each other or have the wrong shape, or the
                model does not know an id.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        has_audio = input_features is not None or audio_features is not None
        if has_audio and input_ids is None:
            raise InputError("recordings need input_ids to say where they belong")
        adapter = fitted("adapter", adapter, bool | None)
        if adapter is None:
            adapter = has_audio or bool(past_key_values and past_key_values[0].adapted)
        # around the encoder as well: its layers may be adapted too
        with use_adapter(adapter):
            if input_ids is not None:
                inputs_embeds, audio_features = self.embed_prompt(
                    input_ids,
                    input_features,
                    input_features_mask,
                    feature_lengths,
                    audio_features,
                )
            outputs = self.language_model.model(
                None,
                attention_mask,
                position_ids,
                past_key_values,
                inputs_embeds,
                use_cache,
                return_dict=True,
                **options,
            )
            states = kept_positions(outputs.last_hidden_state, logits_to_keep)
            logits = self.language_model.logits(states)
        loss = None
        if labels is not None:
            mask = as_mlx(attention_mask)
            if mask is not None:
                mask = mask[:, -logits.shape[1] :] if mask.ndim == 2 else None
            loss = causal_lm_loss(logits, labels, mask, num_items_in_batch)
        if outputs.past_key_values:
            outputs.past_key_values[0].adapted = adapter
        return GraniteSpeechCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_features,
        )

    def _checked_ids(self, input_ids: Any) -> mx.array:
        """Token ids of a caller as an MLX array; see `check_token_ids`."""
        ids = check_array(input_ids, "input_ids", mx.integer, ("batch", "length"))
        is_audio = ids == self.config.audio_token_index
        check_token_ids(mx.where(is_audio, 0, ids), self.language_model.vocab_size)
        return ids

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below it; the audio token may be beyond the table."""
        return max(self.language_model.vocab_size, self.config.audio_token_index + 1)

    def get_decoder(self) -> DecoderModel:
        """See `PretrainedModel.get_decoder`."""
        return self.language_model.model

    @property
    def context_length(self) -> int:
        """Positions that the text decoder was made for."""
        return self.language_model.context_length

    def is_text_token(self, token: int) -> bool:
        """See `PretrainedModel`."""
        is_audio = token == self.config.audio_token_index
        return not is_audio and 0 <= token < self.language_model.vocab_size

    @property
    def logits_temperature(self) -> float:
        """See `PretrainedModel`, and `logits_divisor` of the configuration."""
        return self.config.text_config.logits_scaling / self.config.logits_divisor

    def make_cache(self, left_padding: LeftPadding = None, **options: Any) -> list[KVCache]:
        """An empty cache of the text decoder."""
        return self.language_model.make_cache(left_padding, **options)

    def prepare_prompt(
        self, inputs: dict[str, Any], config: GenerationConfig
    ) -> tuple[mx.array, mx.array | None]:
        """See `PretrainedModel.prepare_prompt`; recordings need a prompt."""
        given = any(inputs.get(name) is not None for name in AUDIO_INPUTS)
        if given and (inputs.get("input_ids") is None or inputs.get("inputs_embeds") is not None):
            raise InputError(
                "recordings need input_ids that say where they belong: processor(text, audio), "
                "with an audio token in the text for each"
            )
        return super().prepare_prompt(inputs, config)

    def prefill(self, input_ids: mx.array, cache: Sequence[KVCache], **inputs: Any) -> mx.array:
        """As `CausalLM.prefill`, with the further arguments of `embed_prompt`; the adapter stays
        on for what follows audio, and for the answer to it."""
        audio = {name: inputs.pop(name, None) for name in AUDIO_INPUTS}
        has_audio = audio["input_features"] is not None or audio["audio_features"] is not None
        cache[0].adapted = adapter = has_audio or cache[0].adapted
        with use_adapter(adapter):
            if inputs.get("inputs_embeds") is None:
                inputs["inputs_embeds"], _ = self.embed_prompt(input_ids, **audio)
            return self.language_model.prefill(input_ids, cache, **inputs)

    def step(self, tokens: mx.array, cache: Sequence[KVCache]) -> mx.array:
        """As `CausalLM.step`; an audio token among these stands for no recording."""
        decoder = self.language_model
        with use_adapter(cache[0].adapted):
            return decoder.logits(decoder.model.run_layers(self.embed_text(tokens), cache))

    @classmethod
    def infer_config_from_weights(cls, config, weights: dict[str, mx.array]) -> None:
        """See `PretrainedModel.infer_config_from_weights`."""
        expected = config.projector_config.encoder_hidden_size
        if expected != (found := config.encoder_config.output_size):
            sizes = f"encoder_hidden_size {expected} is not the encoder's output size {found}"
            raise CheckpointError(f"config.json: the projector's {sizes}")
        super().infer_config_from_weights(config, weights)
        if config.tie_word_embeddings is None:
            config.tie_word_embeddings = "language_model.lm_head.weight" not in weights
        config.text_config.tie_word_embeddings = config.tie_word_embeddings

    def add_stored_layers(self, weights: dict[str, mx.array]) -> None:
        """See `PretrainedModel.add_stored_layers`: the BPE head, of at most a label for each token
        and the blank."""
        stored = weights.get("encoder.out_llm.weight")
        if stored is not None:
            labels = min(max(1, prod(stored.shape[:1])), self.language_model.vocab_size + 1)
            self.encoder.out_llm = nn.Linear(self.config.encoder_config.hidden_dim, labels)

    @staticmethod
    def rename(name: str) -> str:
        """A name of any of the three layouts: `language_model.model.*` (what the released
        repositories hold and this model uses), `model.language_model.*` (transformers >= 5 in
        memory) or `language_model.model.model.*` (the Plus update of October 2026)."""
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        return name

    @staticmethod
    def checkpoint_names(name: str) -> tuple[str, ...]:
        """The name in each of the three layouts, that in memory as the last; see `rename`."""
        inner = name.removeprefix("language_model.")
        if inner == name:  # encoder and projector
            return name, name, f"model.{name}"
        in_memory = re.sub(r"^model\.", "model.language_model.", inner)
        return name, f"language_model.model.{inner}", in_memory

    @classmethod
    def sanitize(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """See `PretrainedModel.sanitize` and `sanitize_encoder`."""
        return sanitize_encoder(super().sanitize(weights, config), "encoder.")

    @classmethod
    def to_checkpoint(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """See `PretrainedModel.to_checkpoint` and `encoder_to_checkpoint`."""
        return encoder_to_checkpoint(weights, "encoder.")


class GraniteSpeechPlusForConditionalGeneration(GraniteSpeechForConditionalGeneration):
    """The same, with states of further layers of the encoder for the projector."""

    config_class = GraniteSpeechPlusConfig
