"""What a rank does for tests/models/test_sharding.py: the same as all others, with each model of a
list as a whole and with its layers shared out; rank 0 prints how far they are from each other.

    python tests/sharded_rank.py cases.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx

from mlx_speech import UnsupportedOptionError
from mlx_speech.layers.lora import use_adapter
from mlx_speech.loading import load_model, load_shard

STEPS = 3


class Sums:
    """Counts what goes over the network."""

    def __init__(self):
        self.number, self._all_sum = 0, mx.distributed.all_sum
        mx.distributed.all_sum = self

    def __call__(self, x, **options):
        self.number += 1
        return self._all_sum(x, **options)


def inputs_of(case: dict) -> dict[str, mx.array]:
    """A prompt of one recording, or a batch of two texts, one of them padded."""
    if case["audio"]:
        ids = mx.array([[7, *[4] * 6, 9, 12]])
        return {
            "input_ids": ids,
            "input_features": mx.random.normal((1, 30, 24), key=mx.random.key(5)),
        }
    ids = [[1, 1, 1, 17, 5, 40, 23, 9], [31, 8, 52, 11, 60, 5, 14, 6]]
    return {"input_ids": mx.array(ids)}


def run(model, inputs: dict[str, mx.array], tokens: mx.array | None = None) -> list[mx.array]:
    """Logits after a prompt and after each of some tokens, by default the likeliest."""
    ids = inputs["input_ids"]
    padding = (ids == 1).sum(axis=1).tolist()
    cache = model.make_cache(padding if any(padding) else None)
    audio = {name: value for name, value in inputs.items() if name != "input_ids"}
    logits = [model.prefill(ids, cache, **audio)]
    for step in range(STEPS):
        chosen = mx.argmax(logits[-1], axis=-1) if tokens is None else tokens[step]
        logits.append(model.step(chosen.reshape(-1, 1), cache))
    return logits


def largest(arrays: list[mx.array]) -> float:
    return max(mx.abs(array).max().item() for array in arrays)


def differences(a: list[mx.array], b: list[mx.array]) -> float:
    return largest([x - y for x, y in zip(a, b, strict=True)])


def measure(case: dict, group: mx.distributed.Group, sums: Sums) -> dict[str, object]:
    """What is to be known of one model."""
    over = {"adapter": case["adapter"]} if case["adapter"] else {}
    whole = load_model(case["folder"], **over)
    shard = load_model(case["folder"], tensor_group=group, **over)
    inputs = inputs_of(case)
    expected = run(whole, inputs)
    tokens = [mx.argmax(logits, axis=-1) for logits in expected[:-1]]
    before = sums.number
    found = run(shard, inputs, tokens)
    layers = len(shard.get_decoder().layers)
    result = {
        "logits": largest(expected),
        "difference": differences(expected, found),
        "sums": (sums.number - before) / (layers * (1 + STEPS)),
    }
    result["likeliest"] = all(
        mx.array_equal(mx.argmax(x, -1), mx.argmax(y, -1)).item()
        for x, y in zip(expected, found, strict=True)
    )
    mask = {} if case["audio"] else {"attention_mask": inputs["input_ids"] != 1}
    options = {**inputs, **mask, "max_new_tokens": 6, "eos_token_id": 60}
    answers = [model.generate(**options).tolist() for model in (whole, shard)]
    result["greedy"] = answers[0] == answers[1]
    # bit for bit the same on all ranks, or they would drift apart
    ranks = [mx.distributed.all_gather(logits[None], group=group) for logits in found]
    result["ranks differ"] = largest([each - each[:1] for each in ranks])
    result["adapter off"] = result["adapter does"] = 0.0
    if case["adapter"] and not case["audio"]:
        with use_adapter(False):
            off = [run(model, inputs, tokens) for model in (whole, shard)]
        result["adapter off"] = differences(*off)
        result["adapter does"] = differences(off[0], expected)
    return result


def difference_of_editors(folder: Path, group: mx.distributed.Group) -> float:
    """What the editor of a NAR model, whose heads are for two processes, makes of two drafts."""
    if group.size() > 2:
        return 0.0
    models = load_model(folder), load_model(folder, tensor_group=group)
    width = models[0].config.text_config.hidden_size
    audio = [mx.random.normal((rows, width), key=mx.random.key(rows)) for rows in (7, 4)]
    return differences(*(model.edit(audio, [[5, 6, 7], [8]]) for model in models))


def checks_of_calls(folder: str, group: mx.distributed.Group) -> dict[str, object]:
    """Calls that know how many heads there are, and ranks that have nothing but layers."""
    whole, shard = load_model(folder), load_model(folder, tensor_group=group)
    ids, heads = mx.array([[17, 5, 40, 23]]), whole.config.num_attention_heads
    drawn = mx.random.bernoulli(0.6, (1, heads, 4, 4), key=mx.random.key(3))
    allowed = mx.tril(mx.ones((4, 4))).astype(mx.bool_) & drawn
    result: dict[str, object] = {}
    x = mx.random.normal((1, 5, whole.config.hidden_size), key=mx.random.key(1))
    leads = group.rank() == 0
    stacks = whole.get_decoder(), shard.get_decoder() if leads else load_shard(folder, group)
    caches = [stack.make_cache() for stack in stacks]
    for name, part in ("followed", x), ("followed, cached", x[:, :1]):
        states = [s.run_stack(part, cache) for s, cache in zip(stacks, caches, strict=True)]
        result[name] = differences(states[:1], states[1:])
    for name, mask in ("boolean", allowed), ("added", mx.where(allowed, 0.0, -5.0)):
        logits = [model(ids, attention_mask=mask).logits for model in (whole, shard)]
        result[f"{name} mask"] = differences(logits[:1], logits[1:])
    beams = [model.generate(ids, max_new_tokens=6, num_beams=3) for model in (whole, shard)]
    result["beams"] = beams[0].tolist() == beams[1].tolist()
    result["an editor"] = difference_of_editors(Path(folder).parent / "nar", group)
    states = [model(ids, output_hidden_states=True).hidden_states for model in (whole, shard)]
    result["hidden states"] = differences(*states)
    cache = shard(ids).past_key_values
    result["heads in the cache"] = cache[0].state[0].shape[1]
    result["cached"] = differences(
        [whole(ids, past_key_values=whole(ids).past_key_values).logits],
        [shard(ids, past_key_values=cache).logits],
    )
    errors = {
        "cache of one process": lambda: shard(ids, past_key_values=whole(ids).past_key_values),
        "attentions": lambda: shard(ids, output_attentions=True),
        "again": lambda: shard.shard(group),
        "save": lambda: shard.save_pretrained(Path(folder).parent / f"saved-{group.rank()}"),
    }
    for name, call in errors.items():
        try:
            call()
        except (UnsupportedOptionError, ValueError) as error:
            result[name] = str(error)
    return result


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    group = mx.distributed.init(strict=True, backend="ring")
    sums = Sums()
    results = {name: measure(case, group, sums) for name, case in cases.items()}
    results["calls"] = checks_of_calls(cases["granite"]["folder"], group)
    if group.rank() == 0:
        print(json.dumps(results))


main()
