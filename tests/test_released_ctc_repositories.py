"""Folders laid out like the repositories of NAR and TurboCTC: they load strictly, transcribe, and
convert."""

from __future__ import annotations

import contextlib
import re

import mlx.core as mx
import pytest
from conftest import DATA
from huggingface_hub import ModelCard
from released_nar import granite_nar
from released_turboctc import turboctc

from convert import convert
from convert.check import check
from convert.report import check_table
from mlx_speech import (
    AutoModelForCTC,
    CheckpointError,
    UnsupportedOptionError,
    load,
    load_audio,
    stream_transcribe,
    transcribe,
)
from mlx_speech.cli.released import RELEASED
from mlx_speech.processing.prompts import LANGUAGES
from mlx_speech.processing.request import TranscriptionRequest

RECORDING = DATA / "audio" / "flite_08.flac"
#: what a repository is called -> its content, and how many floating-point tensors it has
REPOSITORIES = {
    "old/granite-speech-4.1-2b-nar": (lambda: granite_nar("old"), 930),
    "middle/granite-speech-4.1-2b-nar": (lambda: granite_nar("middle"), 930),
    "newest/granite-speech-4.1-2b-nar": (lambda: granite_nar("newest"), 930 - 18),
    "granite-speech-5.0-470m-turboctc": (lambda: turboctc(noncommercial=False), 502 + 32),
    "granite-speech-5.0-470m-turboctc-nc": (lambda: turboctc(noncommercial=True), 502 + 32),
}


@pytest.fixture(scope="module", params=REPOSITORIES)
def repository(request, tmp_path_factory):
    """Its name, what is in it, its folder, and what `load` makes of that."""
    make, count = REPOSITORIES[request.param]
    content = make()
    assert content.counted() == (count, 16)
    folder = content.write(tmp_path_factory.mktemp("hub") / request.param)
    return request.param, content, folder, load(folder)


def test_it_transcribes(repository):
    """Whatever the text, and streams the same; words have times."""
    _, _, folder, loaded = repository
    transcript = transcribe(RECORDING, loaded, word_timestamps=True)
    (segment,) = transcript.segments
    assert segment.text
    assert [word.text for word in segment.words] == segment.text.split()
    assert all(0 <= word.start <= word.end <= transcript.duration for word in segment.words)
    deltas = stream_transcribe(RECORDING, loaded)
    assert "".join(delta.text for delta in deltas) == transcript.text
    assert type(AutoModelForCTC.from_pretrained(folder)) is type(loaded[0])


NAR = (
    "attn.rel_pos_emb.weight",
    "layers.0.conv.depth_conv.conv.weight",
    "out_bpe.weight",
    "qformer.layers.1.mlp.fc2.weight",
    "layers.39.mlp.down_proj.weight",
    "embed_tokens.weight",
)
TURBO = (
    "layers.0.self_attn.q_proj.weight",
    "layers.15.conv.depthwise_conv.weight",
    "layers.8.conv.norm.running_mean",
    "layers.3.norm_self_att.bias",
    "encoder.out.weight",
    "encoder.out_mid.weight",
)
#: no part of either
FURTHER = ("encoder.layers.16.ff1.up_proj.weight", "projector.layer_norms.4.weight", "weight")


def test_damage_is_named(repository, tmp_path):
    """A tensor that is missing, of another shape, or not part of the model."""
    name, content, folder, _ = repository
    known = NAR if name.endswith("nar") else TURBO
    cases = [(tensor, array) for tensor in known for array in (None, mx.ones((3, 5, 7)))]
    for number, (tensor, array) in enumerate([*cases, *((name, mx.ones(3)) for name in FURTHER)]):
        with pytest.raises(CheckpointError) as caught:
            load(content.damaged(folder, tmp_path / str(number), tensor, array))
        message = str(caught.value)
        assert "\n" not in message
        # a kernel has its norm in it, and is called otherwise then
        assert re.sub(r"(?<=\.conv\.).*", "", tensor) in message, tensor


def test_from_the_hub(repository, hub):
    """All that loading reads is fetched once, and no code, card or recording beside it."""
    _, _, folder, local = repository
    hub.add(f"ibm-granite/{folder.name}", folder)
    loaded = load(f"ibm-granite/{folder.name}", progress=False)
    held = {file.name for file in folder.iterdir()}
    assert hub.fetched() == sorted(n for n in held if n.endswith((".json", ".safetensors")))
    assert {"sample.wav", "granite_encoder.py"} & held
    assert transcribe(RECORDING, loaded).text == transcribe(RECORDING, local).text


def test_languages_are_those_that_are_listed(repository):
    name, _, _, (_, processor) = repository
    (release,) = (
        r for r in RELEASED["Granite Speech"] if r.repository.endswith(name.rpartition("/")[2])
    )
    spoken = []
    for language in LANGUAGES:
        with contextlib.suppress(UnsupportedOptionError):
            spoken.append(processor.text_language(TranscriptionRequest(language=language)))
    assert sorted(spoken) == sorted(release.languages.split())


def test_logits_along_its_own_draft(repository):
    """Are those of a call."""
    _, _, _, (model, processor) = repository
    inputs = processor.speech_inputs(load_audio(RECORDING))
    output = model(**inputs)
    slots = output.get("input_ids", mx.zeros((1, 0)))[0].tolist()
    draft = [token for token in slots if token != getattr(model.config, "blank_token_id", None)]
    logits = model.logits_along(inputs, draft)
    assert logits.shape == output.logits.shape
    assert mx.allclose(logits, output.logits, atol=1e-3).item()


def test_conversion(repository, tmp_path, capsys):
    """Quantized by parts, checked against the original, and loaded again."""
    name, _, folder, (original, _) = repository
    if name.startswith("old"):
        pytest.skip("its drafts of nonsense take long; converted it is like the others")
    (result,) = convert(folder, tmp_path / "mlx_model", quantize=True, q_group_size=32)
    rows = {row.path: row.settings and row.settings["bits"] for row in result.plan.rows}
    report, same = check(folder, [result.folder, folder], [RECORDING])
    stages = ["encoder", "logits"]
    if name.endswith("nar"):
        stages.insert(1, "projector")
        assert result.recipe == "speech_4bit"
        assert rows["language_model.model.layers.39.mlp.up_proj"] == 4
        assert rows["language_model.model.embed_tokens"] == 4
        assert rows["encoder.out_bpe"] == rows["projector.layer_projector"] == 8
        assert rows["encoder.out"] is rows["encoder.out_mid"] is None
        assert rows["encoder.layers.0.attn.rel_pos_emb"] is None
    else:
        assert result.recipe == "all_8bit"
        assert {*rows.values()} == {8, None}
        assert rows["encoder.layers.9.self_attn.q_proj"] == 8
        assert rows["encoder.layers.9.self_attn.rel_pos_emb"] is None
    total = report.total
    assert list(total.squares) == stages
    assert all(0 < total.relative_error(stage) < 1 for stage in stages)
    assert total.kl > 0 == same.total.kl == same.total.errors
    assert {same.total.relative_error(stage) for stage in stages} == {0}
    assert check_table(report).splitlines()[0].split()[4:] == [*stages, "KL"]
    converted, processor = load(result.folder)
    assert type(converted) is type(original)
    assert transcribe(RECORDING, (converted, processor)).text == report.recordings[0].converted
    card = ModelCard.load(result.folder / "README.md")
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert card.data.license == ("cc-by-nc-sa-4.0" if name.endswith("-nc") else "apache-2.0")
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    for shown, given in (("talk.m4a", RECORDING), ("mlx_model", result.folder)):
        code = code.replace(f'"{shown}"', repr(str(given)))
    exec(code, {})
    assert capsys.readouterr().out == f"{report.recordings[0].converted}\n"
