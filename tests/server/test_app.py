"""What the server says of itself, and what it answers where it cannot do what is asked."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import contextmanager

import httpx
import openai
import pytest
from conftest import DATA
from openai.types import Model
from realtime_client import RealtimeClient
from serving import client_of, serving
from websockets.exceptions import InvalidStatus

from mlx_speech.errors import CheckpointError, HubError
from mlx_speech.server import work
from mlx_speech.server.app import build_app
from mlx_speech.server.engine import Engine
from mlx_speech.server.middleware import KeyMiddleware, OriginMiddleware
from mlx_speech.server.models import ModelStore
from mlx_speech.server.run import Server

SHORT, LONG = DATA / "audio" / "flite_11.flac", DATA / "audio" / "long.flac"
TRANSCRIPTIONS = "/v1/audio/transcriptions"


def check_error(response, status, param=None, words=""):
    """A response is an error in the shape of OpenAI's, which tells nothing of this machine."""
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert error["param"] == param
    assert words in error["message"]
    assert "/tmp" not in error["message"]
    return error


def post(url, data=None, **given):
    files = given or {"file": ("a", SHORT.read_bytes())}
    data = {"model": "tiny"} if data is None else data
    return httpx.post(url + TRANSCRIPTIONS, data=data, files=files, timeout=60)


@contextmanager
def held(url):
    """A request that is being worked on."""
    with client_of(url) as client:
        stream = client.audio.transcriptions.create(file=LONG, model="tiny", stream=True)
        next(iter(stream))
        yield
        stream.close()


def wait_until_idle(url):
    deadline = time.monotonic() + 30
    while httpx.get(f"{url}/health").json()["requests"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestModels:
    def test_are_the_clients_type(self, client):
        (model,) = client.models.list()
        Model.model_validate(model.model_dump(), strict=True)
        assert (model.id, model.owned_by) == ("tiny", "local")
        assert client.models.retrieve("tiny") == model

    def test_capabilities(self, server, client):
        assert post(server).status_code == 200  # it is loaded
        assert client.models.retrieve("tiny").capabilities == {
            "languages": ["en", "fr", "de", "es", "pt", "ja"],
            "target_languages": ["en", "fr", "de", "es", "pt", "ja", "it", "zh"],
            "punctuate": False,
            "keywords": False,
            "speakers": False,
            "words": True,
            "live": True,
        }

    def test_names(self, tiny):
        names = ("ibm-granite/granite-speech-4.1-2b", "other")
        with serving(lambda name: tiny, names) as url, client_of(url) as client:
            assert [model.id for model in client.models.list()] == list(names)
            long = client.models.retrieve(names[0])
            assert long.owned_by == "ibm-granite"
            assert long.capabilities is None  # it is not loaded
            assert client.models.retrieve("granite-speech-4.1-2b") == long
            with pytest.raises(openai.NotFoundError) as error:
                client.models.retrieve("ibm-granite/nothing")
            assert error.value.code == "model_not_found"


class TestHealth:
    def test_ready_and_busy(self, server):
        wait_until_idle(server)
        told = {"status": "ready", "requests": 0, "models": {"tiny": "ready"}}
        client = httpx.Client(base_url=server)
        post(server)
        assert client.get("/health").json() == told
        with held(server):
            busy = client.get("/health").json()
        assert busy == {**told, "status": "busy", "requests": 1}
        client.close()

    def test_loading(self, tiny):
        told = []

        def loader(name):
            told.append(httpx.get(f"{address[0]}/health").json())
            return tiny

        with serving(loader) as url:
            address = [url]
            assert httpx.get(f"{url}/health").json()["models"] == {"tiny": "unloaded"}
            assert post(url).status_code == 200
        assert (told[0]["status"], told[0]["models"]) == ("loading", {"tiny": "loading"})

    def test_an_engine_that_has_failed(self, tiny, monkeypatch, caplog):
        def boom(store):
            raise RuntimeError("boom")

        monkeypatch.setattr(ModelStore, "seconds_to_unload", boom)
        with serving(lambda name: tiny) as url:
            check_error(post(url), 503, words="shutting down")
            health = httpx.get(f"{url}/health")
            assert (health.status_code, health.json()["status"]) == (503, "failed")
        engine = Engine(ModelStore(["tiny"]))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            Server(build_app(engine), failed=lambda: engine.failed).run([listener])  # it ends


class TestErrors:
    def test_unknown_addresses_and_methods(self, server):
        check_error(httpx.get(f"{server}/v1/nothing"), 404, words="nothing at this address")
        check_error(httpx.get(f"{server}/v1/models/"), 404, "model", "there is no model ''")
        response = httpx.get(server + TRANSCRIPTIONS)
        check_error(response, 405)
        check_error(httpx.request("WHATEVER", server + TRANSCRIPTIONS), 405)
        assert "WHATEVER" not in httpx.get(f"{server}/metrics").text
        assert response.headers["allow"] == "POST"

    def test_no_form(self, server):
        url = server + TRANSCRIPTIONS
        check_error(httpx.post(url), 415, words="multipart/form-data")
        check_error(httpx.post(url, json={"model": "tiny"}), 415)
        check_error(httpx.post(url, data={"model": "tiny"}), 415)

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("multipart/form-data", b""),
            ("multipart/form-data; boundary=x", b"no boundary"),
            ("multipart/form-data; boundary=x", b"--x\r\nnothing\r\n\r\n--x--\r\n"),
            ("multipart/form-data; boundary=x", b"--x\r\n\r\nno name\r\n--x--\r\n"),
            ("multipart/form-data; boundary=x", b""),
            ("multipart/form-data; boundary=" + "x" * 300, b"--x"),
        ],
    )
    def test_malformed_forms(self, server, kind, body):
        response = httpx.post(server + TRANSCRIPTIONS, content=body, headers={"content-type": kind})
        assert response.status_code == 400
        check_error(response, 400, response.json()["error"]["param"])

    @pytest.mark.filterwarnings("ignore:Unclosed file")  # its end is never told to the parser
    def test_a_form_that_is_cut_off(self, server):
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        kind = {"content-type": "multipart/form-data; boundary=x"}
        response = httpx.post(server + TRANSCRIPTIONS, content=head + b"cut o", headers=kind)
        check_error(response, 400, "file", "missing")

    def test_fields_are_no_files(self, server):
        """They are in memory."""
        check_error(post(server, data={"prompt": "x" * 70_000}), 400, words="maximum size")

    def test_the_file(self, server):
        check_error(post(server, data={"model": "tiny"}, other=("a", b"1")), 400, "file", "missing")
        named = post(server, data={"file": "a.wav"}, other=("a", b"1"))
        check_error(named, 400, "file", "file is a text, but must be a file; curl takes -F file=@")
        two = [("file", ("a", b"1")), ("file", ("b", b"2"))]
        check_error(httpx.post(server + TRANSCRIPTIONS, files=two), 400, words="Too many files")
        check_error(post(server, file=("a.wav", b"")), 400, "file", "is empty")
        error = check_error(post(server, file=("a.wav", b"RIFF" + bytes(100))), 400, "file")
        assert error["code"] == "invalid_audio"

    @pytest.mark.parametrize(
        "text",
        [
            "#EXTM3U\n#EXTINF:3,\n{}\n",
            "ffconcat version 1.0\nfile '{}'\n",
            "<?xml version='1.0'?><MPD><Period><BaseURL>{}</BaseURL></Period></MPD>",
            "[playlist]\nFile1={}\n",
            "{}",
        ],
    )
    def test_nothing_uploaded_is_followed(self, server, text):
        """Neither to files nor to addresses: those here hold speech."""
        for place in (str(SHORT), f"file://{SHORT}", f"{server}/v1/models"):
            for name in ("a.m3u8", "a.ffconcat", "a.mpd", str(SHORT)):
                response = post(server, file=(name, text.format(place).encode()))
                check_error(response, 400, "file")

    def test_the_name_of_a_file_does_not_matter(self, server):
        for name in ("a.mp3", "../../etc/passwd", "", "\0", "é" * 1000):
            response = post(server, file=(name or "x", SHORT.read_bytes()))
            assert response.json()["text"].startswith("book a train")

    def test_clients_errors_are_not_logged(self, server, caplog):
        with caplog.at_level(logging.WARNING):
            post(server, file=("a", b"nothing"))
            httpx.post(server + TRANSCRIPTIONS)
            httpx.get(f"{server}/nothing")
        assert not [record for record in caplog.records if record.name.startswith("mlx_speech")]

    def test_errors_of_ours_are(self, server, caplog, monkeypatch):
        def broken(*arguments):
            raise RuntimeError("in /home/of/ours")

        monkeypatch.setattr(work, "open_recording", broken)
        response = post(server)
        check_error(response, 500, words="its log says how")
        assert response.headers["x-should-retry"] == "false"
        (record,) = caplog.records
        assert "in /home/of/ours" in str(record.exc_info[1])
        monkeypatch.undo()
        assert post(server).status_code == 200

    @pytest.mark.parametrize(("kind", "status"), [(CheckpointError, 500), (HubError, 503)])
    def test_models_that_cannot_be_loaded(self, tiny, caplog, kind, status):
        errors = iter([kind("/home/of/ours/config.json is damaged")])

        def loader(name):
            for error in errors:
                raise error
            return tiny

        with serving(loader) as url:
            check_error(post(url, data={"model": "tiny", "stream": "true"}), status, "model")
            (record,) = caplog.records
            assert record.exc_info is None
            assert "/home/of/ours" in record.getMessage()
            assert post(url).status_code == 200


@pytest.fixture(scope="module")
def url(tiny):
    """Of a server with a key."""
    with serving(lambda name: tiny, api_key="secret", origins=["https://a.org"]) as url:
        yield url


class TestKey:
    def test_is_needed(self, url):
        with client_of(url, api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError) as error:
                client.models.list()
            assert error.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                client.audio.transcriptions.create(file=LONG, model="tiny")
        response = httpx.get(f"{url}/metrics")
        check_error(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        for wrong in ("secret", "Basic secret", "Bearer", "Bearer secret2", "Bearer \xe9"):
            headers = {"authorization": wrong.encode("latin-1")}
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        with client_of(url, api_key="secret") as client:
            assert [model.id for model in client.models.list()] == ["tiny"]

    def test_what_is_open(self, url):
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/").status_code == 200

    def test_other_origins(self, url):
        asks = {"access-control-request-method": "POST", "origin": "https://a.org"}
        asks["access-control-request-headers"] = "authorization"
        allowed = httpx.options(url + TRANSCRIPTIONS, headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.org"
        refused = httpx.options(url + TRANSCRIPTIONS, headers={**asks, "origin": "https://b.org"})
        assert "access-control-allow-origin" not in refused.headers
        # pages are told of errors, too
        error = httpx.get(f"{url}/v1/models", headers={"origin": "https://a.org"})
        check_error(error, 401)
        assert error.headers["access-control-allow-origin"] == "https://a.org"

    @pytest.mark.parametrize(
        ("headers", "subprotocols", "passes"),
        [
            ([], [], False),
            ([(b"authorization", b"Bearer secret")], [], True),
            ([(b"authorization", b"Bearer other")], [], False),
            ([], ["realtime", "openai-insecure-api-key.secret"], True),
            ([], ["realtime", "openai-insecure-api-key.other"], False),
            ([], ["secret"], False),
        ],
    )
    def test_websockets(self, headers, subprotocols, passes):
        sent = []

        async def app(scope, receive, send):
            await send({"type": "websocket.accept"})

        async def send(message):
            sent.append(message)

        scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers}
        scope["subprotocols"] = subprotocols
        asyncio.run(KeyMiddleware(app, "secret")(scope, None, send))
        kinds = [message["type"] for message in sent]
        assert kinds == ["websocket.accept" if passes else "websocket.close"]


class TestOrigin:
    """Of web pages, where no key is to be shown."""

    def test_pages_of_others(self, server):
        port = server.rpartition(":")[2]
        for own in (server, f"http://localhost:{port}"):
            headers = {"origin": own}
            assert httpx.get(f"{own}/v1/models", headers=headers).status_code == 200
            with RealtimeClient(own, additional_headers=headers):
                pass
        for other in ("https://a.org", "null", f"http://a.org:{port}", "http://localhost:1"):
            headers = {"origin": other}
            response = httpx.post(server + TRANSCRIPTIONS, headers=headers)
            assert check_error(response, 403, words="--cors-origin")["code"] == "origin_not_allowed"
            with pytest.raises(InvalidStatus, match="403"):
                RealtimeClient(server, additional_headers=headers)

    def test_names_that_others_own(self, server):
        """A page at one may point it here, and would be of the same origin."""
        headers = {"origin": "http://a.org", "host": "a.org"}
        check_error(httpx.post(server + TRANSCRIPTIONS, headers=headers), 403)

    def test_those_that_may_ask(self, tiny):
        for origins in (["https://a.org"], ["*"]):
            with serving(lambda name: tiny, origins=origins) as url:
                headers = {"origin": "https://a.org"}
                response = httpx.get(f"{url}/v1/models", headers=headers)
                assert response.headers["access-control-allow-origin"] in origins
                with RealtimeClient(url, additional_headers=headers):
                    pass

    def test_other_addresses_may_have_names(self):
        async def app(scope, receive, send):
            passed.append(scope)

        passed = []
        headers = [(b"origin", b"http://mac.local:8000"), (b"host", b"mac.local:8000")]
        scope = {"type": "http", "headers": headers, "server": ("192.168.1.2", 8000)}
        asyncio.run(OriginMiddleware(app, ())(scope, None, None))
        assert passed


class TestLimits:
    def test_so_many_requests(self, tiny):
        with serving(lambda name: tiny, engine={"max_requests": 1}) as url:
            with held(url), client_of(url) as client:
                with pytest.raises(openai.RateLimitError) as error:
                    client.audio.transcriptions.create(file=LONG, model="tiny")
                assert error.value.response.headers["retry-after"] == "1"
                assert httpx.get(f"{url}/v1/models").status_code == 200
            wait_until_idle(url)
            assert post(url).status_code == 200

    @pytest.mark.parametrize("stream", [False, True])
    def test_so_much_time(self, tiny, stream):
        with serving(lambda name: tiny, time_limit=0.5) as url, client_of(url) as client:
            with pytest.raises(openai.APIError) as error:
                for _ in client.audio.transcriptions.create(
                    file=LONG, model="tiny", stream=stream, temperature=0.01
                ):
                    pass
            assert error.value.code == "timeout"
            assert isinstance(error.value, openai.InternalServerError) is not stream
            wait_until_idle(url)
