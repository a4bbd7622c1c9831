"""A server of several processes, as `mlx.launch` starts them: answers are those of one process."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import media
import numpy as np
import pytest
import soundfile
from commands import environment
from conftest import DATA, TINY, TINY_S2T, edit_json
from ranks import be_impatient, check_loss, finished, run_ranks, started_ranks
from serving import serving

AUDIO = DATA / "audio"
LONG = AUDIO / "long.flac"
ROUTE = "/v1/audio/transcriptions"
SERVE = ["-m", "mlx_speech.serve", "--port", "0"]
IMPATIENT = """
import impatient, sys
from mlx_speech.cli.serve import main
sys.exit(main(sys.argv[1:]))
"""


class Served:
    """Ranks of a server, of which the first has said where it is."""

    def __init__(self, processes):
        self.processes = processes
        for line in processes[0].stderr:
            if found := re.match(r"serving .* at (http://127.*:\d+)$", line):
                break
        assert found, processes[0].poll()
        self.url = found[1]

    def metric(self, name):
        """Of each rank."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.findall(rf'mlx_speech_{name}{{rank="(\d)"}} (\S+)', text)
        assert [int(rank) for rank, _ in found] == list(range(len(self.processes)))
        return [float(value) for _, value in found]

    def signal(self, number):
        """To all, as from a terminal."""
        for process in self.processes.values():
            process.send_signal(number)

    def ended(self):
        """Exit status, and what was said, of each."""
        ended = [finished(process) for process in self.processes.values()]
        assert {printed for _, printed, _ in ended} == {""}
        return [(status, said) for status, _, said in ended]


@contextmanager
def served(size, folder, *args, command=SERVE):
    command = [*command, *map(str, args or ("--model", TINY))]
    with started_ranks(command, size, folder, env=environment()) as processes:
        yield Served(processes)


def post(url, path, route=ROUTE, **fields):
    """Status and body of an answer, without how what is decoded together is rounded."""
    with open(path, "rb") as file:
        answer = httpx.post(url + route, data=fields, files={"file": ("a", file)}, timeout=120)
    body = re.sub(r'("(avg_logprob|logprob)": ?)([-+.e\d]+)', _rounded, answer.text)
    if "stream" in fields and answer.status_code == 200:
        body = _joined([json.loads(line[6:]) for line in body.splitlines() if line])
    return answer.status_code, answer.headers["content-type"], body


def _rounded(match):
    return f"{match[1]}{round(float(match[3]), 2) + 0.0}"


def _joined(events):
    """The text between two segments comes in any number of pieces."""
    joined, text = [], ""
    for event in events:
        if event["type"] == "transcript.text.delta":
            text += event["delta"]
        else:
            joined.append((text, event))
            text = ""
    return joined


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Of several lengths and kinds."""
    folder = tmp_path_factory.mktemp("audio")
    samples, rate = soundfile.read(LONG, dtype="float32")
    soundfile.write(folder / "talk.flac", samples[: 13 * rate], rate)
    soundfile.write(folder / "silence.wav", np.zeros(32000), 16000)
    quiet = np.random.default_rng(1).normal(0, 0.002, 4 * rate).astype(np.float32)
    media.make(folder / "tracks.mka", quiet, samples[: 4 * rate], rate=rate)
    (folder / "damaged.flac").write_bytes(LONG.read_bytes()[:200_000])
    (folder / "text.wav").write_text("no audio")
    shutil.copy(AUDIO / "flite_11.flac", folder / "short.flac")
    return folder


#: recording, fields
ASKED = [
    ("talk.flac", {}),
    ("talk.flac", {"response_format": "srt"}),
    ("short.flac", {"response_format": "vtt"}),
    ("short.flac", {"response_format": "text"}),
    ("talk.flac", {"response_format": "verbose_json", "timestamp_granularities[]": "word"}),
    ("talk.flac", {"response_format": "verbose_json", "stream": "true"}),
    ("short.flac", {"stream": "true"}),
    ("short.flac", {"include[]": "logprobs"}),
    ("silence.wav", {"response_format": "verbose_json"}),
    ("tracks.mka", {"response_format": "verbose_json"}),
    ("talk.flac", {"chunking_strategy": "server_vad", "response_format": "srt"}),
    ("short.flac", {"route": "/v1/audio/translations"}),
    ("talk.flac", {"route": "/v1/audio/translations", "target_language": "fr"}),
    ("short.flac", {"model": TINY_S2T.name}),
    ("short.flac", {"model": TINY_S2T.name, "stream": "true"}),
    ("damaged.flac", {}),
    ("text.wav", {"stream": "true"}),
    ("short.flac", {"unknown": "1"}),
    ("short.flac", {"language": "xx"}),
    ("short.flac", {"response_format": "diarized_json"}),
    ("short.flac", {"model": "none"}),
]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A server of three ranks and of two models."""
    models = "--model", TINY, "--model", TINY_S2T
    with served(3, tmp_path_factory.mktemp("ranks"), *models) as server:
        yield server


@pytest.fixture(scope="module")
def one(tiny, tiny_s2t):
    """The same of one process."""
    models = {TINY.name: tiny, TINY_S2T.name: tiny_s2t}
    with serving(models.__getitem__, list(models)) as url:
        yield url


@pytest.mark.slow
class TestThree:
    def test_answers_are_those_of_one_process(self, three, one, recordings):
        def answer(url, case):
            name, fields = case
            return post(url, recordings / name, **fields)

        expected = [answer(one, case) for case in ASKED]
        statuses = [status for status, *_ in expected]
        assert statuses == [200] * 15 + [400] * 5 + [404]
        before = three.metric("rank_recordings_total")
        cases = [*ASKED, *reversed(ASKED)]
        with ThreadPoolExecutor(12) as threads:
            found = list(threads.map(lambda case: answer(three.url, case), cases))
        for case, told, right in zip(cases, found, [*expected, *reversed(expected)], strict=True):
            assert told == right, case
        given = np.subtract(three.metric("rank_recordings_total"), before)
        assert given.sum() == 2 * 15
        assert given.min() >= 3
        assert three.metric("rank_audio_seconds") == [0, 0, 0]
        assert httpx.get(f"{three.url}/health").json()["ranks"] == 3

    def test_who_goes_away_frees_its_rank(self, three, recordings):
        """The longest recordings go to one rank each, and are given up on all of them."""
        with ThreadPoolExecutor(3) as threads:
            gone = list(threads.map(lambda _: self._go_away(three.url), range(3)))
        assert gone == ["data"] * 3
        deadline = time.monotonic() + 60
        while any(three.metric("rank_audio_seconds")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert post(three.url, recordings / "short.flac")[0] == 200

    def _go_away(self, url):
        with (
            open(LONG, "rb") as file,
            httpx.stream(
                "POST", url + ROUTE, data={"stream": "true"}, files={"file": file}, timeout=60
            ) as answer,
        ):
            return next(answer.iter_text())[:4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_ranks_finish(tmp_path, number):
    samples, rate = soundfile.read(LONG)
    soundfile.write(tmp_path / "end.flac", samples[-51 * rate :], rate)
    with served(2, tmp_path) as server, ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(post, server.url, tmp_path / "end.flac") for _ in range(2)]
        while sum(server.metric("rank_audio_seconds")) < 100:
            time.sleep(0.02)
        server.signal(number)
        texts = {json.loads(answer.result()[2])["text"][-18:] for answer in answers}
        assert texts == {"open the back gate"}
        finishing = "finishing what is being worked on; Ctrl-C again ends at once\n"
        assert server.ended() == [(0, finishing), (0, "")]


class TestFaults:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
    def test_a_rank_that_dies_or_hangs(self, tmp_path, number):
        """What is worked on has an error, wherever it was; all end."""
        command = ["-c", IMPATIENT, "--port", "0"]
        with served(3, tmp_path, command=command) as server, ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(post, server.url, LONG) for _ in range(4)]
            while sum(server.metric("rank_audio_seconds")) < 400:
                time.sleep(0.02)
            server.processes.pop(2).send_signal(number)
            be_impatient(tmp_path)
            for answer in answers:
                status, _, body = answer.result()
                assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
            # whoever notices first may end before the other does, which then is told so
            for rank, process in server.processes.items():
                check_loss(finished(process), rank)

    def test_rank_0_that_dies(self, tmp_path):
        with served(2, tmp_path, command=["-c", IMPATIENT, "--port", "0"]) as server:
            server.processes.pop(0).kill()
            be_impatient(tmp_path)
            check_loss(finished(server.processes[1]), 1)

    def test_another_model(self, tmp_path):
        """Of the same name."""
        for rank in range(2):
            shutil.copytree(TINY, tmp_path / str(rank) / "tiny")
        edit_json(tmp_path / "1" / "tiny" / "generation_config.json", note="another")
        command = [*SERVE, "--model", str(tmp_path / "{rank}" / "tiny")]
        results = run_ranks(command, 2, tmp_path, env=environment())
        assert [status for status, *_ in results] == [1, 1]
        for rank, (_, _, said) in enumerate(results):
            who = "rank 1: " if rank else ""
            wrong = "generation_config.json of tiny is another on rank 1"
            assert re.fullmatch(rf"error: {who}{wrong} \(\w+\) than on rank 0 \(\w+\)\n", said)

    def test_a_rank_that_cannot_load_its_model(self, tmp_path):
        for each in range(2):
            shutil.copytree(TINY, tmp_path / str(each) / "tiny")
        (tmp_path / "1" / "tiny" / "model.safetensors").unlink()
        command = [*SERVE, "--model", str(tmp_path / "{rank}" / "tiny")]
        results = run_ranks(command, 2, tmp_path, env=environment())
        for each, (status, printed, said) in enumerate(results):
            who = f"rank {each}: " if each else ""
            failed = "" if each else "rank 1 has failed: "
            assert (status, printed) == (1, "")
            assert said.startswith(f"error: {who}{failed}")
            assert "no model.safetensors" in said
            assert said.count("\n") == 1

    def test_a_port_that_is_taken(self, tmp_path, one):
        command = [*SERVE[:-1], one.rpartition(":")[2], "--model", str(TINY)]
        results = run_ranks(command, 2, tmp_path, env=environment())
        for each, (status, _, said) in enumerate(results):
            who = "rank 1: rank 0 has failed: " if each else ""
            assert status == 1
            assert said.startswith(f"error: {who}cannot serve at '127.0.0.1', port ")
