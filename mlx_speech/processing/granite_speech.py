"""Granite Speech's processor: prompts and recordings -> inputs of the model."""

import os
import re
import reprlib
from collections.abc import Sequence
from typing import Any, Self, TypedDict

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import CheckpointError, InputError
from ..models.granite_speech import GraniteSpeechConfig, GraniteSpeechPlusConfig
from .batch import BatchEncoding, check_arrays, stack_padded
from .log_mel import GraniteSpeechFeatureExtractor
from .prompts import GRANITE_4_1, PromptStyle, language_code, prompt_style
from .request import TranscriptionRequest
from .settings import read_settings
from .tokenizer import Tokenizer


class _ProcessorSettings(TypedDict):
    audio_token: str | None


class GraniteSpeechProcessor:
    """Puts a tokenizer and a feature extractor together.

    Args:
        audio_processor: computes features.
        tokenizer: encodes prompts.
        audio_token: stands in a prompt for one recording.
        prompts: how this checkpoint wants to be instructed.
    """

    extractor_class, tokenizer_class = GraniteSpeechFeatureExtractor, Tokenizer

    def __init__(
        self,
        audio_processor: GraniteSpeechFeatureExtractor,
        tokenizer: Tokenizer,
        audio_token: str = "<|audio|>",
        *,
        prompts: PromptStyle = GRANITE_4_1,
    ):
        self.audio_processor = audio_processor
        self.tokenizer = tokenizer
        self.audio_token = tokenizer.special_token("audio_token") or audio_token
        self.prompts = prompts

    @classmethod
    def from_pretrained(
        cls, path_or_repo, *, revision: str | None = None, name: str | None = None
    ) -> Self:
        """Read the processor of a local folder or a Hugging Face repository.

        Args:
            revision: branch, tag or commit of the repository.
            name: what the checkpoint is called, if not by `path_or_repo`.
        """
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        name = name or str(path_or_repo)
        if os.path.isdir(name):
            name = os.path.realpath(name)
        data = read_json(folder)
        is_plus = data.get("model_type") == GraniteSpeechPlusConfig.model_type
        config = (GraniteSpeechPlusConfig if is_plus else GraniteSpeechConfig).from_dict(data)
        # conversions by mlx-audio call the Plus variant by the name of the others
        plus = config.encoder_config.cat_hidden_layers
        model_type = "granite_speech_plus" if plus else config.model_type
        # conversions by mlx_speech say what they were made from
        name = str(data.get("base_model") or name)
        features = GraniteSpeechFeatureExtractor.from_pretrained(folder)
        for what, expected, found in (
            ("n_mels", config.encoder_config.input_dim / 2, features.n_mels),
            ("window_size", config.window_size, features.projector_window_size),
            ("downsample_rate", config.downsample_rate, features.projector_downsample_rate),
        ):
            if found != expected:
                both = f"{found} for the feature extractor, but {expected:g} for the model"
                raise CheckpointError(f"{folder}: {what} is {both}")
        shared = read_settings(folder, "processor_config.json", _ProcessorSettings)
        prompts = prompt_style(model_type, config.audio_token_index, name)
        token = shared.get("audio_token") or "<|audio|>"
        return cls(features, Tokenizer.from_pretrained(folder), token, prompts=prompts)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        *,
        padding: bool | str = True,
        return_tensors: str = "mlx",
    ) -> BatchEncoding:
        """Inputs for the model: `model.generate(**processor(text, audio))`.

        Args:
            text: one or more prompts, with one audio token for each of their recordings; without,
                there are features alone.
            audio: the recordings that all prompts together mention, in order, at the sampling rate
                of the model: (samples,), (recordings, samples), or a sequence of (samples,).
            padding, return_tensors: see `check_arrays`.

        Returns:
            `input_ids` and `attention_mask`, (batch, length), padded on the left; with audio also
            `input_features`, `input_features_mask`, and `feature_lengths` where they differ (see
            `GraniteSpeechFeatureExtractor`).

        Raises:
            AudioError: a recording cannot be used.
            InputError: more or fewer audio tokens than recordings, neither text nor audio, what is
                neither, or a text or recording is shorter though it may not be.
        """
        features, sizes = BatchEncoding(), []
        if audio is not None:
            features = BatchEncoding(self.audio_processor(audio))
            sizes = features.pop("audio_embed_sizes")
            lengths = features["feature_lengths"].tolist() if "feature_lengths" in features else ()
            check_arrays(return_tensors, padding, lengths, "recordings")
            if text is None:
                return features
        texts = [text] if isinstance(text, str) else text
        is_list = isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts)
        if not is_list or not texts:
            raise InputError(f"text is {_shown(text)}, but must be one or more strings")
        mentioned = sum(t.count(self.audio_token) for t in texts)
        if mentioned != len(sizes):
            counts = f"{mentioned} recordings ({self.audio_token}), but {len(sizes)} are given"
            raise InputError(f"the text mentions {counts}")
        expanded = self._expanded(texts, sizes)
        encoded = self.tokenizer(expanded, padding=padding, return_tensors=return_tensors)
        return BatchEncoding(encoded, **features)

    def _expanded(self, texts: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """Prompts with as many audio tokens as each recording has."""
        remaining = iter(sizes)
        pattern = re.escape(self.audio_token)
        return [re.sub(pattern, lambda m: m[0] * next(remaining), t) for t in texts]

    @property
    def sampling_rate(self) -> int:
        """Of the recordings, in Hz."""
        return self.audio_processor.sampling_rate

    def text_language(self, request: TranscriptionRequest) -> str | None:
        """Code of the language that the text will be in, if a request asks for one.

        Raises:
            UnsupportedOptionError: the model was not trained for what is asked.
        """
        self.prompts.instruction(request)
        wanted = request.target_language or request.language
        return wanted and language_code(wanted)

    def speech_inputs(
        self, samples: mx.array, request: TranscriptionRequest = TranscriptionRequest()
    ) -> dict[str, Any]:
        """What `model.generate` needs to transcribe or translate one recording as a whole.

        Args:
            samples: (n,).
        """
        return self(self.speech_prompt(self.prompts.instruction(request)), samples)

    def audio_inputs(self, audio: Sequence[mx.array], request: TranscriptionRequest) -> dict:
        """What `model.generate` needs to transcribe or translate audio that is projected already.

        Args:
            audio: (audio tokens, hidden_size) each.
        """
        prompt = self.speech_prompt(self.prompts.instruction(request))
        expanded = self._expanded([prompt] * len(audio), [len(each) for each in audio])
        features, mask = stack_padded(audio)
        inputs = self.tokenizer(expanded)
        return {**inputs, "audio_features": features, "input_features_mask": mask}

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **options: Any) -> Any:
        """The prompt for a conversation, in the checkpoint's own format.

        Args:
            messages: `{"role": ..., "content": ...}`, where the content is a string or a list of
                `{"type": "audio"}` and `{"type": "text", "text": ...}`.
            options: as for `Tokenizer.apply_chat_template`.

        Raises:
            InputError: a message or a part of one has another form, or the template refuses them.
        """
        if not isinstance(messages, list | tuple):
            raise InputError(f"a chat is a list of messages, but this is {_shown(messages)}")
        flat = [self._flatten(message) for message in messages]
        options = {"add_generation_prompt": True, "tokenize": False, **options}
        return self.tokenizer.apply_chat_template(flat, **options)

    def _flatten(self, message: dict[str, Any]) -> dict[str, Any]:
        """Parts as one string: the templates know no others, and would drop the audio."""
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str | list | tuple) or not isinstance(message.get("role"), str):
            form = "{'role': ..., 'content': ...}, with text or a list of parts"
            raise InputError(f"a message is {form}, but one is {_shown(message)}")
        if isinstance(content, str):
            return message
        text = ""
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "audio":
                text += self.audio_token + self.prompts.after_audio
            elif kind == "text" and isinstance(part.get("text"), str):
                text += part["text"]
            else:
                known = "{'type': 'audio'} or {'type': 'text', 'text': ...}"
                raise InputError(f"a part of a message is {known}, but one is {_shown(part)}")
        return {**message, "content": text}

    def speech_prompt(self, instruction: str) -> str:
        """The whole prompt that asks for something about one recording."""
        parts = [{"type": "audio"}, {"type": "text", "text": instruction}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if self.prompts.system is not None:
            messages.insert(0, {"role": "system", "content": self.prompts.system})
        return self.apply_chat_template(messages)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def _shown(value) -> str:
    """A value of any kind and length, on a part of a line."""
    return " ".join(reprlib.repr(value).split())
