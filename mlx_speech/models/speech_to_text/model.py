"""Speech2Text (fairseq S2T, https://arxiv.org/abs/2010.05171): recognition and translation by a
Transformer encoder-decoder (https://arxiv.org/abs/1706.03762) over filter banks."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError, UnsupportedOptionError
from ...generation import GenerationConfig
from ...layers.cache import CrossAttentionCache, KVCache
from ...layers.model_output import can_return_tuple
from ...layers.token_ids import as_mlx, check_token_ids, real_frames
from ..base import PretrainedModel
from ..initialization import init_weights
from ..loss import IGNORED, cross_entropy
from .decoder import Cache, Speech2TextDecoder
from .encoder import Speech2TextEncoder
from .layers import Speech2TextConfig
from .outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput


class Speech2TextPretrainedModel(PretrainedModel):
    """What both models share: how a checkpoint's tensors become theirs, and back."""

    config_class = Speech2TextConfig
    base_model_prefix = "model."
    computed_tensors = (*PretrainedModel.computed_tensors, ".embed_positions.weights")

    @classmethod
    def sanitize(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """See `PretrainedModel.sanitize`; the convolutions' kernels become as MLX has them,
        (out, k, in) instead of (out, in, k)."""
        turned = super().sanitize(weights, config)
        for index, (name, size) in enumerate(cls._kernels(config).items()):
            inputs = config.conv_channels // 2 if index else config.num_features
            # told by the shape, so that kernels already turned stay as they are
            if name in turned and turned[name].shape[1:] == (inputs, size):
                turned[name] = turned[name].swapaxes(1, 2)
        return turned

    @classmethod
    def to_checkpoint(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """See `PretrainedModel.to_checkpoint`."""
        kernels = cls._kernels(config)
        return {k: v.swapaxes(1, 2) if k in kernels else v for k, v in weights.items()}

    @classmethod
    def _kernels(cls, config: Speech2TextConfig) -> dict[str, int]:
        """Names of the convolutions' kernels, and their sizes."""
        start = f"{cls.base_model_prefix}encoder.conv.conv_layers"
        sizes = enumerate(config.conv_kernel_sizes)
        return {f"{start}.{index}.weight": size for index, size in sizes}


class Speech2TextModel(Speech2TextPretrainedModel):
    """Encoder and decoder, without a head."""

    base_model_prefix = ""
    tied_head = None
    tied_embeddings = "decoder.embed_tokens."

    def __init__(self, config: Speech2TextConfig):
        super().__init__(config)
        self.encoder = Speech2TextEncoder(config)
        self.decoder = Speech2TextDecoder(config)
        init_weights(self)

    @can_return_tuple
    def __call__(
        self,
        input_features: mx.array | None = None,
        attention_mask: mx.array | None = None,
        decoder_input_ids: mx.array | None = None,
        decoder_attention_mask: mx.array | None = None,
        encoder_outputs: BaseModelOutput | Sequence[Any] | None = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: mx.array | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: mx.array | None = None,
        *,
        head_mask: mx.array | None = None,
        decoder_head_mask: mx.array | None = None,
        cross_attn_head_mask: mx.array | None = None,
    ) -> Seq2SeqModelOutput:
        """Run the model.

        Args:
            input_features: (recordings, frames, features).
            attention_mask: (recordings, frames), ones and then zeros at the padding.
            decoder_input_ids: (recordings, length) token ids.
            decoder_attention_mask: (recordings, cached length + length), zero at padding; or for
                each query, see `decoder_mask`.
            encoder_outputs: what the encoder returned, instead of `input_features`; the
                `attention_mask` remains that of the features.
            past_key_values: a cache, extended in place: that of an earlier call, or an empty one
                from `make_cache`. Once it holds the recordings, they need not be given again.
            decoder_inputs_embeds: (recordings, length, d_model) instead of `decoder_input_ids`,
                after the multiplication that `scale_embedding` asks for.
            use_cache: whether to return a cache; by default as the configuration says.
            output_attentions, output_hidden_states: also return these of every layer. Weights are
                not to be had from fused attention, so asking for them is slower.
            cache_position: (length,), that of the decoder's input, counted from the cache; it can
                only be what it is without this argument.
            head_mask, decoder_head_mask, cross_attn_head_mask: (layers, heads), zero for a head to
                leave out: of the encoder, and of the decoder to itself and to the recording.
            return_dict: False for a tuple; by default as the configuration says.

        Raises:
            InputError: arguments are missing, contradict each other or have the wrong shape.
        """
        shown: dict[str, Any] = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        inputs = input_features, attention_mask, encoder_outputs
        encoded, mask = self.encode(*inputs, **shown, head_mask=head_mask)
        decoded = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoded.last_hidden_state,
            mask,
            past_key_values,
            decoder_inputs_embeds,
            use_cache,
            **shown,
            cache_position=cache_position,
            head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            return_dict=True,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )

    def encode(
        self,
        input_features: mx.array | None = None,
        attention_mask: mx.array | None = None,
        encoder_outputs: BaseModelOutput | Sequence[Any] | None = None,
        **options: Any,
    ) -> tuple[BaseModelOutput, mx.array | None]:
        """What the encoder returns, or has returned, if anything; and which of its frames are real,
        (recordings, subsampled frames), None if all are. Arguments as in the call.

        Raises:
            InputError: they contradict each other or have the wrong shape.
        """
        if input_features is not None and encoder_outputs is not None:
            raise InputError("give a recording once: as input_features or as encoder_outputs")
        if input_features is not None:
            encoded = self.encoder(input_features, attention_mask, **options, return_dict=True)
        else:
            encoded = BaseModelOutput.of(encoder_outputs)
        frames, real = encoded.last_hidden_state, real_frames(attention_mask)
        if frames is None or attention_mask is None:
            return encoded, None
        mask = self.encoder.conv.subsampled(as_mlx(attention_mask))
        if mask.shape != frames.shape[:2]:
            raise InputError(
                f"attention_mask is {tuple(attention_mask.shape)}, which does not belong to "
                f"encoder outputs of {frames.shape}"
            )
        return encoded, None if real is None else mask

    def get_encoder(self) -> Speech2TextEncoder:
        """The encoder."""
        return self.encoder

    def get_decoder(self) -> Speech2TextDecoder:
        """The decoder."""
        return self.decoder

    def make_cache(self) -> list[KVCache | CrossAttentionCache]:
        """See `Speech2TextDecoder.make_cache`."""
        return self.decoder.make_cache()


class Speech2TextForConditionalGeneration(Speech2TextPretrainedModel):
    """Speech2Text with a language-modelling head, tied to the embeddings or its own."""

    main_input_name = "input_features"
    generation_inputs = (
        *("input_features", "attention_mask", "encoder_outputs"),
        *("decoder_input_ids", "input_ids"),
    )
    tied_embeddings = "model.decoder.embed_tokens."

    def __init__(self, config: Speech2TextConfig):
        super().__init__(config)
        self.model = Speech2TextModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        init_weights(self)

    @can_return_tuple
    def __call__(
        self,
        input_features: mx.array | None = None,
        attention_mask: mx.array | None = None,
        decoder_input_ids: mx.array | None = None,
        decoder_attention_mask: mx.array | None = None,
        encoder_outputs: BaseModelOutput | Sequence[Any] | None = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: mx.array | None = None,
        *,
        num_items_in_batch: int | mx.array | None = None,
        **head_masks: mx.array | None,
    ) -> Seq2SeqLMOutput:
        """Run the model; what is not described here is as in `Speech2TextModel`.

        Args:
            labels: (recordings, length) token ids, -100 where there is no loss. Where no input of
                the decoder is given, it is these, one place later, after `decoder_start_token_id`.
            num_items_in_batch: what the sum of the losses is divided by, where a batch is one part
                of several; by default how many labels count.
        """
        if labels is not None:
            labels = check_token_ids(labels, self.config.vocab_size, "labels", IGNORED)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                start = mx.full((len(labels), 1), self.config.decoder_start_token_id, labels.dtype)
                shifted = mx.concatenate([start, labels[:, :-1]], axis=1)
                decoder_input_ids = mx.where(shifted == IGNORED, self.config.pad_token_id, shifted)
        output = self.model(
            input_features,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            cache_position,
            **head_masks,
            return_dict=True,
        )
        logits = self.logits(output.pop("last_hidden_state"))
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch)
        return Seq2SeqLMOutput(loss=loss, logits=logits, **output)

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(…, d_model) -> (…, vocab_size)."""
        if self.config.tie_word_embeddings:
            return self.model.decoder.embed_tokens.as_linear(hidden_states)
        return self.lm_head(hidden_states)

    def get_encoder(self) -> Speech2TextEncoder:
        """The encoder."""
        return self.model.encoder

    def get_decoder(self) -> Speech2TextDecoder:
        """The decoder."""
        return self.model.decoder

    def audio_stages(self, input_features: mx.array) -> Iterator[tuple[str, mx.array]]:
        """What becomes of an unpadded recording on its way to the decoder, stage by stage."""
        yield "encoder", self.model.encode(input_features)[0].last_hidden_state

    @property
    def context_length(self) -> int:
        """Positions that the decoder was made for."""
        return self.config.max_target_positions

    def make_cache(self, left_padding: None = None) -> list[KVCache | CrossAttentionCache]:
        """See `Speech2TextModel.make_cache`; what an answer starts from is never padded."""
        return self.model.make_cache()

    def prepare_prompt(
        self, inputs: dict[str, Any], config: GenerationConfig
    ) -> tuple[mx.array, None]:
        """The tokens that an answer starts from, `decoder_input_ids` after the starting token; see
        `PretrainedModel.prepare_prompt`."""
        if inputs.get("past_key_values") is not None:
            raise UnsupportedOptionError(
                "generate fills a cache of its own; past_key_values is for a call of the model, "
                "and encoder_outputs saves encoding recordings again"
            )
        source, encoded = inputs.get("input_features"), inputs.get("encoder_outputs")
        if source is None and encoded is not None:
            source = BaseModelOutput.of(encoded).last_hidden_state
        if source is None:
            raise InputError("generate needs input_features or encoder_outputs")
        if getattr(source, "ndim", 0) != 3 or not source.size:
            found = getattr(source, "shape", source)
            rule = "an array (recordings, frames, features)"
            raise InputError.must_be(self.main_input_name, found, rule)
        first = config.decoder_start_token_id
        if first is None:
            first = self.config.decoder_start_token_id
        rows = len(source)
        starts = [first] * rows if isinstance(first, int) else list(first)
        if len(starts) != rows:
            raise InputError(f"decoder_start_token_id has {len(starts)} ids, for {rows} recordings")
        start = check_token_ids(
            mx.array(starts)[:, None], self.vocab_size, "decoder_start_token_id"
        )
        given = [inputs.pop(name, None) for name in ("decoder_input_ids", "input_ids")]
        prompt = next((ids for ids in given if ids is not None), None)
        if prompt is None:
            return start, None
        prompt = check_token_ids(prompt, self.vocab_size, "decoder_input_ids")
        if len(prompt) != rows:
            raise InputError(f"decoder_input_ids have {len(prompt)} rows, for {rows} recordings")
        if not mx.any(prompt[:, :1] == start).item():
            prompt = mx.concatenate([start.astype(prompt.dtype), prompt], axis=1)
        return prompt, None

    def prefill(
        self, input_ids: mx.array, cache: Sequence[KVCache | CrossAttentionCache], **recordings: Any
    ) -> mx.array:
        """Encode the recordings and feed the decoder's first tokens; the logits of the next one,
        (rows, 1, vocab_size)."""
        encoded, mask = self.model.encode(**recordings)
        self.model.decoder.attend_to(cache, encoded.last_hidden_state, mask)
        return self.step(input_ids, cache)[:, -1:]

    def step(self, tokens: mx.array, cache: Sequence[KVCache | CrossAttentionCache]) -> mx.array:
        """See `CausalLM.step`."""
        decoder = self.model.decoder
        return self.logits(decoder.decode(*decoder.embed(tokens), cache)[-1])
