"""Connections, and what the process may do."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from realtime_client import RealtimeClient
from serving import serving

from mlx_speech.server import run

HEAD = b"GET /health HTTP/1.1\r\nHost: a\r\n"


class TestIdleConnections:
    @pytest.fixture
    def url(self, tiny, monkeypatch):
        monkeypatch.setattr(run, "_HEAD_SECONDS", 0.2)
        with serving(lambda name: tiny) as url:
            yield url

    @pytest.mark.parametrize("asked", [False, True])
    @pytest.mark.parametrize("sent", [b"", HEAD])
    def test_end(self, url, asked, sent):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=20) as client:
            if asked:
                client.sendall(HEAD + b"\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            client.sendall(sent)
            while client.recv(1000):
                pass

    def test_and_no_others(self, url, monkeypatch):
        with RealtimeClient(url) as client:
            assert not threading.Event().wait(0.4)
            assert client.update()["type"] == "session.updated"

    def test_nor_those_that_wait_for_an_answer(self, tiny, monkeypatch):
        monkeypatch.setattr(run, "_HEAD_SECONDS", 0.2)

        def slow(name):
            assert not threading.Event().wait(0.4)
            return tiny

        with serving(slow) as url:
            question = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
            response = httpx.post(f"{url}/v1/chat/completions", json=question, timeout=60)
            assert response.status_code == 200


def test_more_files_may_be_open():
    """As on macOS, where it is 256 for who does not ask."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = f"""
import resource
from mlx_speech.server.run import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
allow_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    soft, still = map(int, done.stdout.split())
    assert soft == (4096 if hard == resource.RLIM_INFINITY else min(hard, 4096))
    assert still == hard
