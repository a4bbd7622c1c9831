"""Granite Speech NAR: encoder, projector and editor as one model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx

from ...generation.checks import refuse_all
from ...layers.ctc import best_labels_in_parts, collapsed
from ...layers.model_output import ModelOutput, can_return_tuple
from ...layers.token_ids import as_mlx
from ..base import PretrainedModel
from ..conformer_window import Halos
from ..decoder import DecoderModel
from ..granite import GraniteForCausalLM
from ..granite_speech.encoder import (
    GraniteSpeechEncoderOutput,
    encoder_to_checkpoint,
    sanitize_encoder,
)
from ..granite_speech.encoder_stream import EncoderStream
from ..granite_speech.encoder_window import encode_window
from ..granite_speech.pooling import bpe_labels
from ..initialization import init_weights
from .config import GraniteSpeechNarConfig
from .encoder import GraniteSpeechNarCTCEncoder
from .layouts import own_name, with_plain_norms, with_separate_kernels
from .projector import GraniteSpeechNarProjector

#: states whose logits over all tokens are in memory at once, where they need not all be
_ROWS = 256


@dataclass(eq=False)
class GraniteSpeechNarOutput(ModelOutput):
    """What the model returns.

    logits: (batch, slots, vocab_size), of the editor, for each slot; zero at padding.
    input_ids: (batch, slots), what the editor was given: the tokens of the drafts with blanks
        before, between and after; blanks at padding.
    slot_lengths: (batch,) slots of each draft.
    audio_hidden_states: (batch, rows, hidden_size) the projected audio.
    encoder_output: see `GraniteSpeechEncoderOutput`.
    """

    logits: mx.array = field(kw_only=True)
    input_ids: mx.array = field(kw_only=True)
    slot_lengths: mx.array = field(kw_only=True)
    audio_hidden_states: mx.array = field(kw_only=True)
    encoder_output: GraniteSpeechEncoderOutput = field(kw_only=True)


class GraniteSpeechNarForCTC(PretrainedModel):
    """The encoder's CTC head drafts a text; the editor, which gets the audio and the draft with a
    slot before, after and between its tokens, says all slots anew at once, as a CTC head does."""

    config_class: ClassVar[type[GraniteSpeechNarConfig]] = GraniteSpeechNarConfig
    main_input_name = "input_features"
    computed_tensors = (*PretrainedModel.computed_tensors, "num_batches_tracked")
    tied_head = "language_model.lm_head."
    tied_embeddings = "language_model.model.embed_tokens."

    def __init__(self, config: GraniteSpeechNarConfig):
        super().__init__(config)
        self.encoder = GraniteSpeechNarCTCEncoder(config.encoder_config)
        self.projector = GraniteSpeechNarProjector(config.projector_config)
        self.language_model = GraniteForCausalLM(config.text_config)
        init_weights(self)

    @can_return_tuple
    def __call__(
        self, input_features: mx.array, feature_lengths: mx.array | None = None
    ) -> GraniteSpeechNarOutput:
        """Draft, and edit once.

        Args:
            input_features: (batch, frames, input_dim), stacked log-mel frames, 50 a second.
            feature_lengths: (batch,) real frames of each recording of a padded batch; each then
                gets what it gets alone.

        Raises:
            InputError: the shapes are wrong, or there are no such lengths.
        """
        encoded, audio, drafts = self._drafted(input_features, feature_lengths)
        slots = [self.slots(draft) for draft in drafts]
        logits = [self.language_model.logits(s) for s in self.edit(audio, drafts)]
        longest = max(map(len, slots))
        filled = [ids + [self.config.blank_token_id] * (longest - len(ids)) for ids in slots]
        return GraniteSpeechNarOutput(
            logits=_stacked(logits),
            input_ids=mx.array(filled),
            slot_lengths=mx.array([len(ids) for ids in slots]),
            audio_hidden_states=_stacked(audio),
            encoder_output=encoded,
        )

    def generate(  # type: ignore[override]
        self, input_features: mx.array, feature_lengths: mx.array | None = None, **options: Any
    ) -> mx.array:
        """Token ids of what is said: (batch, longest), rows filled up with the padding token.

        Where the draft is empty so is the text: asked about nothing, the editor may invent one.
        Drafts are not normalized here (`normalizes_drafts`), which takes a tokenizer. Arguments and
        errors as in a call.

        Raises:
            UnsupportedOptionError: there are further options.
        """
        refuse_options(options)
        _, audio, drafts = self._drafted(input_features, feature_lengths)
        drafted = [number for number, draft in enumerate(drafts) if draft]
        rows: list[list[int]] = [[] for _ in drafts]
        if drafted:
            edited = self.edit([audio[i] for i in drafted], [drafts[i] for i in drafted])
            for number, states in zip(drafted, edited, strict=True):
                rows[number] = self.said(states)[0]
        longest = max(map(len, rows))
        pad = self.config.text_config.pad_token_id
        fill = self.config.blank_token_id if pad is None else pad
        filled = [row + [fill] * (longest - len(row)) for row in rows]
        return mx.array(filled, mx.int32).reshape(len(rows), longest)

    def _drafted(
        self, input_features: mx.array, feature_lengths: mx.array | None
    ) -> tuple[GraniteSpeechEncoderOutput, list[mx.array], list[list[int]]]:
        """The encoder's output, and for each recording rows of audio and the draft's tokens."""
        encoded = self.encoder(input_features, feature_lengths, return_dict=True)
        states, non_blank = encoded.last_hidden_state, encoded.non_blank
        lengths = [states.shape[1]] * len(states)
        if feature_lengths is not None:
            lengths = as_mlx(feature_lengths).tolist()
        parts = list(zip(states, non_blank, lengths, strict=True))
        audio = [self.project(frames[None, :length])[0] for frames, _, length in parts]
        return encoded, audio, [self.draft(*(x[:length] for x in pair)) for *pair, length in parts]

    def audio_stages(self, input_features: mx.array) -> Iterator[tuple[str, mx.array]]:
        """What is computed of the audio, stage by stage."""
        encoded = self.encoder(input_features, return_dict=True).last_hidden_state
        yield "encoder", encoded
        yield "projector", self.project(encoded)

    def logits_along(self, inputs: dict[str, Any], tokens: list[int]) -> mx.array:
        """See `PretrainedModel.logits_along`: of the slots of a draft that is the text itself."""
        encoded = self.encoder(inputs["input_features"], return_dict=True).last_hidden_state
        (states,) = self.edit([self.project(encoded)[0]], [tokens])
        return self.language_model.logits(states)[None]

    def encode_stream(self) -> EncoderStream:
        """The encoder for one recording that comes part by part."""
        return EncoderStream(self.encoder)

    def encode_window(
        self, features: mx.array, halos: Halos = (), places: Sequence[int] = ()
    ) -> tuple[GraniteSpeechEncoderOutput, list[Halos]]:
        """The encoder over a part of audio that is still coming in; see `encoder_window`."""
        return encode_window(self.encoder, features, halos, places)

    def project(self, hidden_states: mx.array) -> mx.array:
        """What the editor is given of encoder frames: (batch, frames, output size) -> (batch,
        frames / 5, hidden_size), a row for every `downsample_rate` frames that are whole."""
        config = self.config
        rows = self.projector(hidden_states)
        rows = rows[:, : hidden_states.shape[1] // config.projector_config.downsample_rate]
        scale = (
            config.text_config.embedding_multiplier if config.scale_projected_embeddings else 1.0
        )
        return rows if scale == 1.0 else rows / scale

    def bpe_logits(self, hidden_states: mx.array, non_blank: mx.array) -> mx.array:
        """See `GraniteSpeechNarCTCEncoder.bpe_logits`."""
        return self.encoder.bpe_logits(hidden_states, non_blank)

    def draft(self, hidden_states: mx.array, non_blank: mx.array) -> list[int]:
        """Token ids that the encoder's head writes of one recording, without the editor.

        Args:
            hidden_states: (frames, output size) of the encoder.
            non_blank: (frames,), likewise.
        """
        labels, _ = collapsed(*bpe_labels(self, hidden_states, non_blank), self.bpe_blank)
        return [label - self.bpe_shift for label in labels]

    def slots(self, draft: Sequence[int]) -> list[int]:
        """The tokens of a draft with a blank before, after and between them, and more blanks where
        these are fewer than `min_edit_sequence_length`."""
        number = 2 * len(draft) + 1
        slots = [self.config.blank_token_id] * max(number, self.config.min_edit_sequence_length)
        slots[1 : number - 1 : 2] = draft
        return slots

    def edit(self, audio: Sequence[mx.array], drafts: Sequence[Sequence[int]]) -> list[mx.array]:
        """Run the editor over several recordings at once; each gets what it gets alone.

        Args:
            audio: (rows, hidden_size) of each, as `project` gives them.
            drafts: token ids of each.

        Returns:
            (slots, hidden_size) of each, of which `language_model.logits` makes logits.
        """
        decoder = self.language_model.model
        slots = [self.slots(draft) for draft in drafts]
        embedded = [decoder.embed(mx.array(ids)) for ids in slots]
        pairs = zip(audio, embedded, strict=True)
        rows = [mx.concatenate([a.astype(e.dtype), e]) for a, e in pairs]
        lengths = mx.array([len(row) for row in rows])
        x = _stacked(rows)
        # both ways, and what fills up the shorter rows is nothing that could be looked at
        mask = (mx.arange(x.shape[1]) < lengths[:, None])[:, None, None]
        x = decoder.run_layers(x, mask=mask)
        ends = zip(x, audio, slots, strict=True)
        return [states[len(a) : len(a) + len(ids)] for states, a, ids in ends]

    def said(self, states: mx.array) -> tuple[list[int], list[float]]:
        """Token ids that the editor writes, (slots, hidden_size) of one recording being what `edit`
        gives, and the log-probability of each."""
        head = self.language_model.logits
        best = best_labels_in_parts(lambda part: head(states[part]), len(states), _ROWS)
        return collapsed(*best, self.config.blank_token_id)

    @property
    def bpe_frames(self) -> int:
        """Frames that the encoder's head of tokens takes together."""
        return self.config.encoder_config.bpe_pooling_window

    @property
    def bpe_shift(self) -> int:
        """What its labels are above the tokens that they stand for: 0 where they are the tokens, 1
        where a blank comes before all of them."""
        return self.config.encoder_config.bpe_output_dim - self.config.text_config.vocab_size

    @property
    def bpe_blank(self) -> int:
        """Its label that stands for nothing."""
        return 0 if self.bpe_shift else self.config.blank_token_id

    def get_decoder(self) -> DecoderModel:
        """See `PretrainedModel.get_decoder`."""
        return self.language_model.model

    @property
    def context_length(self) -> int:
        """Positions that the editor was made for: rows of audio and slots."""
        return self.language_model.context_length

    @property
    def vocab_size(self) -> int:
        """See `PretrainedModel`."""
        return self.language_model.vocab_size

    @classmethod
    def infer_config_from_weights(cls, config, weights: dict[str, mx.array]) -> None:
        """See `PretrainedModel.infer_config_from_weights`."""
        super().infer_config_from_weights(config, weights)
        config.text_config.tie_word_embeddings = config.tie_word_embeddings

    @staticmethod
    def rename(name: str) -> str:
        """See `layouts`."""
        return own_name(name)

    @classmethod
    def sanitize(cls, weights: dict[str, mx.array], config: Any) -> dict[str, mx.array]:
        """See `PretrainedModel.sanitize`, `sanitize_encoder` and `layouts`."""
        own = with_separate_kernels(super().sanitize(weights, config))
        return sanitize_encoder(with_plain_norms(own, config), "encoder.")

    @classmethod
    def to_checkpoint(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """See `PretrainedModel.to_checkpoint` and `encoder_to_checkpoint`."""
        return encoder_to_checkpoint(weights, "encoder.")


def refuse_options(options: Mapping[str, Any]) -> None:
    """See `refuse_all`."""
    refuse_all(options, "Granite Speech NAR edits its draft in one pass, in one way")


def _stacked(rows: Sequence[mx.array]) -> mx.array:
    """(length, width) each -> (rows, longest, width), zeros after the shorter ones."""
    longest = max(map(len, rows))
    return mx.stack([mx.pad(row, [(0, longest - len(row)), (0, 0)]) for row in rows])
