"""Speculative decoding (https://arxiv.org/abs/2211.17192), the greedy form.

A small draft model proposes a few tokens one by one; the model checks them all in one step and
keeps those that it would have chosen itself, and its own choice after them. The answer is the one
that greedy search gives without a draft, in fewer of the model's steps.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from ..errors import InputError
from .protocols import LayerCache, Step
from .sampling import Sampler
from .search import DecodingInputs, TokenStep


def speculative_search(
    run: DecodingInputs, draft_step: Step, draft_cache: Sequence[LayerCache]
) -> Iterator[TokenStep]:
    """As `search`, for one row; trims from the cache what was wrong.

    Args:
        draft_step, draft_cache: those of the draft model, which was fed the prompt as well.

    Raises:
        InputError: several rows, sampling, or a cache that cannot be trimmed.
    """
    config, history, cache = run.config, run.history, run.cache
    if len(history) > 1 or config.sampling:
        raise InputError("a draft model serves one prompt at a time, without sampling")
    if any(layer.max_size is not None for layer in (*cache, *draft_cache)):
        message = "a draft model needs a cache that keeps everything: no {max_kv_size}"
        raise InputError.about(message)
    sample = Sampler(config, run.processors, run.record)
    propose = Sampler(config, run.processors)
    prompt_length = cache[0].length
    start = history.shape[1]
    answer: list[int] = []
    token, logprob = sample(run.logits, history)
    unseen = token  # by the draft model
    chosen, logprobs = token[0].tolist(), logprob[0].tolist()
    try:
        while True:
            for i, value in zip(chosen, logprobs, strict=True):
                answer.append(i)
                stopped = run.stopping.ended([answer], history[:, :start], run.record)
                yield TokenStep([i], [value], [False], stopped)
                if len(answer) == config.limit or stopped[0]:
                    return
            history = mx.concatenate([history, token], axis=1)
            count = min(config.num_draft_tokens, config.limit - len(answer) - 1)
            drafts: list[mx.array] = []
            for _ in range(count):
                context = mx.concatenate([history, *drafts], axis=1)
                unseen, _ = propose(draft_step(unseen)[:, -1], context)
                drafts.append(unseen)
            fed = mx.concatenate([token, *drafts], axis=1)
            checked = run.step(fed)
            contexts = (mx.concatenate([history, *drafts[:i]], axis=1) for i in range(count + 1))
            choices = [sample(checked[:, i], context) for i, context in enumerate(contexts)]
            own = [mx.concatenate(list(part), axis=1)[0] for part in zip(*choices, strict=True)]
            mx.eval(fed, *own)
            proposed = fed[0, 1:].tolist()
            chosen, logprobs = (part.tolist() for part in own)
            agreed = next((i for i in range(count) if proposed[i] != chosen[i]), count)
            chosen, logprobs = chosen[: agreed + 1], logprobs[: agreed + 1]
            if run.record is not None:
                run.record.forget(count - agreed)

            for layer in cache:
                layer.trim(count - agreed)
            for layer in draft_cache:
                layer.trim(max(count - 1 - agreed, 0))
            # of proposals that were all right, the draft model has not been fed the last one
            unseen = mx.array([chosen[-2:] if agreed == count else chosen[-1:]])
            history = mx.concatenate([history, mx.array([chosen[:-1]], history.dtype)], axis=1)
            token = mx.array([chosen[-1:]])
    finally:
        # what was right beyond the end of the answer
        for layer in cache:
            layer.trim(max(0, layer.length - prompt_length - len(answer)))
