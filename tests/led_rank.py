"""What a rank does for tests/models/test_leader.py: the first uses models as a whole and models
that the others have a share of, and prints what is not the same; the others follow it.

    python tests/led_rank.py cases.json
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_speech import InputError, UnsupportedOptionError, save_prompt_cache
from mlx_speech.distributed.group import Group
from mlx_speech.generation.prefix_cache import PrefixCache, PrefixCachePool
from mlx_speech.layers.lora import use_adapter
from mlx_speech.loading import load_model, load_shard
from mlx_speech.models import leader as module
from mlx_speech.models.leader import Leader, follow

BATCH = mx.array([[1, 1, 1, 17, 5, 40, 23, 9], [31, 8, 52, 11, 60, 5, 14, 6]])
ONE = BATCH[1:]
EOS = 60
#: options of `generate` by what they are about; 1 is padding
ANSWERS: dict[str, dict] = {
    "greedy": {"inputs": BATCH},
    "sampled": {"inputs": BATCH, "do_sample": True, "temperature": 1.5, "seed": 7},
    "several samples": {"inputs": ONE, "do_sample": True, "num_return_sequences": 3, "seed": 1},
    "beams": {"inputs": BATCH, "num_beams": 3, "num_return_sequences": 2},
    "beams that end": {"inputs": ONE, "num_beams": 3, "eos_token_id": [5, 9, 14, 31, 40]},
    "drafts": {
        "inputs": BATCH,
        "drafts": [[3, 60, 7, 8], [9, 9]],
        "repetition_penalty": 1.3,
    },
    "quantized": {"inputs": BATCH, "kv_bits": 8, "kv_group_size": 32},
    "quantized later": {
        "inputs": ONE,
        "kv_bits": 8,
        "kv_group_size": 32,
        "quantized_kv_start": 12,
    },
    "beams, quantized": {"inputs": ONE, "kv_bits": 8, "kv_group_size": 32, "num_beams": 2},
    "rotating": {"inputs": ONE, "max_kv_size": 10},
    "beams, rotating": {"inputs": ONE, "max_kv_size": 10, "num_beams": 3},
    "in small parts": {"inputs": BATCH, "prefill_step_size": 3},
}


def generated(model, **options) -> list:
    options = {"max_new_tokens": 8, "eos_token_id": EOS, **options}
    if "inputs" in options:
        options["attention_mask"] = options["inputs"] != 1
    return model.generate(**options).tolist()


def conversation(model) -> list:
    """A cache that goes on, is trimmed, is forked for another conversation, and forgotten."""
    pool, said = PrefixCachePool(2, 1 << 30), []
    prompts = ([3, 9, 27], [3, 9, 27, 4, 33], [3, 9, 7], [3, 9, 27, 4, 33, 12, 6], [50, 3], [3, 9])
    for prompt in prompts:
        cache = pool.take(prompt) or PrefixCache(model.make_cache())
        answer = generated(model, inputs=mx.array([prompt]), past_key_values=cache.layers)
        cache.settle(answer[0])
        said.append(answer)
        pool.put(cache)
    own = model.make_cache()
    first = generated(model, inputs=ONE, past_key_values=own)
    # a caller's cache is left alone where rows are reordered
    beams = {"past_key_values": own, "num_beams": 2}
    longer = mx.array([[*first[0], 4]])
    return [said, first, generated(model, inputs=longer, **beams), own[0].length]


def speculated(model, draft) -> list:
    options = {"draft_model": draft, "max_new_tokens": 20}
    return generated(model, inputs=ONE, **options)


def numbers(model) -> list[mx.array]:
    """What calls give that are no generation."""
    packed = mx.array([[0, 1, 2, 0, 1, 2, 3, 0]])
    output = model(ONE, output_hidden_states=True)
    added = mx.where(mx.tril(mx.ones((1, 1, 8, 8))) > 0, 0.0, -4.0)
    boolean = mx.tril(mx.ones((1, 12, 8, 8))) > 0
    return [
        output.logits,
        *output.hidden_states,
        model(BATCH, attention_mask=BATCH != 1).logits[:, -1],
        model(ONE, position_ids=packed, use_cache=False).logits,
        model(ONE, attention_mask=added).logits,
        model(ONE, attention_mask=boolean).logits,
        model(ONE[:, :2], past_key_values=output.past_key_values).logits,
    ]


def in_threads(model) -> list:
    """Three that use one model at a time."""
    answers: dict[int, list] = {}

    def answer(number: int) -> None:
        answers[number] = [
            generated(model, inputs=BATCH[:, number:], num_beams=1 + number % 2) for _ in range(2)
        ]
        mx.clear_streams()

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(3)]


def interrupted(model) -> list:
    """Answers that Ctrl-C stops wherever it comes, and go on from what there is."""
    cache = PrefixCache(model.make_cache())
    stopped = 0
    ids = [3, 9, 27, 4]
    for _ in range(12):
        timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                cache.trim_to(cache.common(ids))
                generated(model, inputs=mx.array([ids]), past_key_values=cache.layers)
                cache.settle(ids)
        except KeyboardInterrupt:
            stopped += 1
            if not cache.settle(cache.keys):
                cache = PrefixCache(model.make_cache())
        timer.join()
    assert stopped == 12
    cache.trim_to(cache.common(ids))
    return generated(model, inputs=mx.array([ids]), past_key_values=cache.layers)


def refused(model, folder: Path) -> list[str]:
    calls: list[Callable[[], object]] = [
        lambda: save_prompt_cache(folder / "cache", model.make_cache(), model),
        lambda: generated(model, inputs=ONE, kv_bits=8, kv_group_size=64),
        lambda: model.train() and model(ONE),
    ]
    messages = []
    for call in calls:
        try:
            call()
        except (UnsupportedOptionError, InputError) as error:
            messages.append(str(error))
    model.eval()
    return messages


def differing(whole, shared, draft, every: bool) -> dict[str, object]:
    """What is not the same of text models.

    Args:
        every: use, or only a few.
    """
    found: dict[str, object] = {}
    uses: dict[str, Callable[[object], list]] = {
        name: lambda model, options=options: generated(model, **options)
        for name, options in ANSWERS.items()
    }
    uses |= {
        "conversation": conversation,
        "draft model": lambda model: speculated(model, draft),
        "threads": in_threads,
        "interrupted": interrupted,
    }
    for name, use in uses.items() if every else [*uses.items()][::5]:
        expected, got = use(whole), use(shared)
        if expected != got:
            found[name] = [expected, got]
    pairs = zip(numbers(whole), numbers(shared), strict=True)
    furthest = max(mx.abs(one - other).max().item() for one, other in pairs)
    if furthest > 1e-4:
        found["numbers"] = furthest
    return found


def differing_speech(whole, shared) -> dict[str, object]:
    """The adapter is on for what has audio, and off for what has not."""
    audio = {
        "input_ids": mx.array([[7, *[4] * 6, 9, 12]]),
        "input_features": mx.random.normal((1, 30, 24), key=mx.random.key(5)),
    }
    text = {"input_ids": mx.array([[7, 9, 12, 30]])}
    found = {}
    for name, inputs in (("audio", audio), ("text", text)):
        logits = [model(**inputs).logits for model in (whole, shared)]
        if (furthest := mx.abs(logits[0] - logits[1]).max().item()) > 1e-4:
            found[name] = furthest
        with use_adapter(True):
            answers = [generated(model, **inputs) for model in (whole, shared)]
        if answers[0] != answers[1]:
            found[f"{name}, answer"] = answers
    drafted = [generated(model, **audio, drafts=[[5, 8, 9]]) for model in (whole, shared)]
    if drafted[0] != drafted[1]:
        found["drafted"] = drafted
    return found


def lead(group: Group, cases: dict[str, dict]) -> dict[str, object]:
    leader, results = Leader(group), {}
    for name, case in cases.items():
        over = {"adapter": case["adapter"]} if case["adapter"] else {}

        def load_own(folder: str = case["folder"], over: dict = over) -> tuple:
            model = load_model(folder, tensor_group=group.distributed, **over)
            return model, model.get_decoder()

        shared = leader.load([case["folder"], over], load_own)
        whole = load_model(case["folder"], **over)
        if case["audio"]:
            results[name] = differing_speech(whole, shared)
        else:
            draft = load_model(cases["granite"]["folder"])
            results[name] = differing(whole, shared, draft, case["every"])
            if name == "granite":
                results["refused"] = refused(shared, Path(case["folder"]))
        shared = None
        gc.collect()
    leader.close()
    return results


def main() -> None:
    module.SECONDS_BETWEEN_PINGS = 0.05  # so that they come in between
    cases = json.loads(Path(sys.argv[1]).read_text())
    group = Group.start(sys.exit)
    if group.rank:
        loaded = []

        def load_own(told: list) -> object:
            loaded.append(told[0])
            return load_shard(told[0], group.distributed, **told[1])

        follow(group, load_own)
        print(json.dumps(loaded))
    else:
        print(json.dumps(lead(group, cases)))


main()
