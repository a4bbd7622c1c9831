"""The model as a whole: every stage beside the reference, batches, the adapter, dtypes, threads."""

from __future__ import annotations

import json
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import DATA, TINY, TRANSCRIBE, edit_json, find_recording, output_dtypes, speech_inputs
from mlx.utils import tree_flatten

from mlx_speech import InputError, load, load_audio
from mlx_speech.generation import prefill
from mlx_speech.layers.lora import LoRALinear, use_adapter

# 87, 205 and 10 frames: none a multiple of the context of 50, nor of the window of 15
MIXED = ("synthetic/espeak_00.flac", "synthetic/espeak_03.flac", "synthetic/short.wav")


def difference(a: mx.array, b: mx.array) -> float:
    return mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max().item()


class TestBatch:
    def test_each_recording_gets_what_it_gets_alone(self, tiny):
        model, processor = tiny
        batch = speech_inputs(processor, *MIXED)
        together = model.get_audio_features(batch["input_features"], batch["feature_lengths"])
        together = together.pooler_output
        for row, name in enumerate(MIXED):
            alone = speech_inputs(processor, name)
            expected = model.get_audio_features(alone["input_features"]).pooler_output[0]
            assert difference(together[row, : len(expected)], expected) < 1e-5

    @pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
    def test_same_token_ids_as_one_by_one(self, tiny, options):
        model, processor = tiny
        batch = speech_inputs(processor, *MIXED)
        output = model.generate(**batch, max_new_tokens=60, **options)
        length = batch["input_ids"].shape[1]
        assert len({tuple(row) for row in output[:, length:].tolist()}) == 3
        for row, name in enumerate(MIXED):
            alone = speech_inputs(processor, name)
            expected = model.generate(**alone, max_new_tokens=60, **options)
            expected = expected[0, alone["input_ids"].shape[1] :].tolist()
            found = output[row, length:].tolist()
            assert found[: len(expected)] == expected
            assert set(found[len(expected) :]) <= {model.generation_config.pad_token_id}

    def test_shorter_rows_are_padded_with_the_pad_token(self, tiny):
        model, processor = tiny
        batch = speech_inputs(processor, *MIXED[:2])
        output = model.generate(**batch, max_new_tokens=60)
        assert output[0, -1].item() == model.config.text_config.pad_token_id
        assert output[1, -1].item() in model.generation_config.eos_token_ids

    def test_right_padding_is_refused(self, tiny):
        model, _ = tiny
        with pytest.raises(InputError, match="padded on the left"):
            model.generate(mx.array([[2, 5, 1]]), attention_mask=mx.array([[1, 1, 0]]))


class TestAudioInPrompt:
    def test_any_number_of_recordings_anywhere(self, tiny):
        model, processor = tiny
        audio = [load_audio(find_recording(name)) for name in MIXED]
        inputs = processor("<|audio|> then <|audio|><|audio|> end", audio)
        is_audio = np.array(inputs["input_ids"][0]) == model.config.audio_token_id
        assert is_audio.sum() == 18 + 42 + 3
        output = model(**inputs, output_hidden_states=True)
        embeds = output.hidden_states[0][0] / model.config.text_config.embedding_multiplier
        alone = [
            model.get_audio_features(speech_inputs(processor, name)["input_features"])
            for name in MIXED
        ]
        positions = mx.array(np.flatnonzero(is_audio))
        alone = mx.concatenate([features.pooler_output[0] for features in alone])
        assert difference(embeds[positions], alone) < 1e-5
        text = mx.array(np.flatnonzero(~is_audio))
        table = model.language_model.model.embed_tokens
        assert difference(embeds[text], table(inputs["input_ids"][0, text])) < 1e-6

    @pytest.mark.parametrize("change", [1, -1])
    def test_mismatch_names_both_numbers(self, tiny, change):
        model, processor = tiny
        inputs = speech_inputs(processor, MIXED[0])
        ids = inputs.pop("input_ids")[0].tolist()
        at = ids.index(model.config.audio_token_id)
        ids = ids[:at] + ids[at + 1 :] if change < 0 else [*ids[:at], ids[at], *ids[at:]]
        inputs.pop("attention_mask")
        with pytest.raises(InputError, match=f"{18 + change} audio tokens.* 18 audio features"):
            model(mx.array([ids]), **inputs)

    def test_audio_tokens_without_audio(self, tiny):
        model, _ = tiny
        with pytest.raises(InputError, match=r"2 audio tokens.* 0 audio features"):
            model(mx.array([[5, 4, 4, 6]]))

    def test_audio_embeddings_are_multiplied_too(self, tiny):
        model, processor = tiny
        inputs = speech_inputs(processor, MIXED[0])
        output = model(**inputs, output_hidden_states=True)
        first = inputs["input_ids"][0].tolist().index(model.config.audio_token_id)
        scaled = output.audio_hidden_states[0, 0] * 12
        assert difference(output.hidden_states[0][0, first], scaled) < 1e-5


class TestAdapter:
    def test_on_for_audio_and_off_for_text(self, tiny, monkeypatch):
        model, processor = tiny
        used = []
        original = LoRALinear.__call__

        def spy(layer, x):
            out = original(layer, x)
            used.append(difference(out, layer.base(x)) > 0)
            return out

        monkeypatch.setattr(LoRALinear, "__call__", spy)
        model.generate(**speech_inputs(processor, MIXED[0]), max_new_tokens=2)
        assert used
        assert all(used)
        used.clear()
        model.generate(**processor("good night"), max_new_tokens=2)
        assert used
        assert not any(used)

    def test_only_query_and_value_of_every_layer(self, tiny):
        model, _ = tiny
        names = {n for n, m in model.named_modules() if isinstance(m, LoRALinear)}
        assert names == {
            f"language_model.model.layers.{i}.self_attn.{p}_proj" for i in range(4) for p in "qv"
        }

    def test_base_weights_are_not_copied(self, tiny):
        model, _ = tiny
        base = sum(v.nbytes for k, v in tree_flatten(model.parameters()) if "lora" not in k)
        with use_adapter(True):
            again = sum(v.nbytes for k, v in tree_flatten(model.parameters()) if "lora" not in k)
        stored = mx.load(str(TINY / "model.safetensors"))
        stored |= mx.load(str(TINY / "out_llm.safetensors"))
        # float32 here, bfloat16 there; without BatchNorm's five tensors, with the folded bias
        norms = [k for k in stored if ".batch_norm." in k]
        floats = sum(v.size for k, v in stored.items() if k not in norms)
        folded = sum(stored[k].size for k in norms if k.endswith(".bias"))
        assert base == again == 4 * (floats + folded)

    def test_two_threads_do_not_share_the_switch(self):
        seen = {}

        def other():
            from mlx_speech.layers.lora import _adapter_in_use

            seen["other"] = _adapter_in_use.get()

        with use_adapter(True):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert seen == {"other": None}


class TestDtype:
    def test_bfloat16_stays_bfloat16(self, monkeypatch):
        """One stray float32 array would promote everything behind it."""
        model, processor = load(TINY, dtype=mx.bfloat16)
        outputs = output_dtypes(model, monkeypatch)
        inputs = speech_inputs(processor, *MIXED)
        output = model(**inputs)
        expected = {"GraniteSpeechConformerBlock", "QFormerLayer", "DecoderLayer"}
        assert {name for name, _ in outputs} >= expected
        assert {(n, d) for n, d in outputs if d != mx.bfloat16} == set()
        assert output.logits.dtype == mx.bfloat16
        cache = model.make_cache()
        model(**speech_inputs(processor, MIXED[0]), past_key_values=cache)
        assert {c.state[0].dtype for c in cache} == {mx.bfloat16}

    def test_bfloat16_hears_the_same_words(self):
        model, processor = load(TINY, dtype=mx.bfloat16)
        inputs = speech_inputs(processor, MIXED[0])
        output = model.generate(**inputs, max_new_tokens=30)
        text = processor.decode(
            output[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True
        )
        assert text == "eight three seven seven"

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
    def test_peak_memory_while_loading(self, dtype):
        """One tensor after the other is read and converted: under 1.2 times the weights' size."""
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        model, _ = load(TINY, dtype=dtype)
        size = sum(v.nbytes for _, v in tree_flatten(model.parameters()))
        assert mx.get_peak_memory() - before < 1.2 * size


def test_second_thread_transcribes(tiny):
    """A stream belongs to the thread that made it; nothing here may hold on to one."""
    model, processor = tiny
    inputs = speech_inputs(processor, MIXED[0])
    results = []

    def work():
        fresh, fresh_processor = load(TINY, dtype=mx.float32)
        for m, p in ((model, processor), (fresh, fresh_processor)):
            output = m.generate(**speech_inputs(p, MIXED[0]), max_new_tokens=30)
            results.append(output[0, inputs["input_ids"].shape[1] :].tolist())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [processor.decode(ids, skip_special_tokens=True) for ids in results] == [
        "eight three seven seven"
    ] * 2


def test_cached_steps_equal_one_pass(tiny):
    model, processor = tiny
    inputs = speech_inputs(processor, MIXED[0])
    answer = mx.array([[73, 302, 325, 324, 324]])
    ids = mx.concatenate([inputs.pop("input_ids"), answer], axis=1)
    inputs.pop("attention_mask")
    whole = model(ids, **inputs).logits[0, -6:]
    cache = model.make_cache()
    steps = [model(ids[:, :-5], **inputs, past_key_values=cache).logits[0, -1]]
    for token in answer[0].tolist():
        step = model(mx.array([[token]]), past_key_values=cache, adapter=True)
        steps.append(step.logits[0, -1])
    assert difference(mx.stack(steps), whole) < 1e-3  # logits reach 60
    assert [layer.trim(2) for layer in cache] == [2] * len(cache)
    again = model(answer[:, 3:], past_key_values=cache, adapter=True).logits[0]
    assert difference(again, whole[-2:]) < 1e-3


def test_loss_skips_padding_and_ignored_labels(tiny):
    model, processor = tiny
    rows = [processor(text)["input_ids"][0].tolist() for text in ("seven two nine", "good night")]
    longest = max(map(len, rows))
    ids = mx.array([row + [1] * (longest - len(row)) for row in rows])
    mask = mx.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = mx.where(mx.arange(longest) == 1, -100, ids)  # padding is labelled; only masked
    total, count = 0.0, 0
    for row in rows:
        logits = model(mx.array([row])).logits[0, 1:-1]
        targets = mx.array(row[2:])
        total += nn.losses.cross_entropy(logits, targets, reduction="sum").item()
        count += targets.size
    loss = model(ids, attention_mask=mask, labels=labels).loss
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    ("version", "divisor"),
    [("4.57.6", 8.0), ("5.9.0", 8.0), (None, 8.0), ("5.10.0", 1.0), ("5.23.0", 1.0), ("6.0", 1.0)],
)
def test_logits_are_scaled_as_the_version_that_saved_them(tiny_copy, version, divisor):
    edit_json(tiny_copy / "config.json", transformers_version=version)
    model, processor = load(tiny_copy, dtype=mx.float32)
    inputs = speech_inputs(processor, MIXED[0], instruction=TRANSCRIBE)
    logits = model(**inputs, logits_to_keep=1).logits
    assert mx.abs(logits).max().item() * divisor == pytest.approx(64.32, abs=0.01)


REFERENCE = json.loads((DATA / "reference" / "tiny_granite_reference.json").read_text())


RECORDINGS = sorted(REFERENCE["files"])


#: largest difference allowed at each stage, where the values themselves reach 2, 6, 20, 4 and 90
TOLERANCE = {
    "input_features": 1e-4,
    "encoder": 2e-5,
    "ctc_logits": 1e-4,
    "projector": 2e-5,
    "first_logits": 2e-4,
}


@pytest.mark.parametrize("index", range(3))
def test_every_stage(tiny, golden, index):
    model, processor = tiny
    expected = {stage: golden[f"{index}.{stage}"] for stage in TOLERANCE}
    inputs = speech_inputs(processor, str(golden[f"{index}.file"]))
    assert inputs["input_ids"][0].tolist() == golden[f"{index}.input_ids"].tolist()
    encoded = model.encoder(inputs["input_features"])
    output = model(**inputs, logits_to_keep=1)
    found = {
        "input_features": inputs["input_features"],
        "encoder": encoded.last_hidden_state,
        "ctc_logits": encoded.ctc_logits,
        "projector": output.audio_hidden_states,
        "first_logits": output.logits[:, -1],
    }
    for stage, tolerance in TOLERANCE.items():
        np.testing.assert_allclose(found[stage][0], expected[stage], rtol=0, atol=tolerance)


def new_tokens(model, inputs, **options):
    output = model.generate(**inputs, max_new_tokens=100, **options)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize(
    ("key", "instruction", "options"),
    [
        ("greedy_ids", TRANSCRIBE, {}),
        ("french_ids", "translate the speech to french", {}),
        ("beam4_ids", TRANSCRIBE, {"num_beams": 4}),
    ],
    ids=["english", "french", "beams"],
)
def test_token_ids(tiny, name, key, instruction, options):
    model, processor = tiny
    expected = REFERENCE["files"][name]
    inputs = speech_inputs(processor, name, instruction=instruction)
    if instruction == TRANSCRIBE:
        assert inputs["input_ids"][0].tolist() == expected["prompt_ids"]
    assert new_tokens(model, inputs, **options) == expected[key]


@pytest.mark.parametrize("case", REFERENCE["text_only"], ids=lambda c: c["prompt"])
def test_text_replies(tiny, case):
    """Without audio the adapter is off and the bare language model answers."""
    model, processor = tiny
    chat = [{"role": "user", "content": case["prompt"]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(prompt)
    assert inputs["input_ids"][0].tolist() == case["prompt_ids"]
    assert new_tokens(model, inputs) == case["ids"]


class TestDrafts:
    """`drafts` for recordings of different lengths: ids are those of greedy search."""

    @pytest.mark.parametrize("num_draft_tokens", [None, 3])
    @pytest.mark.parametrize("turn", range(4))
    def test_same_token_ids(self, tiny, num_draft_tokens, turn):
        model, processor = tiny
        batch = speech_inputs(processor, *MIXED)
        length, audio = batch["input_ids"].shape[1], model.config.audio_token_id
        plain = model.generate(**batch, max_new_tokens=60)
        kinds = [
            lambda ids: ids,
            lambda ids: [*ids[:3], audio, *ids[3:]],
            lambda ids: [99 if place % 4 == 1 else token for place, token in enumerate(ids)],
            lambda ids: [*ids[:5], 0, *ids[6:], 10**6, -1],
        ]
        answers = plain[:, length:].tolist()
        drafts = [kinds[(turn + row) % 4](ids) for row, ids in enumerate(answers)]
        options = {"max_new_tokens": 60, "num_draft_tokens": num_draft_tokens}
        assert model.generate(**batch, drafts=drafts, **options).tolist() == plain.tolist()

    def test_each_row_goes_on_with_its_own_recording(self, tiny, monkeypatch):
        """Right drafts, in few passes, with the adapter on; one alone gives the same."""
        model, processor = tiny
        batch = speech_inputs(processor, *MIXED)
        length = batch["input_ids"].shape[1]
        plain = model.generate(**batch, max_new_tokens=60)
        run = prefill(model, **batch, max_new_tokens=60, drafts=plain[:, length:].tolist())
        assert run.sequences(run.rows()).tolist() == plain.tolist()
        statistics = [answer.statistics for answer in run.speculation.answers]
        assert max(s.passes for s in statistics) <= 3
        assert sum(s.tokens for s in statistics) > 30
        alone, cache = speech_inputs(processor, MIXED[1]), model.make_cache()
        answer = model.generate(**alone, drafts=[[]], past_key_values=cache, max_new_tokens=60)
        assert cache[0].adapted
        assert answer[0, alone["input_ids"].shape[1] :].tolist() == plain[1, length:].tolist()
