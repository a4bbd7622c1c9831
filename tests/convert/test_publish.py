"""Conversions from the command line: checked, described, uploaded, and loaded from the Hub."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_nar
import yaml
from conftest import DATA, TINY, edit_json, find_recording
from huggingface_hub import ModelCard

import convert.check
from convert import convert as convert_checkpoint
from convert.card import model_card
from convert.check import CheckReport, Difference, Loaded, RecordingCheck
from convert.cli import main
from mlx_speech import load, transcribe
from mlx_speech.checkpoint.card import source_metadata, write_card

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

GATE = find_recording("synthetic/flite_08.flac")
CARD = """\
---
language: [en, fr]
license: apache-2.0
tags: [speech, mlx]
pipeline_tag: automatic-speech-recognition
base_model: someone/base
library_name: transformers
extra_gated_prompt: Do you agree?
model-index:
- name: x
---
# The original
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The command line in a folder of its own: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convert.check, "bundled_recordings", lambda: [GATE])

    def run(*args) -> tuple[int, str, str]:
        try:
            status = main([str(a) for a in args])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def me(hub, monkeypatch):
    hub.tokens["hf_secret"] = ("me",)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return hub


@pytest.fixture(scope="module")
def conversion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny-4bit"
    (result,) = convert_checkpoint(TINY, folder, quantize=True)
    return result


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


# There and back


def test_round_trip(me, run):
    """The Hub's checkpoint -> 4 and 8 bits -> checked -> the Hub -> loaded by name."""
    original = {file.name: file.read_bytes() for file in TINY.iterdir()}
    me.commit("ibm/tiny", {**original, "README.md": CARD.encode()})
    status, out, err = run(
        "--hf-path", "ibm/tiny", "-q", "--q-bits", "4,8", "--check", "--upload-repo", "me/tiny"
    )
    assert status == 0, err
    assert me.fetched().count("model.safetensors") == 1
    for name in ("me/tiny-4bit", "me/tiny-8bit"):
        assert f"{me.url}/{name}" in out
        assert not me.repositories[name].private
        folder = Path(f"mlx_model{name[-5:]}")
        held = me.files(name)
        assert {k: held[k] for k in held if k != ".gitattributes"} == {
            file.name: file.read_bytes() for file in folder.iterdir()
        }
        shutil.rmtree(folder)
        model, processor = load(name)
        assert transcribe(GATE, (model, processor)).text == "unlock the back gate"
        card = ModelCard(held["README.md"].decode())
        assert card.data.base_model == "ibm/tiny"
        assert card.data.license == "apache-2.0"
        assert f'mlx_speech.load("{name}")' in card.text
        assert "| flite_08.flac | 4 | 0.0 |" in card.text
    assert json.loads(me.files("me/tiny-8bit")["config.json"])["quantization"]["bits"] == 8
    assert out.count("flite_08.flac") == 2


@pytest.mark.parametrize(
    ("checkpoint", "said", "stages"),
    [
        (tiny_nar.checkpoint, "unlock the back gate", "encoder | projector | logits | KL"),
        (lambda _: DATA / "tiny-turboctc", "unlock the back gate", "encoder | logits | KL"),
    ],
    ids=["NAR", "TurboCTC"],
)
def test_round_trip_without_a_decoder(me, run, tmp_path, checkpoint, said, stages):
    """The same of the models that write a text in one pass."""
    original = checkpoint(tmp_path)
    me.commit(
        "ibm/tiny",
        {**{file.name: file.read_bytes() for file in original.iterdir()}, "code.py": b"import os"},
    )
    command = ("--model", "ibm/tiny", "-q", "--check", "--max-wer", "0", "--upload-repo", "me/tiny")
    status, _, err = run(*command)
    assert status == 0, err
    assert "code.py" not in me.fetched()
    assert me.fetched().count("model.safetensors") == 1
    card = ModelCard(me.files("me/tiny")["README.md"].decode())
    assert f"| recording | words | WER % | {stages} |" in card.text
    assert "| flite_08.flac | 4 | 0.0 |" in card.text
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    shutil.rmtree("mlx_model")
    assert transcribe(GATE, load("me/tiny")).text == said


def test_private(me, run):
    status, _, err = run("--model", TINY, "--upload-repo", "me/tiny", "--private", "--quiet")
    assert (status, err) == (0, "")
    assert me.repositories["me/tiny"].private


# What stops it, and when


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--upload-repo", "tiny"],
            "--upload-repo: a Hub repository needs its owner",
        ),
        (["--upload-repo", "me/a b"], "not the name of a Hub repository"),
        (["-q", "--q-bits", "4,8", "--upload-repo", "me/" + "a" * 92], "not the name"),
        (["--private"], "--private is for --upload-repo"),
        (["--max-wer", "3"], "--max-wer is for --check"),
        (["--dry-run", "--check"], "--check does not go with --dry-run"),
        (["--dry-run", "--upload-repo", "me/tiny"], "--upload-repo does not go with --dry-run"),
        (["--check", "--max-wer", "-1"], "not a percentage"),
        (["--check", "--max-wer", "nan"], "not a percentage"),
        (["--upload-repo", str(TINY)], "not the name"),
    ],
)
def test_usage(run, options, said):
    status, out, err = run("--model", TINY, *options)
    assert (status, out) == (2, "")
    assert said in err


def test_not_over_the_original(run):
    status, _, err = run("--model", "me/tiny", "--upload-repo", "me/tiny")
    assert status == 2
    assert "give the result another name" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--check", "none.wav"], "none.wav: no such file to check with"),
        (["--check", str(DATA)], "data is a folder: name the recordings in it"),
        (["--upload-repo", "me/tiny"], "there is none: log in"),
    ],
)
def test_what_cannot_end_well_does_not_begin(hub, run, options, said):
    status, out, err = run("--model", TINY, *options)
    assert (status, out) == (1, "")
    assert said in err
    assert list(Path().iterdir()) == [Path("home")] * Path("home").exists()


def test_text_models_are_not_checked(run, tiny_text):
    status, _, err = run("--model", tiny_text, "--check")
    assert status == 1
    assert "a granite model is not a speech model" in err
    assert list(Path().iterdir()) == []


def test_too_many_word_errors(me, run, monkeypatch):
    """One word of four: said, not uploaded, exit status 1; a higher limit lets it pass."""
    recording = RecordingCheck(
        "gate.wav", "unlock the back gate", "unlock", Difference(4, 1, {}, 1, 5)
    )
    loaded = Loaded(1, 1.0)
    report = CheckReport(loaded, loaded, [recording], "CPU")
    monkeypatch.setattr(convert.check, "check", lambda *args, **options: [report])
    options = ["--model", TINY, "--check", "--upload-repo", "me/tiny"]
    for limit in ([], ["--max-wer", "24.9"]):
        status, out, err = run(*options, "--overwrite", *limit)
        assert status == 1
        shown = limit[-1] if limit else "10"
        assert f"mlx_model: a word error rate of 25.0 % is above --max-wer {shown}, and it" in err
        assert "| gate.wav | 4 | 25.0 |" in Path("mlx_model/README.md").read_text()
        assert "gate.wav" in out
        assert me.repositories == {}
    status, out, err = run(*options, "--overwrite", "--max-wer", "25")
    assert status == 0, err
    assert "me/tiny" in me.repositories


def test_no_words_check_nothing(me, run):
    """What was compared over silence alone is not taken for right, and not uploaded."""
    silence = find_recording("synthetic/silence.flac")
    options = ["--check", str(silence), "--max-wer", "100", "--upload-repo", "me/tiny"]
    status, out, err = run("--model", TINY, *options)
    assert status == 1
    assert "no word of these recordings, which checks nothing, and it was not uploaded: giv" in err
    assert "silence.flac               0" in out
    assert me.repositories == {}


def test_failed_upload_keeps_the_model(me, run):
    """And the other result is uploaded."""
    me.fail("POST */me/tiny-4bit/commit/*", status=403)
    status, out, err = run("--model", TINY, "-q", "--q-bits", "4,8", "--upload-repo", "me/tiny")
    assert status == 1
    assert "me/tiny-4bit: the Hub forbids this (403)" in err
    assert "the model is in mlx_model-4bit, and `hf upload me/tiny-4bit mlx_model-4bit` goes" in err
    assert f"{me.url}/me/tiny-8bit" in out
    assert "model.safetensors" in me.files("me/tiny-8bit")
    assert load("mlx_model-4bit")


# The card


def test_card(conversion):
    card = card_of(conversion.folder)
    assert card.data.to_dict() == {
        "library_name": "mlx",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["mlx"],
    }
    assert card.text.startswith("\n# tiny-4bit\n")
    assert "| encoder | 8 bits, groups of 64" in card.text
    assert "| decoder | 4 bits, groups of 64" in card.text
    assert "`speech_4bit`" in card.text
    assert "The LoRA adapter lies beside" in card.text
    assert "`tiny-granite-speech` names no licence" in card.text
    assert "How close" not in card.text
    before, after = (
        float(x) for x in re.findall(r"\*\*all\*\* \| \| (\S+) MB \| (\S+) MB", card.text)[0]
    )
    weights = (conversion.folder / "model.safetensors").stat().st_size
    assert after == pytest.approx(weights / 1e6, rel=0.02)
    assert before == pytest.approx((TINY / "model.safetensors").stat().st_size / 1e6, rel=0.02)


def test_three_lines_run(conversion, capsys, monkeypatch):
    monkeypatch.chdir(conversion.folder.parent)
    (code,) = re.findall(r"```python\n(.*?)```", card_of(conversion.folder).text, re.DOTALL)
    assert len(code.splitlines()) == 3
    exec(code.replace("talk.m4a", str(GATE)), {})
    assert capsys.readouterr().out == "unlock the back gate\n"


def test_three_lines_of_a_text_model_run(tiny_text, tmp_path, capsys, monkeypatch):
    convert_checkpoint(tiny_text, tmp_path / "text")
    card = card_of(tmp_path / "text")
    assert card.data.pipeline_tag == "text-generation"
    assert "recipe" not in card.text
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(code.replace("=100", "=2"), {})
    assert capsys.readouterr().out


def test_metadata_of_the_source(conversion, tmp_path):
    """What is true of the conversion too; not its evaluations and gates."""
    shutil.copy(TINY / "config.json", tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    card = model_card(conversion, tmp_path)
    assert card.data.to_dict() == {
        "base_model": "someone/base",
        "language": ["en", "fr"],
        "library_name": "mlx",
        "license": "apache-2.0",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["speech", "mlx"],
    }
    assert "That of `tiny-granite-speech`: apache-2.0." in card.text
    assert "# The original" not in card.text


def test_name_of_a_licence(conversion, tmp_path):
    shutil.copy(TINY / "config.json", tmp_path)
    lines = "license: other\nlicense_name: house-rules\nlicense_link: LICENSE"
    (tmp_path / "README.md").write_text(f"---\n{lines}\n---\n")
    card = model_card(conversion, tmp_path)
    assert card.data.license == "other"
    assert (card.data.license_name, card.data.license_link) == ("house-rules", "LICENSE")
    assert "house-rules" in card.text


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"",
        b"# no metadata",
        b"---\n- a list\n---\n",
        b"---\na: [1\n---\n",
        b"\xff\xfe",
        b"---\nlicense:\ntags: speech\n---\n",
        b"---\ntags: [1, {a: b}]\n---\n",
    ],
)
def test_source_card_that_says_nothing(conversion, tmp_path, text):
    shutil.copy(TINY / "config.json", tmp_path)
    if text is not None:
        (tmp_path / "README.md").write_bytes(text)
    card = model_card(conversion, tmp_path)
    assert card.data.tags == ["mlx"]
    assert "license" not in card.data.to_dict()
    assert "names no licence" in card.text
    yaml.safe_load(card.data.to_yaml())


def test_fused_adapter_is_said(tmp_path):
    (result,) = convert_checkpoint(TINY, tmp_path / "fused", quantize=True, fuse_adapter=True)
    text = card_of(result.folder).text
    assert "The LoRA adapter is part of the weights" in text
    assert "beside the weights" not in text


def test_card_is_written_at_once(conversion, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("before")
    monkeypatch.setattr(Path, "replace", None)
    with pytest.raises(TypeError):
        write_card(tmp_path, model_card(conversion, TINY))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"README.md": "before"}


def test_metadata_is_not_taken_from_elsewhere(tmp_path):
    assert source_metadata(tmp_path) == {}
    edit_json(tmp_path / "config.json", license="mit")
    assert source_metadata(tmp_path) == {}
