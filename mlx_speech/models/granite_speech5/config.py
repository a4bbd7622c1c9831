"""The configurations of Granite Speech 5.0 TurboCTC and of its encoder."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...errors import InputError, UnsupportedOptionError
from ...layers.activations import ACTIVATIONS
from ..config import (
    DERIVED,
    Deviation,
    Factor,
    Frames,
    LayerCount,
    PretrainedConfig,
    Probability,
    VocabIndex,
    VocabSize,
    Width,
)


@dataclass(kw_only=True)
class GraniteSpeech5EncoderConfig(PretrainedConfig):
    """Configuration of the encoder.

    num_mel_bins: of a spectrogram; a frame of features is two of its frames with their differences,
        four times as wide.
    max_position_embeddings: the table of distances reaches so far to either side.
    context_size: frames of an attention block, at the rate of each block.
    subsample_layers: blocks, from 0, after which two frames are one; by default the first two.
    attention_bias: whether the layers of the feed-forward parts have biases.
    """

    model_type: ClassVar[str] = "granite_speech5_encoder"
    part_of_config: ClassVar[str | None] = "encoder_config"

    vocab_size: VocabSize = 16384
    hidden_size: Width = 1024
    intermediate_size: Width = 4096
    num_hidden_layers: LayerCount = 16
    num_attention_heads: Factor = 8
    num_key_value_heads: Factor = DERIVED
    num_mel_bins: Width = 80
    head_dim: Width = DERIVED
    hidden_act: str = "silu"
    max_position_embeddings: Frames = 512
    context_size: Frames = 128
    conv_kernel_size: Frames = 7
    conv_expansion_factor: Factor = 2
    subsample_layers: list[int] = DERIVED
    attention_bias: bool = True
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    initializer_range: Deviation = 0.02

    def __post_init__(self):
        super().__post_init__()
        if self.head_dim is None:
            self._check_multiple("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.subsample_layers is None:
            self.subsample_layers = [0, 1]
        self._check_choice("hidden_act", ACTIVATIONS)
        for name, fits, rule in (
            (
                "num_key_value_heads",
                self.num_key_value_heads == self.num_attention_heads,
                f"num_attention_heads, {self.num_attention_heads}",
            ),
            (
                "context_size",
                self.context_size <= self.max_position_embeddings,
                f"at most max_position_embeddings, {self.max_position_embeddings}",
            ),
            ("conv_kernel_size", self.conv_kernel_size % 2, "odd"),
            (
                "subsample_layers",
                len({*self.subsample_layers} & {*range(self.num_hidden_layers)})
                == len(self.subsample_layers),
                f"of blocks 0 to {self.num_hidden_layers - 1}, each once",
            ),
        ):
            if not fits:
                raise InputError.must_be(name, getattr(self, name), rule)

    @property
    def input_size(self) -> int:
        """Width of a frame of features."""
        return 4 * self.num_mel_bins

    @property
    def subsampling(self) -> int:
        """Frames of features that become one of the encoder."""
        return 2 ** len(self.subsample_layers)


@dataclass(kw_only=True)
class GraniteSpeech5CTCConfig(PretrainedConfig):
    """Configuration of the encoder with its CTC head.

    encoder_config: may be given as a dict, or left out.
    ctc_loss_reduction: whether the loss is the mean of the recordings', each divided by the number
        of its labels, their sum, or one for each.
    ctc_zero_infinity: whether a recording that is too short for its labels counts nothing.
    pad_token_id: the blank.
    tie_word_embeddings: whether the head is the one that the encoder is conditioned with.
    initializer_range: that of the encoder.
    """

    model_type: ClassVar[str] = "granite_speech5_ctc"

    vocab_size: VocabSize = 16384
    ctc_loss_reduction: Literal["mean", "sum", "none"] = "mean"
    ctc_zero_infinity: bool = True
    encoder_config: GraniteSpeech5EncoderConfig = DERIVED
    pad_token_id: VocabIndex = 0
    tie_word_embeddings: bool = True
    initializer_range: Deviation = DERIVED

    def __post_init__(self):
        given: Any = self.encoder_config
        if given is None or isinstance(given, dict):
            place = "config.json: encoder_config."
            self.encoder_config = GraniteSpeech5EncoderConfig.from_dict(given or {}, place)
        elif not isinstance(given, GraniteSpeech5EncoderConfig):
            what = f"encoder_config is a {type(given).__name__}, but must be a"
            raise UnsupportedOptionError(f"{what} {GraniteSpeech5EncoderConfig.__name__}")
        super().__post_init__()
        if self.vocab_size != self.encoder_config.vocab_size:
            rule = f"that of the encoder, {self.encoder_config.vocab_size}"
            raise InputError.must_be("vocab_size", self.vocab_size, rule)
        if self.pad_token_id >= self.vocab_size:
            rule = f"below vocab_size, {self.vocab_size}"
            raise InputError.must_be("pad_token_id", self.pad_token_id, rule)
        self.initializer_range = self.encoder_config.initializer_range
