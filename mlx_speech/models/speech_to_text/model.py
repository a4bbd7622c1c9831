"""Speech2Text (fairseq S2T, https://arxiv.org/abs/2010.05171): recognition and translation by a
Transformer encoder-decoder (https://arxiv.org/abs/1706.03762) over filter banks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...generation import GenerationConfig, generate
from ...generation.search import Step
from ...layers.cache import CrossAttentionCache, KVCache
from ..base import PretrainedModel
from ..loss import IGNORED, cross_entropy
from .decoder import Speech2TextDecoder
from .encoder import EncoderOutput, Speech2TextEncoder, real_frames
from .layers import Speech2TextConfig


@dataclass(kw_only=True)
class Seq2SeqOutput:
    """What both models return beside their result.

    past_key_values: the cache that was passed in, now longer.
    decoder_hidden_states: on request, as the encoder's, (rows, length, d_model).
    decoder_attentions: on request, each layer's weights, (rows, heads, length, cached length).
    cross_attentions: on request, each layer's weights, (rows, heads, length, frames).
    encoder_last_hidden_state, encoder_hidden_states, encoder_attentions: see `EncoderOutput`; None
        where the cache held the recording.
    """

    past_key_values: Sequence[Any] | None = None
    decoder_hidden_states: tuple[mx.array, ...] | None = None
    decoder_attentions: tuple[mx.array, ...] | None = None
    cross_attentions: tuple[mx.array, ...] | None = None
    encoder_last_hidden_state: mx.array | None = None
    encoder_hidden_states: tuple[mx.array, ...] | None = None
    encoder_attentions: tuple[mx.array, ...] | None = None


@dataclass(kw_only=True)
class Seq2SeqModelOutput(Seq2SeqOutput):
    """`Seq2SeqOutput` and the decoder's last hidden state, (rows, length, d_model)."""

    last_hidden_state: mx.array


@dataclass(kw_only=True)
class Seq2SeqLMOutput(Seq2SeqOutput):
    """`Seq2SeqOutput`, logits (rows, length, vocab_size) and, where labels were given, the loss."""

    logits: mx.array
    loss: mx.array | None = None


class Speech2TextModel(nn.Module):
    """Encoder and decoder, without a head."""

    def __init__(self, config: Speech2TextConfig):
        super().__init__()
        self.config = config
        self.encoder = Speech2TextEncoder(config)
        self.decoder = Speech2TextDecoder(config)

    @classmethod
    def from_pretrained(cls, path_or_repo, **options) -> Self:
        """The same part of a `Speech2TextForConditionalGeneration`; see there."""
        return Speech2TextForConditionalGeneration.from_pretrained(path_or_repo, **options).model

    def __call__(
        self,
        input_features: mx.array | None = None,
        attention_mask: mx.array | None = None,
        decoder_input_ids: mx.array | None = None,
        decoder_attention_mask: mx.array | None = None,
        encoder_outputs: EncoderOutput | Sequence[mx.array] | None = None,
        past_key_values: Sequence[Any] | None = None,
        decoder_inputs_embeds: mx.array | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Seq2SeqModelOutput:
        """Run the model.

        Args:
            input_features: (recordings, frames, features).
            attention_mask: (recordings, frames), ones and then zeros at the padding.
            decoder_input_ids: (recordings, length) token ids.
            decoder_attention_mask: (recordings, cached length + length), zero at padding.
            encoder_outputs: what the encoder returned, instead of `input_features`; the
                `attention_mask` remains that of the features.
            past_key_values: a cache from `make_cache`, extended in place. From its second use on
                it holds the recordings, and only what the decoder is fed has to be given.
            decoder_inputs_embeds: (recordings, length, d_model) instead of `decoder_input_ids`,
                after the multiplication that `scale_embedding` asks for.
            output_hidden_states, output_attentions: also return these of every layer. Weights are
                not to be had from fused attention, so asking for them is slower.

        Raises:
            InputError: arguments are missing, contradict each other or have the wrong shape.
        """
        unused: Sequence[Any] = [*[None] * len(self.decoder.layers), CrossAttentionCache()]
        *caches, cross_kv = unused if past_key_values is None else past_key_values
        encoded = None if encoder_outputs is None else EncoderOutput.of(encoder_outputs)
        if input_features is not None:
            if encoded is not None or cross_kv.layers:
                raise InputError(
                    "give a recording once: no input_features beside encoder_outputs or a cache "
                    "that already holds one"
                )
            encoded = self.encoder(
                input_features,
                attention_mask,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )
        if not cross_kv.layers:
            if encoded is None:
                raise InputError("give input_features or encoder_outputs")
            self._fill(cross_kv, encoded.last_hidden_state, attention_mask)
        weights: list[mx.array] | None = [] if output_attentions else None
        encoder_fields = {} if encoded is None else vars(encoded)
        fed = decoder_input_ids, decoder_inputs_embeds, decoder_attention_mask
        states = self.decoder(*fed, cross_kv, caches, weights)
        return Seq2SeqModelOutput(
            last_hidden_state=states[-1],
            past_key_values=past_key_values,
            decoder_hidden_states=states if output_hidden_states else None,
            decoder_attentions=None if weights is None else tuple(weights[::2]),
            cross_attentions=None if weights is None else tuple(weights[1::2]),
            **{f"encoder_{name}": value for name, value in encoder_fields.items()},
        )

    def _fill(self, cross_kv: CrossAttentionCache, frames: mx.array, mask: mx.array | None) -> None:
        """Compute every layer's keys and values of the encoder's output; `mask` is as it was."""
        if mask is not None and self.encoder.conv.subsampled(mask).shape != frames.shape[:2]:
            raise InputError(
                f"attention_mask is {mask.shape}, which does not belong to encoder outputs of "
                f"{frames.shape}"
            )
        keys_values = [layer.encoder_attn.keys_values(frames) for layer in self.decoder.layers]
        cross_kv.fill(keys_values, self.encoder.frame_mask(real_frames(mask)))

    def make_cache(self) -> list[KVCache | CrossAttentionCache]:
        """An empty cache: one entry for each layer's own positions, and one for the recordings."""
        return [*(KVCache() for _ in self.decoder.layers), CrossAttentionCache()]


class Speech2TextForConditionalGeneration(PretrainedModel):
    """Speech2Text with a language-modelling head, tied to the embeddings or its own."""

    config_class = Speech2TextConfig
    generation_inputs = ("input_features", "attention_mask", "encoder_outputs", "decoder_input_ids")
    computed_tensors = (*PretrainedModel.computed_tensors, ".embed_positions.weights")
    tied_embeddings = "model.decoder.embed_tokens."

    def __init__(self, config: Speech2TextConfig):
        super().__init__()
        self.config = config
        self.model = Speech2TextModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def __call__(
        self,
        input_features: mx.array | None = None,
        attention_mask: mx.array | None = None,
        decoder_input_ids: mx.array | None = None,
        decoder_attention_mask: mx.array | None = None,
        encoder_outputs: EncoderOutput | Sequence[mx.array] | None = None,
        past_key_values: Sequence[Any] | None = None,
        decoder_inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Seq2SeqLMOutput:
        """Run the model; what is not described here is as in `Speech2TextModel`.

        Args:
            labels: (recordings, length) token ids, -100 where there is no loss. Where no input of
                the decoder is given, it is these, one place later, after `decoder_start_token_id`.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            start = mx.full((len(labels), 1), self.config.decoder_start_token_id, labels.dtype)
            shifted = mx.concatenate([start, labels[:, :-1]], axis=1)
            decoder_input_ids = mx.where(shifted == IGNORED, self.config.pad_token_id, shifted)
        inputs = input_features, attention_mask, decoder_input_ids, decoder_attention_mask
        others = encoder_outputs, past_key_values, decoder_inputs_embeds
        output = self.model(
            *inputs,
            *others,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        beside = dict(vars(output))
        logits = self.logits(beside.pop("last_hidden_state"))
        loss = None if labels is None else cross_entropy(logits, labels)
        return Seq2SeqLMOutput(logits=logits, loss=loss, **beside)

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(…, d_model) -> (…, vocab_size)."""
        if self.config.tie_word_embeddings:
            return self.model.decoder.embed_tokens.as_linear(hidden_states)
        return self.lm_head(hidden_states)

    def audio_stages(self, input_features: mx.array) -> dict[str, mx.array]:
        """What becomes of an unpadded recording on its way to the decoder, by stage."""
        return {"encoder": self.model.encoder(input_features).last_hidden_state}

    @property
    def context_length(self) -> int:
        """Positions that the decoder was made for."""
        return self.config.max_target_positions

    def make_cache(self, left_padding: None = None) -> list[KVCache | CrossAttentionCache]:
        """See `Speech2TextModel.make_cache`; what an answer starts from is never padded."""
        return self.model.make_cache()

    def generate(  # type: ignore[override]  # what is continued is another input
        self, input_features: mx.array | None = None, **kwargs: Any
    ) -> mx.array:
        """Token ids of what was said, from `decoder_start_token_id` on; see
        `mlx_speech.generation.generate`.

        Args:
            input_features: (recordings, frames, features), or give `encoder_outputs`.
            kwargs: `attention_mask` of the features; `decoder_input_ids` to begin with others than
                the starting token; options of generation.
        """
        return generate(self, input_features=input_features, **kwargs)

    def prepare_prompt(
        self, inputs: dict[str, Any], config: GenerationConfig
    ) -> tuple[mx.array, None]:
        """The tokens that an answer starts from; see `PretrainedModel.prepare_prompt`."""
        source, encoded = inputs.get("input_features"), inputs.get("encoder_outputs")
        if source is None and encoded is not None:
            source = EncoderOutput.of(encoded).last_hidden_state
        if source is None:
            raise InputError("generate needs input_features or encoder_outputs")
        first = config.decoder_start_token_id
        if first is None:
            first = self.config.decoder_start_token_id
        start = mx.full((len(source), 1), first, mx.int32)
        prompt = inputs.pop("decoder_input_ids", None)
        if prompt is None:
            prompt = start
        elif not mx.any(prompt[:, 0] == first).item():
            prompt = mx.concatenate([start.astype(prompt.dtype), prompt], axis=1)
        return prompt, None

    def prefill(
        self, input_ids: mx.array, cache: Sequence[KVCache | CrossAttentionCache], **recordings: Any
    ) -> tuple[mx.array, Step]:
        """Encode the recordings and feed the decoder's first tokens; returns the next one's logits
        and the function for later steps."""

        def step(tokens: mx.array, **recordings) -> mx.array:
            output = self.model(decoder_input_ids=tokens, past_key_values=cache, **recordings)
            return self.logits(output.last_hidden_state)

        return step(input_ids, **recordings)[:, -1], step

    @classmethod
    def sanitize(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """See `PretrainedModel.sanitize`; the convolutions' kernels become as MLX has them,
        (out, k, in) instead of (out, in, k)."""
        weights = super().sanitize(weights, config)
        for index, size in enumerate(config.conv_kernel_sizes):
            name = f"model.encoder.conv.conv_layers.{index}.weight"
            inputs = config.conv_channels // 2 if index else config.num_features
            # told by the shape, so that kernels already turned stay as they are
            if name in weights and weights[name].shape[1:] == (inputs, size):
                weights[name] = weights[name].swapaxes(1, 2)
        return weights
