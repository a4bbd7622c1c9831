"""The bundled checkpoint against what the reference implementation made of it (float32)."""

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, TRANSCRIBE, find_recording, speech_inputs

from mlx_speech import load_audio

REFERENCE = json.loads((DATA / "reference" / "tiny_granite_reference.json").read_text())
RECORDINGS = sorted(REFERENCE["files"])
FEATURES = dict(np.load(DATA / "reference" / "granite_features.npz"))

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


@pytest.mark.parametrize("name", sorted({n.rsplit(".", 1)[0] for n in FEATURES}))
def test_features_of_every_recording(tiny, name):
    """A fixed sample of each recording's features; all of them are compared in tests/parity."""
    _, processor = tiny
    audio = load_audio(find_recording(name))
    features = np.array(processor.audio_processor(audio)["input_features"][0])
    assert features.shape == tuple(FEATURES[f"{name}.shape"])
    stride = int(FEATURES[f"{name}.stride"])
    found = features.reshape(-1)[::stride]
    np.testing.assert_allclose(found, FEATURES[f"{name}.sample"], rtol=0, atol=1e-4)


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


@pytest.mark.parametrize("name", RECORDINGS)
def test_ctc_head(tiny, name):
    """Greedy text of the character head: ids are character codes, 0 is the blank."""
    model, processor = tiny
    inputs = speech_inputs(processor, name)
    ids = mx.argmax(model.encoder(inputs["input_features"]).ctc_logits[0], axis=-1).tolist()
    kept = [i for previous, i in zip([0, *ids], ids, strict=False) if i not in (0, previous)]
    assert "".join(map(chr, kept)).strip() == REFERENCE["files"][name]["ctc"]


@pytest.mark.parametrize("case", REFERENCE["text_only"], ids=lambda c: c["prompt"])
def test_text_replies(tiny, case):
    """Without audio the adapter is off and the bare language model answers."""
    model, processor = tiny
    prompt = processor.apply_chat_template([{"role": "user", "content": case["prompt"]}])
    inputs = processor(prompt)
    assert inputs["input_ids"][0].tolist() == case["prompt_ids"]
    assert new_tokens(model, inputs) == case["ids"]
