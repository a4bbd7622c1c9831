"""Options of transformers that are not supported here, and what to use instead."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from ..errors import UnsupportedOptionError


class Unsupported:
    """The only values of an option that are accepted beside None: those that ask for nothing."""

    def __init__(self, instead: str, *without_effect: bool | float | str):
        self.instead, self.without_effect = instead, without_effect

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, bool | int | float | str) and value in self.without_effect


_CACHE = "a cache grows in unified memory as needed; max_kv_size and kv_bits make it smaller"
_CALL = "call the model on the ids that were generated, with this argument"
_DRAFT = "a draft model proposes num_draft_tokens each time"
_PROCESSOR = "give a function of your own as logits_processor"
_STRATEGY = "there are greedy search, sampling, beam search and a draft model"


@dataclass(kw_only=True)
class UnsupportedOptions:
    """Only values that ask for nothing are accepted, so that configurations which name everything
    can be read.

    Raises:
        UnsupportedOptionError: another value.
    """

    cache_implementation: Annotated[str | None, Unsupported(_CACHE, "dynamic")] = None
    cache_config: Annotated[dict | None, Unsupported(_CACHE)] = None
    max_cache_len: Annotated[int | None, Unsupported(_CACHE)] = None
    prefill_chunk_size: Annotated[int | None, Unsupported("say prefill_step_size")] = None
    output_attentions: Annotated[bool | None, Unsupported(_CALL, False)] = None
    output_hidden_states: Annotated[bool | None, Unsupported(_CALL, False)] = None
    top_h: Annotated[float | None, Unsupported("top_p and typical_p are its kin")] = None
    epsilon_cutoff: Annotated[float | None, Unsupported("min_p is its kin", 0.0)] = None
    eta_cutoff: Annotated[float | None, Unsupported("typical_p is its kin", 0.0)] = None
    encoder_repetition_penalty: Annotated[float | None, Unsupported(_PROCESSOR, 1.0)] = None
    encoder_no_repeat_ngram_size: Annotated[int | None, Unsupported(_PROCESSOR, 0)] = None
    exponential_decay_length_penalty: Annotated[Any, Unsupported(_PROCESSOR)] = None
    sequence_bias: Annotated[Any, Unsupported(_PROCESSOR)] = None
    guidance_scale: Annotated[float | None, Unsupported(_PROCESSOR, 1.0)] = None
    watermarking_config: Annotated[Any, Unsupported(_PROCESSOR)] = None
    remove_invalid_values: Annotated[bool | None, Unsupported(_PROCESSOR, False)] = None
    token_healing: Annotated[bool | None, Unsupported("end prompts where tokens end", False)] = None
    penalty_alpha: Annotated[float | None, Unsupported(_STRATEGY, 0.0)] = None
    dola_layers: Annotated[Any, Unsupported(_STRATEGY)] = None
    num_beam_groups: Annotated[int | None, Unsupported(_STRATEGY, 1)] = None
    diversity_penalty: Annotated[float | None, Unsupported(_STRATEGY, 0.0)] = None
    constraints: Annotated[Any, Unsupported(_STRATEGY)] = None
    force_words_ids: Annotated[Any, Unsupported(_STRATEGY)] = None
    low_memory: Annotated[bool | None, Unsupported(_STRATEGY, False)] = None
    use_mtp: Annotated[bool | None, Unsupported(_STRATEGY, False)] = None
    prompt_lookup_num_tokens: Annotated[int | None, Unsupported(_DRAFT)] = None
    max_matching_ngram_size: Annotated[int | None, Unsupported(_DRAFT)] = None
    is_assistant: Annotated[bool | None, Unsupported(_DRAFT, False)] = None
    num_assistant_tokens: Annotated[int | None, Unsupported("say num_draft_tokens")] = None
    num_assistant_tokens_schedule: Annotated[str | None, Unsupported(_DRAFT, "constant")] = None
    assistant_confidence_threshold: Annotated[float | None, Unsupported(_DRAFT, 0.0)] = None
    assistant_early_exit: Annotated[int | None, Unsupported(_DRAFT)] = None
    assistant_lookbehind: Annotated[int | None, Unsupported(_DRAFT)] = None
    target_lookbehind: Annotated[int | None, Unsupported(_DRAFT)] = None
    assistant_ensemble_weight: Annotated[float | None, Unsupported(_DRAFT)] = None
    speculation_type: Annotated[str | None, Unsupported(_DRAFT)] = None
    compile_config: Annotated[Any, Unsupported("MLX compiles what it needs to")] = None
    disable_compile: Annotated[bool | None, Unsupported("it is True or False", True, False)] = None

    def __post_init__(self):
        for option in fields(UnsupportedOptions):
            kind: Any = option.type
            value, (allowed,) = getattr(self, option.name), kind.__metadata__
            if value is not None and value not in allowed:
                message = f"{option.name}={value!r} is not supported: {allowed.instead}"
                raise UnsupportedOptionError(message)
