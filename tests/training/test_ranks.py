"""Fine-tuning by two ranks: the steps of one process, and what becomes of it if one is lost."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, TINY
from ranks import be_impatient, check_loss, finished, run_ranks, started_ranks

from mlx_speech.errors import InputError
from mlx_speech.training.data import load_data
from mlx_speech.training.finetune import finetune
from mlx_speech.training.options import FineTuneOptions
from mlx_speech.training.ranks import Ranks
from mlx_speech.training.state import STATE_FILE
from mlx_speech.training.target import check_target
from mlx_speech.training.trainable import Trainable

from .conftest import write_jsonl
from .runs import TEXTS, Told, fresh

#: five rows in batches of four: of the last one, the other rank has none
ROWS = [{"audio": str(DATA / "audio" / name), "text": text} for name, text in TEXTS.items()]
ROWS.append({"audio": str(DATA / "audio" / "espeak_01.flac"), "text": "no"})
EXACT = {
    "fine_tune_type": "projector",
    "train_ctc_head": True,
    "optimizer": "sgd",
    "optimizer_config": {"momentum": 0.9},
    "learning_rate": 0.01,
    "steps_per_report": 1,
    "batch_size": 4,
    "iters": 2,
    "seed": 2,
}
RANDOM = {
    "num_layers": 1,
    "lora_dropout": 0.2,
    "spec_augment": True,
    "learning_rate": 1e-3,
    "steps_per_report": 1,
    "batch_size": 2,
    "iters": 3,
    "val_batches": 0,
}

#: what every rank does; the second has folders of its own, as on another machine
CODE = """
import hashlib, json, sys
from pathlib import Path

import mlx.core as mx
from mlx_speech import MlxSpeechError
from mlx_speech.training.data import load_data
from mlx_speech.training.finetune import finetune
from mlx_speech.training.options import FineTuneOptions
from mlx_speech.training.trainable import Trainable
from training.runs import Told, fresh

rank, data, folder = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
exact, random = json.loads(sys.argv[4])


class Hashed(Told):
    # before anything is saved, or given to others
    def __init__(self, model):
        super().__init__()
        self.model, self.digests, self.asked = model, [], 0

    def on_train_loss_report(self, report):
        super().on_train_loss_report(report)
        digest = hashlib.sha256()
        for name, value in sorted(trained.weights().items()):
            digest.update(memoryview(value))
        self.digests.append(digest.hexdigest())

    def one_stops(self):
        self.asked += 1
        return rank == 1 and self.asked == 3


keep = Trainable.__init__
def noted(self, *args):
    global trained
    trained = self
    keep(self, *args)
Trainable.__init__ = noted


def run(name, given, read=data, one_stops=False, changed=lambda model: None, **more):
    options = FineTuneOptions(adapter_path=str(folder / name / str(rank)), **given, **more)
    model, processor = fresh()
    changed(model)
    told = Hashed(model)
    found = load_data(read, model, processor, options)
    for split in filter(None, (found.train, found.valid)):
        split.fill_cache()
    stop = told.one_stops if one_stops else None
    result = finetune(model, processor, *found[:2], options, callback=told, stop=stop)
    return {
        "steps": result.steps,
        "stopped": result.stopped,
        "losses": [report.loss for report in told.losses],
        "validations": [[v.step, v.loss, v.word_error_rate, v.words] for v in result.validations],
        "saved": told.saved,
        "digests": told.digests,
    }


def refused(**how):
    try:
        run("refused", exact, **how)
    except MlxSpeechError as error:
        return str(error)


def another(model):
    bias = model.language_model.model.norm.weight
    model.language_model.model.norm.weight = bias + rank * 1e-3


mode = Trainable.train
Trainable.train = lambda self, given=True: mode(self, False)
said = {"exact": run("exact", exact)}
Trainable.train = mode
said["whole"] = run("whole", random)
said["half"] = run("parts", random, one_stops=True)
said["rest"] = run("parts", random, resume=True)
said["refused"] = [
    refused(save_every=7 + rank),
    refused(changed=another),
    refused(read=data / f"other{rank}"),
]
print(json.dumps(said))
"""


def write(folder, rows=ROWS):
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "valid.jsonl", ROWS[1:4])
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What the ranks say, and the folder of what they wrote."""
    folder = tmp_path_factory.mktemp("two")
    data = write(folder / "data")
    for rank in range(2):
        write(data / f"other{rank}", [{**ROWS[0], "text": f"{rank}"}, *ROWS[1:]])
    command = ["-c", CODE, "{rank}", str(data), str(folder), json.dumps([EXACT, RANDOM])]
    results = run_ranks(command, 2, folder)
    assert [(status, said) for status, _, said in results] == [(0, "")] * 2
    return [json.loads(printed) for _, printed, _ in results], folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The exact run in this process: what was told, and the folder."""
    folder = tmp_path_factory.mktemp("one")
    options = FineTuneOptions(adapter_path=str(folder), **EXACT)
    (model, processor), told = fresh(), Told()
    data = load_data(write(folder / "data"), model, processor, options)
    with pytest.MonkeyPatch.context() as patched:
        mode = Trainable.train
        patched.setattr(Trainable, "train", lambda self, given=True: mode(self, False))
        finetune(model, processor, *data[:2], options, callback=told)
    return told, folder


def test_steps_are_those_of_one_process(one, two):
    """Gradients and losses of labels and letters, though shares are unequal, and one has none; and
    what is validated, where a share is half the other."""
    told, folder = one
    said = two[0][0]["exact"]
    assert (said["steps"], said["saved"]) == (2, told.saved)
    expected = [report.loss for report in told.losses]
    assert len({round(loss, 1) for loss in expected}) == 2
    np.testing.assert_allclose(said["losses"], expected, rtol=1e-5)
    measured = [[v.step, v.loss, v.word_error_rate, v.words] for v in told.validations]
    np.testing.assert_allclose(said["validations"], measured, rtol=1e-5)
    ours, theirs = (mx.load(str(f / STATE_FILE)) for f in (two[1] / "exact" / "0", folder))
    gradients = [name for name in theirs if name.startswith("optimizer.") and theirs[name].ndim]
    assert len(gradients) > 20
    assert any("encoder.out" in name for name in gradients)
    scale = max(np.linalg.norm(np.array(theirs[name])) for name in gradients)
    for name in gradients:
        expected, found = np.array(theirs[name]), np.array(ours[name])
        assert np.linalg.norm(found - expected) < 1e-5 * max(np.linalg.norm(expected), scale / 100)


def test_all_have_the_same(two):
    """After each step, dropout and masks of their own included; and one alone writes."""
    (first, other), folder = two
    for name in ("exact", "whole", "half", "rest"):
        saved = [first[name].pop("saved"), other[name].pop("saved")]
        assert first[name] == other[name]
        assert (len(saved[0]), saved[1]) == (1, [])
        first[name]["saved"] = saved[0]
    names = {"adapter_config.json", "adapter_model.safetensors", STATE_FILE}
    assert {path.name for path in (folder / "whole" / "0").iterdir()} == {*names, "cache"}
    assert [path.name for path in (folder / "whole" / "1").iterdir()] == ["cache"]
    # what the first knows of recordings is of all; of features nothing is kept, and of what is
    # validated with each has its share
    kept = [sorted((folder / "whole" / rank / "cache").iterdir()) for rank in "01"]
    assert [p.name for p in kept[0] if p.suffix == ".json"] == ["recordings-16000.json"]
    assert {p.suffix for p in kept[1]} == {".safetensors"}
    assert (len(kept[0]), len(kept[1])) == (3, 2)


def test_resumed(two):
    """Exactly; where one alone was asked to stop, all did, and one alone has what to go on with."""
    said = two[0][0]
    whole, half, rest = (said[name] for name in ("whole", "half", "rest"))
    assert (half["stopped"], half["steps"], rest["steps"]) == (True, 2, 3)
    assert half["losses"] + rest["losses"] == whole["losses"]
    assert half["digests"] + rest["digests"] == whole["digests"]
    assert len(set(whole["digests"])) == 3


def test_what_is_random_is_another_on_each_rank(two):
    random = mx.load(str(two[1] / "whole" / "0" / STATE_FILE))["random"]
    assert random.shape == (2, 2)
    assert random[0].tolist() != random[1].tolist()


def test_ranks_that_differ(two):
    (first, other), _ = two
    assert first["refused"] == other["refused"]
    options, model, data = first["refused"]
    assert options == "save_every is another on rank 1 (8) than on rank 0 (7)"
    assert model.startswith("the model is another on rank 1 (")
    assert data.startswith("the data is another on rank 1 (")


def test_resumed_by_another_number(two):
    model, processor = fresh()
    folder = two[1] / "whole" / "0"
    options = FineTuneOptions(adapter_path=str(folder), **{**RANDOM, "iters": 6}, resume=True)
    data = load_data(two[1] / "data", model, processor, options)
    with pytest.raises(InputError, match=r"^number of ranks is 1, but was 2 in the training that"):
        finetune(model, processor, data.train, None, options)


def test_a_batch_that_cannot_be_shared():
    ranks = Ranks(SimpleNamespace(rank=0, size=3))
    with pytest.raises(InputError, match=r"^batch_size is 4, but must be a multiple of 3, as each"):
        ranks.check_options(FineTuneOptions())


#: a command line of which the second rank does something in its third step
LOST = """
import os, sys
import impatient
from mlx_speech.cli.finetune import main
from mlx_speech.training import finetune

told = finetune._Losses.on_train_loss_report

def tell(self, info):
    told(self, info)
    if self.step == 3 and int(sys.argv[1]) == 1:
        os.kill(os.getpid(), int(sys.argv[2]))

finetune._Losses.on_train_loss_report = tell
sys.exit(main(sys.argv[3:]))
"""


def command_line(folder, *more: str) -> list[str]:
    return [
        *("--model", str(TINY), "--data", str(folder / "data"), "--val-batches", "0"),
        *("--adapter-path", str(folder / "adapter"), "--fine-tune-type", "projector"),
        *("--steps-per-report", "1", "--save-every", "2", "--iters", "100000", *more),
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_is_lost(tmp_path, number):
    """Killed, or silent: the other ends with one line, and what was saved stays."""
    write(tmp_path / "data")
    command = ["-c", LOST, "{rank}", str(int(number)), *command_line(tmp_path, "--quiet")]
    with started_ranks(command, 2, tmp_path) as processes:
        pid = processes[1].pid
        how = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert how.si_status == number
        be_impatient(tmp_path)
        check_loss(finished(processes[0]), 0)
    _, about = mx.load(str(tmp_path / "adapter" / STATE_FILE), return_metadata=True)
    assert json.loads(about["training"])["step"] == 2
    check_target(tmp_path / "adapter", overwrite=True)


def test_ctrl_c_at_one(tmp_path):
    """Ends all after the same step, with all of it saved."""
    write(tmp_path / "data")
    command = ["-c", LOST, "{rank}", str(int(signal.SIGINT)), *command_line(tmp_path)]
    (status, printed, said), other = run_ranks(command, 2, tmp_path)
    assert (status, printed) == (130, f"{tmp_path / 'adapter'}\n")
    assert "interrupted: step 3 of 100000 is saved in" in said
    assert other == (0, "", "")
    _, about = mx.load(str(tmp_path / "adapter" / STATE_FILE), return_metadata=True)
    assert json.loads(about["training"])["step"] == 3


def test_bad_rows_are_listed_once(tmp_path):
    write(tmp_path / "data", [ROWS[0], {"audio": "none.wav", "text": "x"}])
    command = ["-m", "mlx_speech.finetune", *command_line(tmp_path)]
    (status, printed, said), other = run_ranks(command, 2, tmp_path)
    assert (status, printed) == (1, "")
    listed, error = said.splitlines()
    assert "train.jsonl:2: " in listed
    assert error.startswith("error: 1 of 5 rows cannot be used: ")
    assert other == (0, "", "")
