"""Numbers for Prometheus."""

from __future__ import annotations

import re
import time

import httpx
import pytest
from conftest import DATA
from realtime_client import RealtimeClient
from serving import client_of, serving
from websockets.exceptions import InvalidStatus

import mlx_speech

SHORT = DATA / "audio" / "flite_11.flac"
LINE = re.compile(r'mlx_speech_(\w+)(?:\{(\w+="[^"]*"(?:,\w+="[^"]*")*)\})? (\S+)')


def read(url):
    """What it says, by name and labels; every line is of the format."""
    response = httpx.get(f"{url}/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    told, kinds = {}, {}
    for line in response.text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kinds[name] = line.split(" ")
        elif not line.startswith("# HELP "):
            name, labels, value = LINE.fullmatch(line).groups()
            assert (kinds[f"mlx_speech_{name}"] == "counter") is name.endswith("_total")
            told[name if labels is None else f"{name} {labels}"] = float(value)
    return told


def test_counts(tiny):
    expected = mlx_speech.transcribe(SHORT, tiny)
    route = 'route="/v1/audio/transcriptions",method="POST"'
    with serving(lambda name: tiny) as url, client_of(url) as client:
        before = read(url)
        assert before["audio_seconds_total"] == before["speed"] == 0
        assert before['model_loaded model="tiny"'] == 0
        client.audio.transcriptions.create(file=SHORT, model="tiny")
        list(client.audio.transcriptions.create(file=SHORT, model="tiny", stream=True))
        client.audio.transcriptions.create(file=SHORT, model="tiny", response_format="srt")
        httpx.post(f"{url}/v1/audio/transcriptions")
        httpx.get(f"{url}/v1/models/tiny")
        httpx.get(f"{url}/v1/models/other")
        httpx.get(f"{url}/nothing")
        told = read(url)
    assert told[f'requests_total {route},status="200"'] == 3
    assert told[f'requests_total {route},status="415"'] == 1
    one = 'route="/v1/models/{name:path}",method="GET"'
    assert told[f'requests_total {one},status="200"'] == 1
    assert told[f'requests_total {one},status="404"'] == 1
    assert told['requests_total route="other",method="GET",status="404"'] == 1
    assert told[f"request_seconds_total {route}"] > 0
    assert told["audio_seconds_total"] == pytest.approx(3 * expected.duration)
    assert told["speed"] == pytest.approx(told["audio_seconds_total"] / told["busy_seconds_total"])
    assert told["draft_tokens_total"] == 3 * expected.drafts.drafted > 0
    assert told["draft_tokens_accepted_total"] == 3 * expected.drafts.accepted > 0
    assert (told["requests_in_progress"], told["requests_limit"]) == (0, 64)
    assert told['model_loaded model="tiny"'] == 1
    assert told["memory_peak_bytes"] >= told["memory_bytes"] > 1e6


def test_names_are_escaped(tiny):
    with serving(lambda name: tiny, ['a"b\\c']) as url:
        assert r'mlx_speech_model_loaded{model="a\"b\\c"} 0' in httpx.get(f"{url}/metrics").text


def test_websockets_count(tiny):
    route = 'requests_total route="/v1/realtime",method="WEBSOCKET"'
    with serving(lambda name: tiny) as url:
        with RealtimeClient(url):
            pass
        with pytest.raises(InvalidStatus):
            RealtimeClient(url, "intent=other")
        deadline = time.monotonic() + 30
        while f'{route},status="101"' not in (told := read(url)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert told[f'{route},status="101"'] == told[f'{route},status="400"'] == 1
