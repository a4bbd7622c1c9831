"""What a call of `generate` can ask for."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from ..errors import CheckpointError, InputError
from ..fields import Range, TokenId, fit_fields, fit_items

#: limit on the answer's length where neither the checkpoint nor the call gives one
DEFAULT_NEW_TOKENS = 200

# Bounds that no use comes near: what is beyond them is a slip, and would overflow or never end.
Count = Annotated[int, Range(1, 2**31 - 1)]
Beams = Annotated[int, Range(1, 256)]  #: each has a cache and a row of logits of its own
Temperature = Annotated[float, Range(0, 1e6)]
Penalty = Annotated[float, Range(0.01, 100)]  #: factor on scores
Exponent = Annotated[float, Range(-5, 5)]  #: of a length, in float32


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Options of generation, named and meant as in transformers; None is the default everywhere.

    max_new_tokens: upper limit of the answer's length, in tokens.
    max_length: the same limit, but the prompt (or the token that starts an encoder-decoder's
        answer) counts too. `max_new_tokens` goes before it; without either it is 200 new tokens.
    do_sample: sample tokens at random; by default exactly when `temperature` is given and not 0.
    temperature, top_k, top_p, min_p: shape the distribution that is sampled from, in this order.
    repetition_penalty: above 1 makes tokens that already occurred less likely.
    num_beams: hypotheses that beam search keeps, 256 at most; 1 is greedy search.
    length_penalty: exponent of the length by which beam search divides a hypothesis's score.
    early_stopping: `True` stops when `num_beams` hypotheses are complete, `False` when a better
        one is unlikely, `"never"` when none is possible.
    eos_token_id: ids that end an answer; one that the model does not know never does.
    stop_strings: texts that end an answer once they are complete; they stay part of it.
    pad_token_id: fills rows of a batch that ended before others.
    decoder_start_token_id: what an encoder-decoder's answer starts from; by default what the
        model's configuration says.
    forced_bos_token_id: the token of an encoder-decoder after that one, e.g. a language.
    seed: makes sampling repeatable.
    num_draft_tokens: how many tokens a draft model proposes at a time, 256 at most.

    Raises:
        InputError: a value is of another type or out of its range, or two contradict each other.
    """

    max_new_tokens: Count | None = None
    max_length: Count | None = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: Annotated[int, Range(0, 2**31 - 1)] | None = None
    top_p: Annotated[float, Range(0, 1, exclusive=True)] | None = None
    min_p: Annotated[float, Range(0, 1)] | None = None
    repetition_penalty: Penalty = 1.0
    num_beams: Beams = 1
    length_penalty: Exponent = 1.0
    early_stopping: bool | Literal["never"] = False
    eos_token_id: TokenId | Sequence[TokenId] | None = None
    stop_strings: str | Sequence[str] | None = None
    pad_token_id: TokenId | None = None
    num_draft_tokens: Beams = 3
    decoder_start_token_id: TokenId | None = None
    forced_bos_token_id: TokenId | None = None
    seed: Annotated[int, Range(0, 2**64 - 1)] | None = None

    def __post_init__(self):
        for option in dataclasses.fields(self):
            if getattr(self, option.name) is None:
                object.__setattr__(self, option.name, option.default)
        fit_fields(self)
        if "" in self.stop_texts:
            raise InputError("an empty stop string would end every answer")
        if any("\ud800" <= character <= "\udfff" for t in self.stop_texts for character in t):
            raise InputError("a stop string has a lone surrogate: it is not valid Unicode")
        if self.sampling and self.num_beams > 1:
            raise InputError.about("sampling and {num_beams} > 1 do not go together; choose one")
        if self.do_sample is False and self.temperature:
            raise InputError.about("{do_sample} is False, so {temperature} would have no effect")
        for name in ("top_k", "top_p", "min_p"):
            if getattr(self, name) is not None and not self.sampling:
                rule = "{option} shapes what is sampled; give a {temperature} with it"
                raise InputError.about(rule, option=name)

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

    def limited(self, prompt_length: int) -> Self:
        """A copy with `max_new_tokens` settled for a prompt of `prompt_length` tokens.

        Raises:
            InputError: `max_length` leaves no room for an answer.
        """
        if self.max_new_tokens is not None or self.max_length is None:
            return dataclasses.replace(self, max_new_tokens=self.limit)
        if self.max_length <= prompt_length:
            message = "{max_length} is {value}, but the prompt alone has {length} tokens"
            raise InputError.about(message, value=self.max_length, length=prompt_length)
        return dataclasses.replace(self, max_new_tokens=self.max_length - prompt_length)

    def updated(self, **changes: Any) -> Self:
        """A copy with changes; a `max_length` replaces a `max_new_tokens` that was there before.

        Raises:
            InputError: there is no such option, or two contradict each other.
        """
        if unknown := changes.keys() - {f.name for f in dataclasses.fields(self)}:
            raise InputError(f"unsupported generation option {', '.join(sorted(unknown))}")
        if changes.get("max_length") is not None:
            if changes.get("max_new_tokens") is not None:
                raise InputError.about("give {max_length} or {max_new_tokens}, not both")
            changes["max_new_tokens"] = None
        return dataclasses.replace(self, **changes)

    def filled_from(self, other: Self) -> Self:
        """A copy with the token ids that it lacks taken from `other`."""
        names = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
        lacking = [name for name in names if getattr(self, name) is None]
        return dataclasses.replace(self, **{name: getattr(other, name) for name in lacking})

    @classmethod
    def from_checkpoint(cls, stored: dict[str, Any], model_config: dict[str, Any]) -> Self:
        """A checkpoint's defaults.

        Of its generation_config.json (`stored`), or of its config.json where there is no such
        file, as in old repositories. Token ids that are missing there are taken from config.json
        (and its `text_config`). Whether to sample is left to the caller: chat defaults in that file
        are not meant for speech. `max_length` is read for encoder-decoders only, where it bounds
        the answer; others state their whole context there.
        """
        data, file = (stored, "generation_config.json") if stored else (model_config, "config.json")
        text_config = model_config.get("text_config")
        places = {
            file: data,
            "config.json: text_config": text_config if isinstance(text_config, dict) else {},
            "config.json": model_config,
        }
        names = ["eos_token_id", "pad_token_id"]
        kept = ["num_beams", "length_penalty", "early_stopping", "repetition_penalty"]
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
        return cls(**found)
