"""What a call of `generate` can ask for."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from ..errors import CheckpointError, InputError
from ..fields import Range, TokenId, fit_fields, fit_items
from .unsupported import UnsupportedOptions

#: limit on the answer's length where neither the checkpoint nor the call gives one
DEFAULT_NEW_TOKENS = 200
DRAFT_MODEL_TOKENS = 3  #: that a draft model proposes at a time, where nothing is said

#: values of those that shape the distribution which leave it as it is
_KEEPS_ALL = {"top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1}

# Bounds that no use comes near: what is beyond them is a slip, and would overflow or never end.
Count = Annotated[int, Range(1, 2**31 - 1)]
Size = Annotated[int, Range(0, 2**31 - 1)]
Beams = Annotated[int, Range(1, 256)]  #: each has a cache and a row of logits of its own
Temperature = Annotated[float, Range(0, 1e6)]
Penalty = Annotated[float, Range(0.01, 100)]  #: factor on scores
Exponent = Annotated[float, Range(-5, 5)]  #: of a length, in float32

SETTLED: Any = None  #: default of an option that `DEFAULTS` has a value for in every call
DEFAULTS = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
    "use_cache": True,
}
#: what is taken from a checkpoint beside ids of tokens, whatever the model
_KEPT = (
    *("num_beams", "length_penalty", "early_stopping", "repetition_penalty"),
    *("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("min_length", "min_new_tokens", "max_new_tokens", "forced_eos_token_id"),
    "renormalize_logits",
)


@dataclass(kw_only=True)
class GenerationConfig(UnsupportedOptions):
    """Options of generation, named and meant as in transformers.

    None means that nothing is said: then a checkpoint's configuration or the default holds. An
    option may be changed by assignment, too (`model.generation_config.max_new_tokens = 5`); its
    value is checked when something is generated.

    max_new_tokens: upper limit of the answer's length, in tokens.
    max_length: the same limit, but the prompt (or the token that starts an encoder-decoder's
        answer) counts too. `max_new_tokens` goes before it; without either it is 200 new tokens,
        or what the model's context has room for.
    min_new_tokens, min_length: lower limits in the same way; before them no answer ends by a token.
    max_time: seconds after which no further token is begun.
    do_sample: sample tokens at random; by default exactly when `temperature` is given and not 0.
    temperature, top_k, top_p, min_p, typical_p: shape the distribution that is sampled from, in
        this order.
    repetition_penalty: above 1 makes tokens that already occurred less likely.
    no_repeat_ngram_size: no sequence of so many tokens occurs twice.
    bad_words_ids: sequences of tokens that do not occur.
    suppress_tokens, begin_suppress_tokens: tokens that do not occur, or not as the first one.
    renormalize_logits: make log-probabilities of the scores after all of this.
    num_beams: hypotheses that beam search keeps, 256 at most; 1 is greedy search.
    length_penalty: exponent of the length by which beam search divides a hypothesis's score.
    early_stopping: `True` stops when `num_beams` hypotheses are complete, `False` when a better
        one is unlikely, `"never"` when none is possible.
    num_return_sequences: answers to each prompt: samples, or the best of the beams.
    bos_token_id: the prompt where none is given.
    eos_token_id: ids that end an answer; one that the model does not know never does.
    stop_strings: texts that end an answer once they are complete; they stay part of it.
    pad_token_id: fills rows of a batch that ended before others.
    decoder_start_token_id: what an encoder-decoder's answer starts from, one for all rows or one
        each; by default what the model's configuration says.
    forced_bos_token_id: the token of an encoder-decoder after that one, e.g. a language.
    forced_eos_token_id: what an answer that reaches its limit ends with.
    return_dict_in_generate: return an output with the cache, not the ids alone.
    output_scores, output_logits: with each step's scores after and before all that changes them.
    use_cache: without it the output has no cache; ids are the same.
    seed: makes sampling repeatable. Without it, `mx.random.seed` counts in the main thread alone.
    num_draft_tokens: how many tokens a draft proposes at a time, 256 at most; by default 3 of a
        draft model, and of a text 31 with the prompt, then 15, or 7 where more than two answers are
        made at once.
    draft_acceptance: keep a proposed token whose probability is at least this, also where the model
        would have chosen another; by default answers are those without a draft.

    Raises:
        InputError: a value is of another type or out of its range, or two contradict each other.
        UnsupportedOptionError: see `UnsupportedOptions`.
    """

    max_new_tokens: Count | None = None
    max_length: Count | None = None
    min_new_tokens: Size | None = None
    min_length: Size | None = None
    max_time: Annotated[float, Range(0)] | None = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: Size | None = None
    top_p: Annotated[float, Range(0, 1, exclusive=True)] | None = None
    min_p: Annotated[float, Range(0, 1)] | None = None
    typical_p: Annotated[float, Range(0, 1, exclusive=True)] | None = None
    repetition_penalty: Penalty | None = None
    no_repeat_ngram_size: Size | None = None
    bad_words_ids: Sequence[Sequence[TokenId]] | None = None
    suppress_tokens: Sequence[TokenId] | None = None
    begin_suppress_tokens: Sequence[TokenId] | None = None
    renormalize_logits: bool | None = None
    num_beams: Beams = SETTLED
    length_penalty: Exponent = SETTLED
    early_stopping: bool | Literal["never"] = SETTLED
    num_return_sequences: Beams = SETTLED
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | Sequence[TokenId] | None = None
    stop_strings: str | Sequence[str] | None = None
    pad_token_id: TokenId | None = None
    num_draft_tokens: Beams | None = None
    draft_acceptance: Annotated[float, Range(0, 1, exclusive=True)] | None = None
    decoder_start_token_id: TokenId | Sequence[TokenId] | None = None
    forced_bos_token_id: TokenId | None = None
    forced_eos_token_id: TokenId | Sequence[TokenId] | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    use_cache: bool = SETTLED
    seed: Annotated[int, Range(0, 2**64 - 1)] | None = None
    transformers_version: str | None = None

    def __post_init__(self):
        super().__post_init__()
        fit_fields(self)
        if "" in self.stop_texts:
            raise InputError("an empty stop string would end every answer")
        if any("\ud800" <= character <= "\udfff" for t in self.stop_texts for character in t):
            raise InputError("a stop string has a lone surrogate: it is not valid Unicode")
        if any(not words for words in self.bad_words_ids or ()):
            raise InputError("bad_words_ids hold an empty sequence, which would ban everything")
        beams = self.num_beams or 1
        if self.sampling and beams > 1:
            raise InputError.about("sampling and {num_beams} > 1 do not go together; choose one")
        if not self.sampling and (self.num_return_sequences or 1) > beams:
            rule = "{option} is {value}, but greedy search finds one answer and beam search "
            rule += "{num_beams} at most; raise that, or sample with a {temperature}"
            value = self.num_return_sequences
            raise InputError.about(rule, option="num_return_sequences", value=value)
        if self.do_sample is False and self.temperature not in (None, 0, 1):
            raise InputError.about("{do_sample} is False, so {temperature} would have no effect")
        for name, neutral in _KEEPS_ALL.items():
            if getattr(self, name) not in (None, neutral) and not self.sampling:
                rule = "{option} shapes what is sampled; give a {temperature} with it"
                raise InputError.about(rule, option=name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__dataclass_fields__:
            raise InputError(f"a GenerationConfig has no option {name}")
        super().__setattr__(name, value)

    @property
    def sampling(self) -> bool:
        """Whether tokens are sampled at random."""
        return bool(self.temperature) if self.do_sample is None else self.do_sample

    @property
    def limit(self) -> int:
        """`max_new_tokens`, once it is settled (`limited`)."""
        return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, however many."""
        ids = self.eos_token_id
        return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop strings, however many and however given."""
        strings = self.stop_strings
        return (strings,) if isinstance(strings, str) else tuple(strings or ())

    @property
    def fill_token_id(self) -> int:
        """What stands behind the end of a row."""
        ids = (self.pad_token_id, *self.eos_token_ids, 0)
        return next(token for token in ids if token is not None and token >= 0)

    def limited(self, prompt_length: int, room: int | None = None) -> Self:
        """A copy with `max_new_tokens` and `min_new_tokens` settled for a prompt of
        `prompt_length` tokens, after which the model's context has `room` for more.

        Raises:
            InputError: `max_length` leaves no room for an answer.
        """
        limit = self.max_new_tokens
        if limit is None and self.max_length is not None:
            limit = self.max_length - prompt_length
            if limit <= 0:
                message = "{max_length} is {value}, but the prompt alone has {length} tokens"
                raise InputError.about(message, value=self.max_length, length=prompt_length)
        if limit is None:
            limit = max(1, min(DEFAULT_NEW_TOKENS, DEFAULT_NEW_TOKENS if room is None else room))
        least = self.min_new_tokens
        if least is None:
            least = max(0, (self.min_length or 0) - prompt_length)
        return dataclasses.replace(self, max_new_tokens=limit, min_new_tokens=least)

    def overridden(
        self, config: "GenerationConfig | None" = None, streaming: bool = False, **options: Any
    ) -> "GenerationConfig":
        """What holds for a call whose defaults are these: a copy with what a configuration of the
        call says, then with single options, and the general defaults where nothing is said.

        Beams that only the defaults ask for give way to streaming and to sampling, and a
        `max_new_tokens` of the defaults to a `max_length`.

        Raises:
            InputError: there is no such option, or two contradict each other.
        """
        if unknown := options.keys() - type(self).__dataclass_fields__:
            raise InputError(f"unsupported generation option {', '.join(sorted(unknown))}")
        if not (options.get("max_length") is None or options.get("max_new_tokens") is None):
            raise InputError.about("give {max_length} or {max_new_tokens}, not both")
        inherited, own = self.to_diff_dict(), config.to_diff_dict() if config is not None else {}
        said = own | options
        do_sample, temperature = said.get("do_sample"), said.get("temperature")
        if streaming or (temperature if do_sample is None else do_sample):
            inherited.pop("num_beams", None)
        if said.get("max_length") is not None:
            inherited.pop("max_new_tokens", None)
            if options.get("max_length") is not None:
                said["max_new_tokens"] = None
        settled = {name: value for name, value in (inherited | said).items() if value is not None}
        return type(self)(**DEFAULTS | settled)

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change options in place, as in transformers; returns those that are none."""
        others = {k: v for k, v in changes.items() if k not in type(self).__dataclass_fields__}
        known = {k: v for k, v in changes.items() if k not in others}
        vars(self).update(vars(dataclasses.replace(self, **known)))
        return others

    def to_dict(self) -> dict[str, Any]:
        """All options, None where nothing is said."""
        return dict(vars(self))

    def to_diff_dict(self) -> dict[str, Any]:
        """The options that say something: what generation_config.json holds."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_model_config(cls, model_config: Any) -> Self:
        """The defaults of a model without generation_config.json, from its configuration."""
        return cls.from_checkpoint({}, model_config.to_dict())

    @classmethod
    def from_checkpoint(cls, stored: dict[str, Any], model_config: dict[str, Any]) -> Self:
        """A checkpoint's defaults.

        Of its generation_config.json (`stored`), or of its config.json where there is no such
        file, as in old repositories. Token ids that are missing there are taken from config.json
        (and its `text_config`). Whether to sample is left to the caller: chat defaults in that file
        are not meant for speech. `max_length` is read for encoder-decoders only, where it bounds
        the answer; others state their whole context there.

        Raises:
            CheckpointError: one of them makes no sense.
        """
        data, file = (stored, "generation_config.json") if stored else (model_config, "config.json")
        text_config = model_config.get("text_config")
        places = {
            file: data,
            "config.json: text_config": text_config if isinstance(text_config, dict) else {},
            "config.json": model_config,
        }
        names = ["bos_token_id", "eos_token_id", "pad_token_id"]
        kept = [*_KEPT]
        if model_config.get("is_encoder_decoder"):
            names.append("decoder_start_token_id")
            kept += ["max_length", "forced_bos_token_id"]
        found: dict[str, Any] = {}
        for name in (*kept, *names):
            for place in [file] if name in kept else places:
                if (value := places[place].get(name)) is not None:
                    try:
                        found |= fit_items(cls, {name: value}, f"{place}: ")
                    except InputError as error:  # the name is the file's, not an option's
                        raise CheckpointError(str(error)) from None
                    break
        try:
            return cls(**found)
        except InputError as error:
            raise CheckpointError(f"{file}: {error}") from None
