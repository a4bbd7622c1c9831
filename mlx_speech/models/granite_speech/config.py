"""The configuration of Granite Speech: those of its three parts, and how they are put together."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

from ...errors import UnsupportedOptionError
from ...fields import TokenId
from ..config import DERIVED, Deviation, Frames, PretrainedConfig, Scale
from ..granite import GraniteConfig
from .encoder import GraniteSpeechEncoderConfig, GraniteSpeechPlusEncoderConfig
from .projector import Blip2QFormerConfig


def make_parts(config: PretrainedConfig, title: str) -> None:
    """Make configurations of the three parts of a speech model where they are dicts or left out.

    Args:
        title: of the model, for messages.

    Raises:
        UnsupportedOptionError: a part is a configuration of another kind.
    """
    hints = get_type_hints(type(config))
    for name in ("text_config", "encoder_config", "projector_config"):
        value, kind = getattr(config, name), hints[name]
        if isinstance(value, PretrainedConfig) and not isinstance(value, kind):
            what = f"{name} is a {type(value).__name__}, but {title} is made of"
            raise UnsupportedOptionError(f"{what} a {kind.__name__} there; give that")
        if value is None or isinstance(value, dict):
            setattr(config, name, kind.from_dict(value or {}, f"config.json: {name}."))


@dataclass(kw_only=True)
class GraniteSpeechConfig(PretrainedConfig):
    """Configuration of a Granite Speech model; `tie_word_embeddings` is None where only the
    checkpoint's tensors can tell. Its parts may be given as dicts, or left out.

    logits_divisor: what the head's products are divided by, where it is not known from the rest.
        Granite divides by `logits_scaling`, and so was every release trained and measured. From
        transformers 5.10 on, its Granite Speech does not (Granite itself still does), so neither
        are the logits of other checkpoints that such a version saved. The likeliest token is the
        same; probabilities, and with them sampling and beam search, are not.
    """

    model_type: ClassVar[str] = "granite_speech"
    aliases: ClassVar[dict[str, str]] = {"audio_token_id": "audio_token_index"}
    release_saved_by: ClassVar[tuple[int, int] | None] = None  #: such a version of transformers

    text_config: GraniteConfig = DERIVED
    encoder_config: GraniteSpeechEncoderConfig = DERIVED
    projector_config: Blip2QFormerConfig = DERIVED
    audio_token_index: TokenId = 49155
    initializer_range: Deviation = 0.02
    has_lora_adapter: bool = True
    downsample_rate: Frames = 5
    window_size: Frames = 15
    tie_word_embeddings: bool | None = True
    logits_divisor: Scale = DERIVED

    def __post_init__(self):
        make_parts(self, "Granite Speech")
        super().__post_init__()
        self._check_multiple("window_size", "downsample_rate")
        if self.tie_word_embeddings is not None:
            self.text_config.tie_word_embeddings = self.tie_word_embeddings
        if self.logits_divisor is None:
            numbers = re.match(r"(\d+)\.(\d+)", self.transformers_version or "")
            version = tuple(map(int, numbers.groups())) if numbers else (0, 0)
            divided = version < (5, 10) or version == self.release_saved_by
            self.logits_divisor = self.text_config.logits_scaling if divided else 1.0

    @classmethod
    def from_dict(cls, data, place="config.json: "):
        """See `PretrainedConfig.from_dict`.

        Whether the head is tied stands at the top, in `text_config`, in both or in neither,
        depending on the version of transformers that saved the file. Only what is said without
        contradiction counts.
        """
        places = [p for p in (data, data.get("text_config")) if isinstance(p, dict)]
        said = [p["tie_word_embeddings"] for p in places if "tie_word_embeddings" in p]
        if all(isinstance(tied, bool | None) for tied in said):
            tied = said[0] if len(set(said)) == 1 else None
            data = {**data, "tie_word_embeddings": tied}
        return super().from_dict(data, place)

    def to_dict(self) -> dict[str, Any]:
        """See `PretrainedConfig.to_dict`; what only the tensors can tell is left out."""
        values = super().to_dict()
        if self.tie_word_embeddings is None:
            del values["tie_word_embeddings"]
        return values


@dataclass(kw_only=True)
class GraniteSpeechPlusConfig(GraniteSpeechConfig):
    """Configuration of the Plus variant, whose encoder exports more than its last layer."""

    model_type: ClassVar[str] = "granite_speech_plus"
    release_saved_by = (5, 19)  # the update of granite-speech-4.1-2b-plus of October 2026

    encoder_config: GraniteSpeechPlusEncoderConfig = DERIVED
