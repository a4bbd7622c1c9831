"""Granite Speech: encoder, projector and Granite decoder as one model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from ...errors import CheckpointError, InputError
from ...layers.cache import CACHE_OPTIONS, KVCache
from ...layers.lora import use_adapter
from ..base import PretrainedModel
from ..causal_lm import PREFILL_STEP_SIZE, CausalLMOutput
from ..config import PretrainedConfig, as_config
from ..decoder import drop_rotary_buffers
from ..granite import GraniteConfig, GraniteForCausalLM
from ..loss import causal_lm_loss
from .encoder import (
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderConfig,
    GraniteSpeechPlusEncoderConfig,
    sanitize_encoder,
)
from .encoder_stream import EncoderStream
from .projector import Blip2QFormerConfig, WindowedProjector


@dataclass(kw_only=True)
class GraniteSpeechConfig(PretrainedConfig):
    """Configuration of a Granite Speech model; `tie_word_embeddings` is None where only the
    checkpoint's tensors can tell."""

    model_type: ClassVar[str] = "granite_speech"
    aliases: ClassVar[dict[str, str]] = {"audio_token_id": "audio_token_index"}
    encoder_class: ClassVar[type] = GraniteSpeechEncoderConfig

    text_config: GraniteConfig | dict | None = None
    encoder_config: GraniteSpeechEncoderConfig | dict | None = None
    projector_config: Blip2QFormerConfig | dict | None = None
    audio_token_index: int = 49155
    initializer_range: float = 0.02
    has_lora_adapter: bool = True
    downsample_rate: int = 5
    window_size: int = 15
    tie_word_embeddings: bool | None = True
    transformers_version: str | None = None

    def __post_init__(self):
        self.text_config = text = as_config(self.text_config, GraniteConfig)
        self.encoder_config = as_config(self.encoder_config, self.encoder_class)
        self.projector_config = as_config(self.projector_config, Blip2QFormerConfig)
        if self.downsample_rate < 1 or self.window_size % self.downsample_rate:
            raise ValueError(
                f"window_size {self.window_size} is not a multiple of downsample_rate "
                f"{self.downsample_rate}"
            )
        if self.tie_word_embeddings is not None:
            text.tie_word_embeddings = self.tie_word_embeddings

    @classmethod
    def from_dict(cls, data):
        """See `PretrainedConfig.from_dict`.

        Whether the head is tied stands at the top, in `text_config`, in both or in neither,
        depending on the version of transformers that saved the file. Only what is said without
        contradiction counts.
        """
        places = [p for p in (data, data.get("text_config")) if isinstance(p, dict)]
        said = {p["tie_word_embeddings"] for p in places if "tie_word_embeddings" in p}
        tied = said.pop() if len(said) == 1 else None
        return super().from_dict({**data, "tie_word_embeddings": tied})

    @property
    def logits_divisor(self) -> float:
        """What the head's products are divided by.

        Granite divides by `logits_scaling`. From transformers 5.10 on, its Granite Speech does not
        (Granite itself still does), so a checkpoint that such a version saved was trained and
        measured without. The likeliest token is the same; probabilities, and with them sampling
        and beam search, are not.
        """
        version = re.match(r"(\d+)\.(\d+)", self.transformers_version or "")
        undivided = version is not None and tuple(map(int, version.groups())) >= (5, 10)
        text: Any = self.text_config
        return 1.0 if undivided else text.logits_scaling


@dataclass(kw_only=True)
class GraniteSpeechPlusConfig(GraniteSpeechConfig):
    """Configuration of the Plus variant, whose encoder exports more than its last layer."""

    model_type: ClassVar[str] = "granite_speech_plus"
    encoder_class: ClassVar[type] = GraniteSpeechPlusEncoderConfig


@dataclass
class GraniteSpeechOutput(CausalLMOutput):
    """`CausalLMOutput` and the projected audio, (recordings, audio tokens, hidden_size)."""

    audio_hidden_states: mx.array | None = None


_RENAMES = (
    (r"^model\.(encoder|projector)\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^language_model\.model\.(model|lm_head)\.", r"language_model.\1."),
    (r"^lm_head\.", "language_model.lm_head."),
)


class GraniteSpeechForConditionalGeneration(PretrainedModel):
    config_class = GraniteSpeechConfig
    adapter_by_default = False
    cache_options = CACHE_OPTIONS
    generation_inputs = (
        *GraniteForCausalLM.generation_inputs,
        "input_features",
        "input_features_mask",
        "feature_lengths",
        "audio_features",
    )

    def __init__(self, config: GraniteSpeechConfig):
        super().__init__()
        text: Any = config.text_config
        encoder: Any = config.encoder_config
        projector: Any = config.projector_config
        expected, found = projector.encoder_hidden_size, encoder.output_size
        if expected != found:
            raise CheckpointError(
                f"the projector's encoder_hidden_size {expected} is not the encoder's output size "
                f"{found}"
            )
        self.config = config
        self.encoder = GraniteSpeechCTCEncoder(encoder)
        self.projector = WindowedProjector(
            projector,
            window_size=config.window_size,
            downsample_rate=config.downsample_rate,
            output_size=text.hidden_size,
        )
        self.language_model = GraniteForCausalLM(text)
        self.language_model.logits_divisor = config.logits_divisor

    def get_audio_features(
        self, input_features: mx.array, feature_lengths: mx.array | None = None
    ) -> mx.array:
        """(recordings, frames, 160) -> (recordings, audio tokens, hidden_size of the decoder)."""
        return self.projector(self.encoder(input_features, feature_lengths).last_hidden_state)

    def audio_stages(self, input_features: mx.array) -> dict[str, mx.array]:
        """What `get_audio_features` computes on its way, with the adapter on, by stage."""
        with use_adapter(True):
            encoded = self.encoder(input_features).last_hidden_state
            return {"encoder": encoded, "projector": self.projector(encoded)}

    def encode_stream(self) -> EncoderStream:
        """The encoder for one recording that comes part by part; the adapter is on in it."""
        return EncoderStream(self.encoder)

    def project(self, hidden_states: mx.array) -> mx.array:
        """What the projector makes of encoder frames, with the adapter on; shapes as there."""
        with use_adapter(True):
            return self.projector(hidden_states)

    def embed_text(self, input_ids: mx.array) -> mx.array:
        """Embeddings of token ids; an audio token, which may be beyond the table, has that of 0."""
        is_audio = input_ids == self.config.audio_token_index
        return self.language_model.model.embed(mx.where(is_audio, 0, input_ids))

    def merge_audio(
        self,
        input_ids: mx.array,
        audio_features: mx.array | None,
        input_features_mask: mx.array | None = None,
    ) -> mx.array:
        """Embeddings of a prompt with the audio written over its audio tokens.

        Args:
            input_ids: (batch, length).
            audio_features: (recordings, audio tokens, hidden_size), in the order in which the
                prompts, one after the other, mention them.
            input_features_mask: (recordings, audio tokens), nonzero where there is audio.

        Raises:
            InputError: there are more or fewer audio tokens than audio features.
        """
        is_audio = input_ids == self.config.audio_token_index
        embeds = self.embed_text(input_ids)
        num_tokens = is_audio.sum().item()
        num_features = 0
        if audio_features is not None:
            audio_features = audio_features.flatten(0, 1)
            num_features = audio_features.shape[0]
            if input_features_mask is not None:
                valid = input_features_mask.flatten().astype(mx.bool_)
                num_features = valid.sum().item()
                index = mx.arange(valid.size)
                first = mx.argsort(mx.where(valid, index, valid.size + index))[:num_features]
                audio_features = audio_features[first]
        if num_tokens != num_features:
            raise InputError(
                f"the prompt has {num_tokens} audio tokens, but the recordings give "
                f"{num_features} audio features"
            )
        if audio_features is None or not num_features:
            return embeds
        source = mx.cumsum(is_audio.flatten().astype(mx.int32)).reshape(is_audio.shape) - 1
        audio = audio_features.astype(embeds.dtype)[mx.maximum(source, 0)]
        return mx.where(is_audio[..., None], audio, embeds)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        *,
        input_features: mx.array | None = None,
        input_features_mask: mx.array | None = None,
        feature_lengths: mx.array | None = None,
        audio_features: mx.array | None = None,
        inputs_embeds: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        labels: mx.array | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        adapter: bool | None = None,
    ) -> GraniteSpeechOutput:
        """Run the model; what is not described here is as in `CausalLM`.

        Args:
            input_ids: (batch, length), with one audio token for each audio feature.
            input_features: (recordings, frames, 160) stacked log-mel frames.
            input_features_mask: (recordings, audio tokens), zero where a shorter recording of the
                batch has no audio features.
            feature_lengths: (recordings,) real frames of each, for a batch of different lengths.
            audio_features: (recordings, audio tokens, hidden_size) what `get_audio_features` gave,
                instead of `input_features`; `input_features_mask` goes with them as well.
            adapter: whether the LoRA adapter is on. By default it is on exactly when this call
                brings audio; say True when continuing a cached prompt that did.
        """
        has_audio = input_features is not None or audio_features is not None
        if has_audio and (inputs_embeds is not None or input_ids is None):
            raise InputError("recordings need input_ids to say where they belong")
        # around the encoder as well: its layers may be adapted too
        with use_adapter(has_audio if adapter is None else adapter):
            if inputs_embeds is None and input_ids is not None:
                audio_features = self._audio(input_features, feature_lengths, audio_features)
                inputs_embeds = self.merge_audio(input_ids, audio_features, input_features_mask)
            output = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                logits_to_keep=logits_to_keep,
                output_hidden_states=output_hidden_states,
            )
        loss = None
        if labels is not None:
            loss = causal_lm_loss(output.logits, labels, attention_mask)
        return GraniteSpeechOutput(
            **{**vars(output), "loss": loss, "audio_hidden_states": audio_features}
        )

    def _audio(self, input_features, feature_lengths, audio_features) -> mx.array | None:
        if input_features is None:
            return audio_features
        if audio_features is not None:
            raise InputError("input_features and audio_features are the same; give one of them")
        return self.get_audio_features(input_features, feature_lengths)

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below it; the audio token may be beyond the table."""
        return max(self.language_model.vocab_size, self.config.audio_token_index + 1)

    @property
    def context_length(self) -> int:
        """Positions that the text decoder was made for."""
        return self.language_model.context_length

    def make_cache(
        self, left_padding: Sequence[int] | None = None, **options: Any
    ) -> list[KVCache]:
        """An empty cache of the text decoder."""
        return self.language_model.make_cache(left_padding, **options)

    def prefill(
        self,
        input_ids: mx.array,
        cache: list[KVCache],
        *,
        input_features: mx.array | None = None,
        input_features_mask: mx.array | None = None,
        feature_lengths: mx.array | None = None,
        audio_features: mx.array | None = None,
        prefill_step_size: int = PREFILL_STEP_SIZE,
        prompt_progress_callback: Callable[[int, int], None] | None = None,
    ):
        """As `CausalLM.prefill`; the adapter stays on for the answer to a prompt with audio."""
        adapter = input_features is not None or audio_features is not None
        with use_adapter(adapter):
            audio = self._audio(input_features, feature_lengths, audio_features)
            embeds = self.merge_audio(input_ids, audio, input_features_mask)
            logits = self.language_model.feed(
                cache, prefill_step_size, prompt_progress_callback, inputs_embeds=embeds
            )

        def step(tokens: mx.array) -> mx.array:
            # an audio token that the model itself came up with stands for no recording
            embeds = self.embed_text(tokens)
            return self(inputs_embeds=embeds, past_key_values=cache, adapter=adapter).logits

        return logits, step

    @staticmethod
    def infer_config_from_weights(
        config: GraniteSpeechConfig, weights: dict[str, mx.array]
    ) -> None:
        """Settle from the (sanitized) tensors what the configuration left open."""
        if config.tie_word_embeddings is None:
            config.tie_word_embeddings = "language_model.lm_head.weight" not in weights
            text: Any = config.text_config
            text.tie_word_embeddings = config.tie_word_embeddings

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
        """The name in each of the three layouts; see `rename`."""
        inner = name.removeprefix("language_model.")
        if inner == name:  # encoder and projector
            return name, f"model.{name}", name
        return (
            name,
            re.sub(r"^model\.", "model.language_model.", inner),
            f"language_model.model.{inner}",
        )

    @staticmethod
    def sanitize(weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """See `rename` and `sanitize_encoder`; drops what is computed or tied."""
        rename = GraniteSpeechForConditionalGeneration.rename
        renamed = drop_rotary_buffers({rename(name): value for name, value in weights.items()})
        if config.tie_word_embeddings:
            head = "language_model.lm_head."
            renamed = {k: v for k, v in renamed.items() if not k.startswith(head)}
        return sanitize_encoder(renamed, "encoder.")


class GraniteSpeechPlusForConditionalGeneration(GraniteSpeechForConditionalGeneration):
    config_class = GraniteSpeechPlusConfig
