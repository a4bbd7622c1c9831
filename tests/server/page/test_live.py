"""Recordings from the microphone, with text while one speaks."""

from __future__ import annotations

import json

import pytest
from page_visits import GATE, seconds, texts, wait_until_done
from serving import serving

UPDATED = {"type": "session.updated"}


def test_speech_is_transcribed_live(page):
    page.locator("#record").click()
    page.locator(".partial").first.wait_for()
    page.locator("#queue .state", has_text="Recording 0:05").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_until_done(page)
    assert " ".join(texts(page)) == GATE
    assert page.locator(".partial").count() == 0
    assert page.locator("#segments .time").first.inner_text() == "0:00"
    # what was recorded is a recording like any other
    page.locator("#segments .place").first.click()
    page.wait_for_timeout(300)
    assert seconds(page) > 0
    page.get_by_role("button", name="Transcribe again").click()
    wait_until_done(page)
    assert " ".join(texts(page)) == GATE
    assert page.locator("#segments .place").all_inner_texts() == GATE.split()


def test_a_live_run_shows_the_key(visit, tiny):
    with serving(lambda name: tiny, api_key="opensesame") as url:
        opened = visit(url)
        page = opened.page
        page.get_by_role("textbox", name="API key").fill("opensesame")
        page.get_by_role("button", name="Continue").click()
        page.locator("[name=model] option").wait_for(state="attached")
        page.locator("#record").click()
        page.locator(".partial").first.wait_for()
        page.get_by_role("button", name="Stop", exact=True).click()
        wait_until_done(page)
        assert page.locator("#queue .state.wrong").count() == 0
        opened.errors.clear()  # of the first request, which had no key


def answer_live(page, answers: dict[str, list[dict]]) -> None:
    """Let the server's answer to messages of these types, or event ids, be these events; None is
    the end of the connection."""

    def connect(socket):
        def answer(text: str) -> None:
            message = json.loads(text)
            for event in answers.get(message.get("event_id") or message["type"], []):
                socket.send(json.dumps(event)) if event else socket.close()

        socket.on_message(answer)

    page.route_web_socket("**/v1/realtime**", connect)


def item_event(item: str, kind: str, **members) -> dict:
    kind = f"conversation.item.input_audio_transcription.{kind}"
    return {"type": kind, "item_id": item, **members}


def test_live_text_is_corrected_and_the_last_of_it_waited_for(page):
    answer_live(
        page,
        {
            "settings": [UPDATED],
            "last": [
                item_event("1", "delta", delta="firt"),
                item_event("1", "completed", transcript="first"),
            ],
            "end": [
                item_event("2", "delta", delta="seco"),
                UPDATED,
                item_event("2", "completed", transcript="second"),
            ],
        },
    )
    page.locator("#record").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_until_done(page)
    assert texts(page) == ["first", "second"]


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        ({"settings": [{"type": "error", "error": {"message": "no", "event_id": "settings"}}]}, []),
        ({"input_audio_buffer.append": [item_event("1", "delta", delta="said"), None]}, ["said"]),
    ],
)
def test_live_text_that_breaks_off(page, answers, shown):
    answer_live(page, answers)
    page.locator("#record").click()
    page.locator("#queue .state.wrong").wait_for()
    assert texts(page) == shown
    assert page.locator("#record").is_enabled()


def test_live_text_is_not_translated(page):
    answer_live(page, {"settings": [UPDATED], "end": [UPDATED]})
    page.get_by_label("Translate to").select_option("French")
    page.locator("#record").click()
    page.get_by_role("alert").get_by_text("Live text is not translated").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_until_done(page)
    assert page.locator("#about").inner_text() == "There is no speech in this recording."


def test_without_a_microphone(page):
    refuse = (
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '%s')); 0"
    )
    for name, line in [("NotAllowedError", "may not be used"), ("NotFoundError", "no microphone")]:
        page.evaluate(refuse % name)
        page.locator("#record").click()
        page.get_by_role("alert").get_by_text(line).wait_for()
    assert page.locator("#queue li").count() == 0
