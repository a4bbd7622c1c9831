"""Speech and language models on Apple Silicon, through MLX.

`load` and `transcribe` are what most programs need:

    import mlx_speech
    model = mlx_speech.load("ibm-granite/granite-speech-3.3-2b")
    print(mlx_speech.transcribe("talk.m4a", model).text)

The classes are shaped like those of transformers. All names are imported when first used, so that
importing the package costs nothing.
"""

import os
import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.2.0"

# in a clone `convert` lies beside this folder, and in it once installed
if not os.path.exists(os.path.join(__path__[0], "convert")):
    __path__.append(os.path.dirname(__path__[0]))

#: modules -> the public names in them
_HOMES = {
    "audio": "load_audio",
    "auto": "AutoConfig AutoFeatureExtractor AutoModel AutoModelForCTC AutoModelForCausalLM "
    "AutoModelForMultimodalLM AutoModelForSequenceClassification AutoModelForSpeechSeq2Seq "
    "AutoProcessor",
    "chat_session": "ChatSession",
    "errors": "AudioError CheckpointError ContextLengthError DistributedError HubError InputError "
    "MlxSpeechError UnsupportedOptionError",
    "generation": "GenerationConfig",
    "generation.prompt_cache": "load_prompt_cache save_prompt_cache",
    "generation.text": "GenerationResponse generate stream_generate",
    "loading": "load",
    "models.granite": "GraniteConfig GraniteForCausalLM GraniteModel",
    "models.granite_speech": "GraniteSpeechConfig GraniteSpeechForConditionalGeneration "
    "GraniteSpeechPlusConfig GraniteSpeechPlusForConditionalGeneration",
    "models.granite_speech.encoder": "GraniteSpeechCTCEncoder GraniteSpeechEncoderConfig "
    "GraniteSpeechPlusEncoderConfig",
    "models.granite_speech5": "GraniteSpeech5CTCConfig GraniteSpeech5Encoder "
    "GraniteSpeech5EncoderConfig GraniteSpeech5ForCTC",
    "models.granite_speech_nar": "GraniteSpeechNarConfig GraniteSpeechNarForCTC",
    "models.jais2": "Jais2Config Jais2ForCausalLM Jais2Model",
    "models.llama": "LlamaConfig LlamaForCausalLM LlamaForSequenceClassification LlamaModel",
    "models.speech_to_text": "Speech2TextConfig Speech2TextForConditionalGeneration "
    "Speech2TextModel",
    "processing.auto_tokenizer": "AutoTokenizer",
    "processing.batch": "BatchEncoding BatchFeature",
    "processing.granite_speech": "GraniteSpeechProcessor",
    "processing.granite_speech5": "GraniteSpeech5FeatureExtractor GraniteSpeech5Processor",
    "processing.granite_speech_nar": "GraniteSpeechNarFeatureExtractor GraniteSpeechNarProcessor",
    "processing.kaldi_fbank": "Speech2TextFeatureExtractor",
    "processing.llama_tokenizer": "LlamaTokenizer LlamaTokenizerFast",
    "processing.log_mel": "GraniteSpeechFeatureExtractor",
    "processing.parakeet_tokenizer": "ParakeetTokenizer",
    "processing.speech_to_text": "Speech2TextProcessor",
    "processing.speech_to_text_tokenizer": "Speech2TextTokenizer",
    "processing.tokenizer": "Tokenizer",
    "transcription.live": "LiveEvent LiveTranscriber",
    "transcription.pipeline": "stream_transcribe transcribe",
    "transcription.transcript": "Segment Transcript Word",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


class _Package(ModuleType):
    """The package itself. `transcribe` is a function here and also the module of the command line;
    importing that module must not put it in the function's place."""

    def __getattr__(self, name: str):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self):
        return sorted({*super().__dir__(), *_HOME})


sys.modules[__name__].__class__ = _Package
