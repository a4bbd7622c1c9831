"""What can be chosen, and what the server is asked for then."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from page_visits import answer_with, send, texts, wait_until_done, with_models

ABLE = {
    "languages": ["fr", "en"],
    "target_languages": ["de"],
    "punctuate": True,
    "keywords": True,
    "speakers": True,
    "words": True,
    "live": True,
}
UNABLE = {name: [] if isinstance(value, list) else False for name, value in ABLE.items()}


def test_what_the_model_can_do_is_offered(page):
    with_models(page, able=ABLE, unable=UNABLE, unknown=None)
    fields = ["language", "target_language", "keywords", "punctuate", "speakers"]

    def offered() -> list[str]:
        return [name for name in fields if page.locator(f"[name={name}]").is_visible()]

    record = page.get_by_role("button", name="Record")
    languages = page.locator("[name=language]")
    assert offered() == fields
    assert languages.inner_text().split("\n") == ["Detect", "English", "French"]
    assert record.is_enabled()
    page.get_by_label("Model").select_option("unable")
    assert offered() == []
    assert record.is_disabled()
    page.get_by_text("This model has no live text.").wait_for()
    page.get_by_label("Model").select_option("unknown")
    assert offered() == fields
    assert "German" in languages.inner_text()
    assert record.is_enabled()


def test_what_the_server_learns_later_is_offered_then(page):
    with_models(page, tiny=None)
    speakers = page.get_by_label("Tell speakers apart")
    speakers.wait_for()
    models = {"data": [{"id": "tiny", "capabilities": UNABLE}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    answer_with(page, [{"type": "transcript.text.done", "text": "bonjour"}])
    send(page, "flite_08.flac")
    speakers.wait_for(state="hidden")


def test_what_is_chosen_is_asked_for(page):
    with_models(page, able=ABLE, unable=UNABLE)
    answer_with(page, [{"type": "transcript.text.done", "text": "bonjour"}])

    def sent(name: str) -> tuple[str, list[tuple[str, str]]]:
        with page.expect_request("**/v1/audio/*") as request:
            send(page, name)
        body = request.value.post_data_buffer.decode("utf-8", "replace")
        fields = re.findall('name="([^"]+)"\r\n\r\n(.*)\r\n', body)
        return urlsplit(request.value.url).path.rpartition("/")[2], fields

    plain = [("model", "able"), ("stream", "true"), ("response_format", "verbose_json")]
    times = [("timestamp_granularities[]", "segment"), ("timestamp_granularities[]", "word")]
    assert sent("flite_08.flac") == ("transcriptions", [*plain, *times])
    page.get_by_label("Language spoken").select_option("French")
    page.get_by_label("Translate to").select_option("German")
    page.get_by_label("Names and terms").fill("Zürich, Granite ,")
    page.get_by_label("Punctuation").uncheck()
    chosen = [("language", "fr"), ("target_language", "de"), ("punctuate", "false")]
    chosen += [("keywords[]", "Zürich"), ("keywords[]", "Granite")]
    assert sent("flite_08.flac") == ("translations", [*plain, times[0], *chosen])
    page.get_by_label("Translate to").select_option("Do not translate")
    page.get_by_label("Tell speakers apart").check()
    diarized = [*plain[:2], ("response_format", "diarized_json")]
    del chosen[1]
    assert sent("flite_08.flac") == ("transcriptions", [*diarized, *times, *chosen])
    page.get_by_label("Model").select_option("unable")
    fields = [("model", "unable"), *plain[1:], times[0]]
    assert sent("flite_08.flac") == ("transcriptions", fields)


def test_a_file_is_translated(page):
    page.get_by_label("Translate to").select_option("fr")
    send(page, "flite_08.flac")
    wait_until_done(page)
    assert texts(page) == ["déverrouille le portail arrière"]
