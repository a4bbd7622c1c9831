"""The fields of a request for a transcript: each is honoured, or refused by name."""

from __future__ import annotations

import logging

import httpx
import openai
import pytest
from conftest import DATA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.datastructures import FormData, UploadFile

from mlx_speech.errors import InputError
from mlx_speech.server.errors import RequestError, as_request_error
from mlx_speech.server.forms import Form
from mlx_speech.server.transcription_form import TranscriptionForm

SHORT = DATA / "audio" / "flite_11.flac"


def asked(*fields, task="transcribe"):
    """What a form with a file and these fields asks for."""
    return TranscriptionForm.of(Form(FormData([("file", UploadFile(None)), *fields])), task)


def refused(*fields, task="transcribe"):
    """What is wrong with it, as clients are told."""
    with pytest.raises((InputError, RequestError)) as error:
        asked(*fields, task=task)
    told = as_request_error(error.value)
    assert told.status == 400
    return told


class TestHonoured:
    def test_defaults(self):
        form = asked()
        assert (form.model, form.format, form.temperature, form.stream) == (None, "json", 0, False)
        assert form.segments
        assert not any((form.words, form.logprobs, form.speakers))
        assert (form.languages, form.punctuate, form.request.keywords) == ([], None, None)
        assert form.chunking.min_silence == 1.0

    def test_empty_fields_are_none(self):
        names = ("model", "language", "prompt", "keywords[]", "response_format", "temperature")
        names += ("stream", "include[]", "known_speaker_names[]", "chunking_strategy", "languages")
        form = asked(*((name, "") for name in names))
        assert (form.model, form.languages, form.format, form.stream) == (None, [], "json", False)

    @pytest.mark.parametrize("name", ["keywords", "keywords[]"])
    def test_lists(self, name):
        assert asked((name, "Granite"), (name, "IBM")).request.keywords == ["Granite", "IBM"]

    def test_prompts_are_terms(self):
        form = asked(("prompt", " ZyntriQix, Digique Plus;\nCynapse  Five. "), ("keywords", "IBM"))
        expected = ["ZyntriQix", "Digique Plus", "Cynapse Five", "IBM"]
        assert form.request.keywords == expected

    def test_languages(self):
        assert asked(("language", "de")).languages == ["de"]
        assert asked(("languages[]", "de"), ("languages[]", "fr")).languages == ["de", "fr"]

    @pytest.mark.parametrize("fields", [[], [("chunking_strategy", "auto")]])
    def test_chunking_as_it_is(self, fields):
        assert asked(*fields).chunking.min_silence == 1.0

    @pytest.mark.parametrize(
        "kind", [("chunking_strategy[type]", "server_vad"), ("chunking_strategy", "server_vad")]
    )
    def test_chunking(self, kind):
        pause = ("chunking_strategy[silence_duration_ms]", "500")
        form = asked(kind, pause, ("chunking_strategy[threshold]", "0.7"))
        assert (form.chunking.min_silence, form.chunking.vad_threshold) == (0.5, 0.7)

    @pytest.mark.parametrize(
        ("values", "words", "segments"),
        [([], False, True), (["word"], True, False), (["word", "segment"], True, True)],
    )
    def test_granularities(self, values, words, segments):
        fields = [("timestamp_granularities[]", value) for value in values]
        form = asked(("response_format", "verbose_json"), *fields)
        assert (form.words, form.segments) == (words, segments)

    def test_others(self):
        form = asked(("temperature", "0.5"), ("stream", "true"), ("include[]", "logprobs"))
        assert (form.temperature, form.stream, form.logprobs) == (0.5, True, True)
        form = asked(("punctuate", "False"), ("target_language", "fr"), task="translate")
        assert (form.punctuate, form.request.target_language) == (False, "fr")
        assert asked(task="translate").request.target_language == "en"


class TestRefused:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ([("frobnicate", "1")], "frobnicate"),
            ([("chunking", "auto")], "chunking"),
            ([("model", "a"), ("model", "b")], "model"),
            ([("model", UploadFile(None))], "model"),
            ([("language", "en"), ("languages[]", "de")], "languages[]"),
            ([("keywords", "<b>,")], "keywords"),
            ([("keywords", "two\nlines")], "keywords"),
            ([("prompt", "This is what we said before, and now we go on.")], "prompt"),
            ([("prompt", "Hello. Yes")], "prompt"),
            ([("response_format", "xml")], "response_format"),
            ([("response_format", "1")], "response_format"),
            ([("temperature", "hot")], "temperature"),
            ([("temperature", "1.5")], "temperature"),
            ([("temperature", "nan")], "temperature"),
            ([("stream", "maybe")], "stream"),
            ([("stream", "true"), ("response_format", "srt")], "stream"),
            ([("punctuate", "1")], "punctuate"),
            ([("target_language", "fr")], "target_language"),
            ([("include[]", "item")], "include[]"),
            ([("include[]", "logprobs"), ("response_format", "text")], "include[]"),
            ([("timestamp_granularities[]", "word")], "timestamp_granularities[]"),
            (
                [("timestamp_granularities[]", "letter"), ("response_format", "verbose_json")],
                "timestamp_granularities[]",
            ),
            ([("chunking_strategy", "vad")], "chunking_strategy"),
            ([("chunking_strategy", '{"type": "server_vad"}')], "chunking_strategy"),
            ([("chunking_strategy[type]", "semantic_vad")], "chunking_strategy"),
            *(
                ([("chunking_strategy[threshold]", value)], "chunking_strategy[threshold]")
                for value in ("high", "1.1", "-1", "nan")
            ),
            (
                [("chunking_strategy[prefix_padding_ms]", "300")],
                "chunking_strategy[prefix_padding_ms]",
            ),
            *(
                (
                    [("chunking_strategy[silence_duration_ms]", value)],
                    "chunking_strategy[silence_duration_ms]",
                )
                for value in ("long", "50", "-1", "nan", "inf")
            ),
            ([("known_speaker_names[]", "Ann")], "known_speaker_names"),
            ([("known_speaker_references[]", "data:,")], "known_speaker_references"),
        ],
    )
    def test_by_name(self, fields, param):
        error = refused(*fields)
        assert error.param == param
        assert param in str(error)

    def test_no_file(self):
        with pytest.raises(RequestError, match="file is missing"):
            TranscriptionForm.of(Form(FormData([("model", "a")])), "transcribe")

    def test_the_name_of_a_file_is_none(self):
        """As `curl -F file=talk.wav` sends it."""
        with pytest.raises(RequestError, match=r"file is a text, .* -F file=@ and the name"):
            TranscriptionForm.of(Form(FormData([("file", "talk.wav")])), "transcribe")


NAMES = (
    *("model", "language", "languages[]", "prompt", "keywords[]", "response_format", "stream"),
    *("temperature", "timestamp_granularities[]", "include[]", "chunking_strategy", "punctuate"),
    *("chunking_strategy[type]", "chunking_strategy[silence_duration_ms]", "target_language"),
    *("known_speaker_names[]", "file", "x"),
)
GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(str.encode),
    st.sampled_from([b"tiny", b"en", b"word", b"verbose_json", b"true", b"0", b"1e400", b"{{1}}"]),
)


def errors(caplog):
    """What would be seen on the server's standard error."""
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class TestGarbage:
    @EXAMPLES
    @given(
        fields=st.lists(st.tuples(st.sampled_from(NAMES), GARBAGE), max_size=5),
        file=st.one_of(st.none(), st.binary(max_size=200), st.just(SHORT.read_bytes())),
        route=st.sampled_from(["transcriptions", "translations"]),
    )
    def test_in_every_field(self, server, caplog, fields, file, route):
        body = b""
        for name, value in fields:
            body += f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
            body += value + b"\r\n"
        if file is not None:
            body += b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            body += file + b"\r\n"
        kind = {"content-type": "multipart/form-data; boundary=x"}
        url = f"{server}/v1/audio/{route}"
        response = httpx.post(url, content=body + b"--x--\r\n", headers=kind, timeout=60)
        assert response.status_code in (200, 400, 404)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
        assert not errors(caplog)

    @EXAMPLES
    @given(
        body=st.binary(max_size=300),
        kind=st.one_of(
            st.sampled_from(["", "; charset=rot13", "; charset=base64", "; charset=utf-16"]).map(
                "multipart/form-data; boundary=x".__add__
            ),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
        ),
    )
    def test_in_the_whole_of_it(self, server, caplog, body, kind):
        url = f"{server}/v1/audio/transcriptions"
        content = body.replace(b"\n", b"\r\n--x\r\n")
        response = httpx.post(url, content=content, headers={"content-type": kind}, timeout=60)
        assert response.status_code in (400, 415)
        assert not errors(caplog)

    def test_the_server_goes_on(self, client):
        text = client.audio.transcriptions.create(file=SHORT, model="tiny").text
        assert text.startswith("book a train")
        with pytest.raises(openai.BadRequestError):
            client.audio.transcriptions.create(file=b"", model="tiny")
