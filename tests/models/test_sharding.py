"""Layers that processes share: what they compute together is what one computes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters import train
from conftest import ROOT, edit_json
from ranks import run_bare_ranks
from sharded import decoder_adapter, random_model, save
from tiny_nar import checkpoint as nar_checkpoint

#: bits, mode and group size of layers, by what a case is called
QUANTIZED = {
    "4bit": (4, "affine", 32),
    "8bit": (8, "affine", 32),
    "mxfp4": (4, "mxfp4", 32),
    "mxfp8": (8, "mxfp8", 32),
    "nvfp4": (4, "nvfp4", 16),
}
ALL = [f"self_attn.{name}_proj" for name in "qkvo"] + [
    f"mlp.{n}_proj" for n in ("gate", "up", "down")
]
#: as the adapters of Granite Speech 3.x are; and on what is summed, too
QUERIES_VALUES = [f"{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"]
EVERYWHERE = [f"{layer}.{name}" for layer in (0, 1) for name in ALL]

#: three processes on two cores are slow
OF_THREE = ["granite", "jais2", "granite 4bit, adapter", "speech, two adapters"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, dict]:
    """Where models and their adapters are, and whether audio is fed to them."""
    folder = tmp_path_factory.mktemp("models")
    found = {}

    def case(name, family, adapter=None, quantized=(), own=None):
        """`own`: layers that an adapter in the checkpoint itself is on."""
        model, path = random_model(family), folder / name
        save(model, path, *quantized)
        if own is not None:
            decoder_adapter(path, random_model(family), own)
            edit_json(path / "config.json", has_lora_adapter=True)
        audio = family == "speech"
        found[name] = {"folder": str(path), "adapter": adapter and str(adapter), "audio": audio}

    for family in ("granite", "llama", "jais2"):
        case(family, family)
    (folder / "nar").mkdir()
    nar_checkpoint(folder / "nar")
    for name, quantized in QUANTIZED.items():
        case(f"jais2 {name}", "jais2", quantized=quantized)
    of_text = decoder_adapter(folder / "text", random_model("granite"), EVERYWHERE)
    case("granite, adapter", "granite", of_text)
    case("granite 4bit, adapter", "granite", of_text, QUANTIZED["4bit"])
    case("speech", "speech", own=QUERIES_VALUES)
    everywhere = decoder_adapter(folder / "more", random_model("speech"), EVERYWHERE, seed=3)
    case("speech, two adapters", "speech", everywhere, own=QUERIES_VALUES)
    trained, whole = random_model("speech"), ["1", "0.mlp.down_proj", "0.self_attn"]
    train(trained, [f"language_model.model.layers.{name}" for name in whole], step=0.02)
    saved = decoder_adapter(folder / "saved", trained, ["0.mlp.up_proj"], whole)
    case("speech 4bit, layers that were trained", "speech", saved, QUANTIZED["4bit"])
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_what_processes_compute_together(cases, tmp_path, size):
    """Within 1e-4 of one process, with the same tokens; two sums a layer are all they exchange."""
    wanted = cases if size == 2 else {name: cases[name] for name in OF_THREE}
    (tmp_path / "cases.json").write_text(json.dumps(wanted))
    script = str(ROOT / "tests" / "sharded_rank.py")
    ranks = run_bare_ranks([script, str(tmp_path / "cases.json")], size, tmp_path)
    assert [status for status, *_ in ranks] == [0] * size, "\n".join(said for *_, said in ranks)
    found = json.loads(ranks[0][1])
    calls = found.pop("calls")
    assert found.keys() == wanted.keys()
    for name, case in found.items():
        assert 1 < case["logits"] < 100, name
        assert case["difference"] < 1e-4, name
        assert all(case[ids] for ids in ("likeliest", "greedy")), name
        assert case["sums"] == 2, name
        assert case["ranks differ"] == 0, name
        assert case["adapter off"] < 1e-4, name
        assert case["adapter does"] > 0.1 or "granite, adapter" not in name, name
    compared = ["boolean mask", "added mask", "hidden states", "cached", "an editor"]
    for name in (*compared, "followed", "followed, cached"):
        assert calls[name] < 1e-4, name
    assert calls["beams"]
    assert calls["heads in the cache"] == 6 // size
    wrong = f"past_key_values has 1 rows and 6 heads, but 1 and {6 // size} are needed"
    assert calls["cache of one process"] == wrong
    assert calls["attentions"].startswith("output_attentions is for a model in one process")
    assert calls["again"] == "the layers of this model are shared out already"
    assert calls["save"].startswith("this process has a part of the model only")
    assert not list(Path(cases["granite"]["folder"]).parent.glob("saved-*/*"))
