"""Of several processes the first uses a model, and the others follow: as in one process."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT, edit_json
from ranks import run_bare_ranks
from sharded import decoder_adapter, random_model, save

ADAPTED = ["0.self_attn.q_proj", "1.self_attn.v_proj", "1.self_attn.o_proj", "0.mlp.down_proj"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, dict]:
    """Where models and their adapters are, and whether they take audio."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    # the frequencies of one are of how long each row's prompt is
    long = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 6}
    long |= {"short_factor": [1.0] * 16, "long_factor": [8.0] * 16, "factor": 32.0}
    for family in ("granite", "llama", "jais2", "speech"):
        changes = {"rope_parameters": long} if family == "llama" else {}
        path = save(random_model(family, **changes), folder / family)
        found[family] = {"folder": str(path), "adapter": None, "audio": family == "speech"}
    decoder_adapter(folder / "speech", random_model("speech"), ADAPTED)
    edit_json(folder / "speech" / "config.json", has_lora_adapter=True)
    path = save(random_model("granite"), folder / "4bit", 4, "affine", 32)
    adapter = decoder_adapter(folder / "adapter", random_model("granite"), ADAPTED)
    found["4bit"] = {"folder": str(path), "adapter": str(adapter), "audio": False}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "names"),
    [(2, ["granite", "llama", "jais2", "speech", "4bit"]), (3, ["granite"])],
)
def test_as_in_one_process(cases, tmp_path, size, names):
    """Each way to generate, caches that are used again, threads, and Ctrl-C at any time."""
    wanted = {name: {**cases[name], "every": size == 2 and name == "granite"} for name in names}
    (tmp_path / "cases.json").write_text(json.dumps(wanted))
    script = str(ROOT / "tests" / "led_rank.py")
    ranks = run_bare_ranks([script, str(tmp_path / "cases.json")], size, tmp_path)
    assert [(status, said) for status, _, said in ranks] == [(0, "")] * size
    found, *followed = [json.loads(printed) for _, printed, _ in ranks]
    messages = found.pop("refused")
    assert found == {name: {} for name in names}
    assert followed == [[case["folder"] for case in wanted.values()]] * (size - 1)
    starts = ["a cache is not kept in a file", "kv_group_size 64 does not divide", "the layers of"]
    for message, start in zip(messages, starts, strict=True):
        assert message.startswith(start)
