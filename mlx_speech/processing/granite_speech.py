"""Granite Speech's processor: prompts and recordings -> inputs of the model."""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint, take_hub_options
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import fitted
from ..models.granite_speech import GraniteSpeechConfig, GraniteSpeechPlusConfig
from .batch import BatchEncoding, as_row, check_tensors, stack_padded
from .chat_parts import (
    Message,
    as_conversations,
    has_parts,
    joined,
    recordings_of,
    shown,
    without_recordings,
)
from .chat_template import Templates
from .log_mel import GraniteSpeechFeatureExtractor
from .processor import CONFIG_FILE, GROUPS, SHARED_OPTIONS, Processor, refuse_text_options
from .prompts import GRANITE_4_1, PromptStyle, language_code, named_style, prompt_style
from .request import TranscriptionRequest
from .settings import read_settings
from .tokenizer import Tokenizer

#: options of a call that `apply_chat_template` takes for those, and not for variables of a template
_OPTIONS_OF_A_CALL = SHARED_OPTIONS | {*GROUPS, "sampling_rate", "device", "add_special_tokens"}
AUDIO_TOKEN = "<|audio|>"


class _ProcessorSettings(TypedDict):
    audio_token: str | None
    prompt_style: str | None


class GraniteSpeechProcessor(Processor):
    """Puts a feature extractor and a tokenizer together.

    Args:
        audio_processor: computes features.
        tokenizer: encodes prompts.
        audio_token: stands in a prompt for one recording.
        chat_template: one that the tokenizer is to have.
        prompts: how this checkpoint wants to be instructed.
    """

    extractor_class, tokenizer_class = GraniteSpeechFeatureExtractor, Tokenizer

    def __init__(
        self,
        audio_processor: GraniteSpeechFeatureExtractor,
        tokenizer: Tokenizer,
        audio_token: str | None = AUDIO_TOKEN,
        chat_template: Templates = None,
        *,
        prompts: PromptStyle = GRANITE_4_1,
    ):
        super().__init__(audio_processor, tokenizer)
        given = fitted("audio_token", audio_token, str | None)
        self.audio_token = tokenizer.special_token("audio_token") or given or AUDIO_TOKEN
        if chat_template is not None:
            self.chat_template = chat_template
        self.prompts = prompts
        self._takes_parts: dict[str, bool] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        name: str | None = None,
        audio_token: str | None = None,
        chat_template: Templates = None,
        **options: Any,
    ) -> Self:
        """Read the processor of a local folder or a Hugging Face repository, which need not be
        those of a model.

        Args:
            name: what the checkpoint is called, if not by `pretrained_model_name_or_path`.
            audio_token, chat_template: as for the class, in place of the checkpoint's.
            options: further ones of `from_pretrained` of the feature extractor and the tokenizer;
                or of `resolve_checkpoint`, such as `revision`.
        """
        folder = resolve_checkpoint(
            pretrained_model_name_or_path, weights=False, **take_hub_options(options)
        )
        name = name or str(pretrained_model_name_or_path)
        if os.path.isdir(name):
            name = os.path.realpath(name)
        features, tokenizer = cls._read_parts(folder, options)
        shared = read_settings(folder, CONFIG_FILE, _ProcessorSettings)
        token = audio_token or shared.get("audio_token") or AUDIO_TOKEN
        if data := read_json(folder, required=False):
            prompts = _style_of_model(data, name, features, folder)
        else:
            index = tokenizer.convert_tokens_to_ids(token) or -1
            prompts = prompt_style(GraniteSpeechConfig.model_type, index, name)
        prompts = named_style(shared.get("prompt_style")) or prompts
        return cls(features, tokenizer, token, chat_template, prompts=prompts)

    def to_dict(self) -> dict[str, Any]:
        own = {"audio_token": self.audio_token, "prompt_style": self.prompts.title}
        return {**super().to_dict(), **own}

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        device: Any = None,
        **options: Any,
    ) -> BatchEncoding:
        """Inputs for the model: `model.generate(**processor(text, audio))`.

        Args:
            text: one or more prompts, with one audio token for each of their recordings; without,
                there are features alone.
            audio: the recordings that all prompts together mention, in order, as `mono_recordings`
                takes them: samples in any kind of array, paths, addresses.
            device: without effect, as for the feature extractor.
            options: of a call of the tokenizer, by default `padding=True` (features are filled up
                whatever it says); of the feature extractor, such as `sampling_rate`, that of
                `audio` in Hz; and `text_kwargs`, `audio_kwargs` and `common_kwargs`, dictionaries
                of such.

        Returns:
            `input_ids` and `attention_mask`, (batch, length), padded on the left; with audio also
            `input_features`, `input_features_mask`, and `feature_lengths` where they differ (see
            `GraniteSpeechFeatureExtractor`).

        Raises:
            AudioError: a recording cannot be used.
            InputError: more or fewer audio tokens than recordings, neither text nor audio, what is
                neither, or truncation cuts audio tokens off.
        """
        for_text, for_audio = self._split(options)
        features, sizes = BatchEncoding(), []
        if audio is not None:
            features = self.feature_extractor(audio, **{"device": device, **for_audio})
            sizes = features.pop("audio_embed_sizes")
            if text is None:
                refuse_text_options(for_text)
                check_tensors(for_text.get("return_tensors") or "mlx")
                return features
        texts = [text] if isinstance(text, str) else text
        is_list = isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts)
        if not is_list or not texts:
            raise InputError(f"text is {shown(text)}, but must be one or more strings")
        mentioned = sum(t.count(self.audio_token) for t in texts)
        if mentioned != len(sizes):
            counts = f"{mentioned} recordings ({self.audio_token}), but {len(sizes)} are given"
            raise InputError(f"the text mentions {counts}")
        encoded = self.tokenizer(self._expanded(texts, sizes), **{"padding": True, **for_text})
        if for_text.get("truncation"):
            self._check_audio_tokens(encoded["input_ids"], sum(sizes))
        return BatchEncoding(encoded, **features)

    def _check_audio_tokens(self, ids: Any, expected: int) -> None:
        left = sum(row.count(self.audio_token_id) for row in map(as_row, ids))
        if left != expected:
            cut = f"truncation leaves {left} of {expected} audio tokens"
            raise InputError(f"{cut}: raise max_length, or leave truncation out")

    def _expanded(self, texts: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """Prompts with as many audio tokens as each recording has."""
        remaining = iter(sizes)
        pattern = re.escape(self.audio_token)
        return [re.sub(pattern, lambda m: m[0] * next(remaining), t) for t in texts]

    @property
    def audio_token_id(self) -> int:
        """Id of the token that stands for audio."""
        return self.tokenizer.convert_tokens_to_ids(self.audio_token)

    @property
    def languages(self) -> tuple[str, ...]:
        """See `SpeechProcessor`."""
        return self.prompts.languages

    @property
    def target_languages(self) -> tuple[str, ...]:
        """See `SpeechProcessor`."""
        return self.prompts.targets

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
        instruction = self.prompts.instruction(request)
        return self(self.speech_prompt(instruction, request.prefix_text), samples)

    def audio_inputs(self, audio: Sequence[mx.array], prompt: str) -> dict:
        """What `model.generate` needs to answer a prompt about audio that is projected already.

        Args:
            audio: (audio tokens, hidden_size) each.
            prompt: see `speech_prompt`.
        """
        expanded = self._expanded([prompt] * len(audio), [len(each) for each in audio])
        features, mask = stack_padded(audio)
        inputs = self.tokenizer(expanded)
        return {**inputs, "audio_features": features, "input_features_mask": mask}

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "mlx",
        processor_kwargs: dict[str, Any] | None = None,
        load_audio_from_video: bool = False,
        prefix_text: str | None = None,
        **options: Any,
    ) -> Any:
        """The prompt for a conversation, in the checkpoint's own format; or all of the model's
        inputs for it.

        Args:
            conversation: messages `{"role": ..., "content": ...}`, where the content is a string or
                a list of `{"type": "text", "text": ...}` and `{"type": "audio", "audio": ...}`,
                with a recording as a call takes it; `"path"` and `"url"` are other names for
                `"audio"`. Or several such conversations.
            chat_template: the name of one of several templates, or Jinja source.
            tokenize: return what a call makes of the prompt and the recordings, and not the prompt.
            return_dict: when encoded, all of it; else the ids alone.
            return_tensors: as for a call.
            processor_kwargs: options of a call; some may stand beside, such as `sampling_rate`.
            load_audio_from_video: cannot be True.
            prefix_text: what the answer has said already, for the model to go on with; of the Plus
                variant, with `add_generation_prompt`. Templates know it, or it is put behind them.
            options: as for `Tokenizer.apply_chat_template`.

        Raises:
            AudioError: a recording cannot be used.
            InputError: a message or a part of one has another form, an audio part that is to be
                encoded has no recording, or the template refuses the messages.
            UnsupportedOptionError: an option is for other models.
        """
        if load_audio_from_video:
            message = "{option}: there are no parts of video; give the file as audio, which it has"
            raise UnsupportedOptionError.about(message, option="load_audio_from_video")
        if options.pop("return_assistant_tokens_mask", False):
            message = "{option} is for texts; the tokenizer's apply_chat_template has it"
            raise UnsupportedOptionError.about(message, option="return_assistant_tokens_mask")
        conversations, batched = as_conversations(conversation)
        beside = {name: options.pop(name) for name in _OPTIONS_OF_A_CALL & options.keys()}
        options |= {"chat_template": chat_template, "tokenize": False}
        prefix_text = fitted("prefix_text", prefix_text, str | None)
        if prefix_text is not None:
            self.prompts.check_continues()
            if not options.get("add_generation_prompt"):
                message = "{option} begins the answer: it needs add_generation_prompt=True"
                raise InputError.about(message, option="prefix_text")
            if self.audio_token in prefix_text:
                message = "{option} has {token} in it, which stands for a recording"
                raise InputError.about(message, option="prefix_text", token=self.audio_token)
        prompts = [self._prompt(messages, options, prefix_text) for messages in conversations]
        if not tokenize:
            return prompts if batched else prompts[0]
        given = fitted("processor_kwargs", processor_kwargs or {}, dict)
        call = {"return_tensors": return_tensors, **given, **beside}
        bos = self.tokenizer.bos_token
        if bos is not None and prompts[0].startswith(bos):
            call.setdefault("add_special_tokens", False)
        audio = [each for messages in conversations for each in recordings_of(messages)]
        inputs = self(prompts, audio or None, **call)
        return inputs if return_dict else inputs["input_ids"]

    def _prompt(
        self, messages: list[Message], options: dict[str, Any], prefix_text: str | None
    ) -> str:
        """The prompt for a conversation, whether its template knows parts or not.

        Those of the released models know strings only, and would drop the audio.
        """
        if has_parts(messages) and not self._template_takes_parts(options):
            messages = joined(messages, self.audio_token + self.prompts.after_audio)
        render = partial(self.tokenizer.apply_chat_template, without_recordings(messages))
        prompt = render(**options)
        if prefix_text is None:
            return prompt
        known = render(**options, prefix_text=prefix_text)
        return known if known != prompt else prompt + prefix_text

    def _template_takes_parts(self, options: dict[str, Any]) -> bool:
        tokenizer = self.tokenizer
        template = tokenizer.get_chat_template(options["chat_template"], options.get("tools"))
        # found out once: the error of one that does not holds on to all its callers' arrays
        if template not in self._takes_parts:
            probe = [{"type": "audio"}, {"type": "text", "text": "words"}]
            try:
                prompt = tokenizer.apply_chat_template(
                    [{"role": "user", "content": probe}], chat_template=template, tokenize=False
                )
            except (InputError, CheckpointError):
                prompt = ""
            self._takes_parts[template] = self.audio_token in prompt and "words" in prompt
        return self._takes_parts[template]

    def speech_prompt(self, instruction: str, prefix_text: str | None = None) -> str:
        """The whole prompt that asks for something about one recording.

        Args:
            prefix_text: how the answer begins, as it is known already.
        """
        parts = [{"type": "audio"}, {"type": "text", "text": instruction}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if self.prompts.system is not None:
            messages.insert(0, {"role": "system", "content": self.prompts.system})
        return self.apply_chat_template(
            messages, add_generation_prompt=True, prefix_text=prefix_text
        )


def _style_of_model(
    data: dict[str, Any], name: str, features: GraniteSpeechFeatureExtractor, folder: Path
) -> PromptStyle:
    """How the model of a config.json wants to be instructed.

    Raises:
        CheckpointError: the features are not those that the model takes.
    """
    is_plus = data.get("model_type") == GraniteSpeechPlusConfig.model_type
    config = (GraniteSpeechPlusConfig if is_plus else GraniteSpeechConfig).from_dict(data)
    for what, expected, found in (
        ("n_mels", config.encoder_config.input_dim / 2, features.n_mels),
        ("window_size", config.window_size, features.projector_window_size),
        ("downsample_rate", config.downsample_rate, features.projector_downsample_rate),
    ):
        if found != expected:
            both = f"{found} for the feature extractor, but {expected:g} for the model"
            raise CheckpointError(f"{folder}: {what} is {both}")
    # conversions by mlx-audio call the Plus variant by the name of the others
    plus = config.encoder_config.cat_hidden_layers
    model_type = GraniteSpeechPlusConfig.model_type if plus else config.model_type
    # conversions by mlx_speech say what they were made from
    return prompt_style(model_type, config.audio_token_index, str(data.get("base_model") or name))
