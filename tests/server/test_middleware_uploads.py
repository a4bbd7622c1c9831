"""Uploads that are too large, or find no room, and clients that go away."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from conftest import DATA
from serving import client_of, serving
from starlette import formparsers

import mlx_speech
from mlx_speech.audio import open_recording
from mlx_speech.audio.recording import Recording
from mlx_speech.server import middleware, work

SHORT, LONG = DATA / "audio" / "flite_11.flac", DATA / "audio" / "long.flac"
ROUTE = "/v1/audio/transcriptions"
LIMIT = 300_000


@pytest.fixture(scope="module")
def url(tiny):
    with serving(lambda name: tiny, max_upload_bytes=LIMIT) as url:
        yield url


def post(url, path=SHORT):
    files = {"file": ("a", path.read_bytes())}
    return httpx.post(url + ROUTE, data={"model": "tiny"}, files=files, timeout=60)


def count(url, status):
    """How many requests for a transcript have ended so."""
    label = f'status="{status}"}} '
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if label in line]
    return sum(int(line.rpartition(" ")[2]) for line in lines if ROUTE in line)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def temporary_files():
    """Files without a name that this process has open, where the system tells."""
    if not Path("/proc/self/fd").exists():
        return set()
    folder = str(Path(tempfile.gettempdir()).resolve())
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith(folder) and "(deleted)" in target:
            found.add(target)
    return found


@pytest.fixture
def nothing_left():
    """Checks that no file without a name is left of a request."""
    before = temporary_files()
    return lambda: temporary_files() <= before


def parts(data, boundary="x"):
    """The body of a form with a file, in two parts: all but its end, and that."""
    head = 'Content-Disposition: form-data; name="{}"'
    model = head.format("model") + "\r\n\r\ntiny\r\n"
    file = head.format("file") + '; filename="a"\r\n\r\n'
    begin = f"--{boundary}\r\n{model}--{boundary}\r\n{file}".encode() + data
    return begin, f"\r\n--{boundary}--\r\n".encode()


def connected(url):
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)


def head(length, *more):
    lines = [f"POST {ROUTE} HTTP/1.1", "Host: a", f"Content-Length: {length}", *more]
    lines.append("Content-Type: multipart/form-data; boundary=x")
    return "\r\n".join([*lines, "", ""]).encode()


class TestTooLarge:
    def test_a_length_that_is_announced(self, url, tmp_path):
        (path := tmp_path / "large.wav").write_bytes(bytes(20 * LIMIT))
        with client_of(url) as client, pytest.raises(openai.APIStatusError) as error:
            client.audio.transcriptions.create(file=path, model="tiny")
        assert (error.value.status_code, error.value.param) == (413, "file")
        assert error.value.code == "request_too_large"

    def test_one_that_is_not(self, url, nothing_left):
        def body():
            begin, _ = parts(b"")
            yield begin
            for _ in range(20):
                yield bytes(LIMIT // 10)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        response = httpx.post(url + ROUTE, content=body(), headers=headers)
        assert response.request.headers["transfer-encoding"] == "chunked"
        assert response.status_code == 413
        wait_for(nothing_left)

    def test_who_reads_only_then_sends_it_all(self, url):
        with connected(url) as client:
            client.sendall(head(200 * LIMIT) + bytes(200 * LIMIT))  # no buffer holds it
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")

    def test_who_asks_first_need_not_send_it(self, url):
        with connected(url) as client:
            client.sendall(head(10**12, "Expect: 100-continue"))
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")

    def test_up_to_the_limit(self, url):
        begin, end = parts(SHORT.read_bytes())
        padding = bytes(LIMIT - len(begin + end))
        headers = {"content-type": "multipart/form-data; boundary=x"}
        for extra, status in ((b"", 200), (b"\0", 413)):
            body = begin + padding + extra + end
            response = httpx.post(url + ROUTE, content=body, headers=headers, timeout=60)
            assert response.status_code == status, response.text


class TestNoRoom:
    def test_for_an_upload(self, url, nothing_left, monkeypatch):
        class Full(tempfile.SpooledTemporaryFile):
            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Full)
        response = post(url)
        assert response.status_code == 507
        assert response.json()["error"]["code"] == "disk_full"
        assert response.headers["retry-after"]
        monkeypatch.undo()
        assert post(url).status_code == 200
        wait_for(nothing_left)

    def test_for_what_was_in_memory(self, url, nothing_left, monkeypatch):
        class Full(tempfile.SpooledTemporaryFile):
            def rollover(self):
                raise OSError(errno.EDQUOT, "Disk quota exceeded")

        monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Full)
        assert post(url).status_code == 507
        monkeypatch.undo()
        assert post(url).status_code == 200
        wait_for(nothing_left)

    def test_for_its_samples(self, url, monkeypatch):
        def full(recording, samples):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Recording, "append", full)
        response = post(url)
        assert response.status_code == 507
        assert "TMPDIR" not in response.text
        monkeypatch.undo()
        assert post(url).status_code == 200


class TestClientsThatGoAway:
    def idle(self, url):
        return httpx.get(f"{url}/health").json()["requests"] == 0

    def test_within_an_upload(self, url, nothing_left):
        gone, (begin, _) = count(url, 499), parts(LONG.read_bytes()[:200_000])
        with connected(url) as client:
            client.sendall(head(LIMIT) + begin)
            wait_for(lambda: httpx.get(f"{url}/health").json()["requests"] == 1)
        wait_for(lambda: count(url, 499) == gone + 1)
        wait_for(lambda: self.idle(url) and nothing_left())

    def test_who_sends_no_more(self, url, nothing_left, monkeypatch):
        monkeypatch.setattr(middleware, "_IDLE_SECONDS", 0.1)
        begin, _ = parts(b"123")
        with connected(url) as client:
            client.sendall(head(LIMIT) + begin)
            assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
        wait_for(lambda: self.idle(url) and nothing_left())

    def test_while_theirs_is_decoded(self, url, tiny, nothing_left, monkeypatch):
        """The thread that decodes it goes on for a while, and finds no more in the file; nothing
        else may get its number."""
        begun, go_on, numbers, sizes = threading.Event(), threading.Event(), [], []

        def slow(file):
            numbers.append(file.fileno())
            if len(numbers) == 1:
                begun.set()
                assert go_on.wait(30)
                sizes.append(os.fstat(numbers[0]).st_size)  # it is open
            return open_recording(file)

        monkeypatch.setattr(work, "open_recording", slow)
        gone, (begin, end) = count(url, 499), parts(SHORT.read_bytes())
        with connected(url) as client:
            client.sendall(head(len(begin + end)) + begin + end)
            assert begun.wait(30)
        wait_for(lambda: count(url, 499) == gone + 1 and self.idle(url))
        assert post(url).json()["text"] == mlx_speech.transcribe(SHORT, tiny).text
        assert len(set(numbers)) == len(numbers) == 2
        go_on.set()
        wait_for(nothing_left)
        assert sizes == [0]

    @pytest.mark.parametrize("stream", [False, True])
    def test_before_they_have_their_answer(self, tiny, nothing_left, stream):
        with serving(lambda name: tiny) as url:
            begin, end = parts(LONG.read_bytes())
            field = b'--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
            fields = {"temperature": b"0.5", "stream": str(stream).lower().encode()}
            more = b"".join(
                field.replace(b"{}", name.encode(), 1).replace(b"{}", value, 1)
                for name, value in fields.items()
            )
            body = more + begin + end
            begun = time.monotonic()
            with connected(url) as client:
                client.sendall(head(len(body)) + body)
                if stream:
                    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
                    while b"delta" not in client.recv(1000):
                        pass
                else:
                    wait_for(lambda: httpx.get(f"{url}/health").json()["status"] == "busy")
            wait_for(lambda: count(url, 499) == 1)
            wait_for(lambda: self.idle(url) and nothing_left())
            metrics = httpx.get(f"{url}/metrics").text
            assert "mlx_speech_audio_seconds_total 0.0\n" in metrics
            assert time.monotonic() - begun < 60
            assert post(url).status_code == 200
