"""The page of the server in a real browser: a Chromium that is on this machine, headless."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import DATA

AUDIO = DATA / "audio"
GATE = "send a message to my sister and lock the garage gate"  # festival_14.flac
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@contextmanager
def chromium(microphone: Path) -> Iterator:
    """A browser whose microphone plays a WAV file once each time that it is opened.

    Playwright's loop belongs to this thread until the end: nothing else here may run one meanwhile.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    arguments = [
        "--no-sandbox",  # which root may not have
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visit:
    """A tab at an address.

    errors: what its console shows as errors, and exceptions that nothing caught.
    hosts: where its requests went, as `host:port`.
    """

    def __init__(self, browser, url: str, **options):
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(30_000)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._address(request.url))
        self.page.on("websocket", lambda socket: self._address(socket.url))
        self.page.goto(url)

    def _console(self, message) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _address(self, url: str) -> None:
        if urlsplit(url).scheme not in ("blob", "data"):
            self.hosts.add(urlsplit(url).netloc)


def send(page, *names: str) -> None:
    """Choose bundled recordings."""
    page.set_input_files("#files", [AUDIO / name for name in names])


def wait_until_done(page) -> None:
    """Until the recording that is shown is transcribed, or has failed."""
    page.locator("#actions").wait_for()


def texts(page) -> list[str]:
    """Of the segments."""
    return page.locator("#segments p").all_inner_texts()


def seconds(page) -> float:
    """Where the player is."""
    return page.evaluate("document.querySelector('audio').currentTime")


def answer_with(page, events: list[dict]) -> None:
    """Let the server's answer to a file be these events."""
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    page.route(
        "**/v1/audio/*",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
    )


def segment_events(*texts: str, speakers: Sequence[str] = ()) -> list[dict]:
    """A segment each second, and the end."""
    segments = [
        {"type": "transcript.text.segment", "start": n, "end": n + 1, "text": text}
        for n, text in enumerate(texts)
    ]
    for segment, speaker in zip(segments, speakers, strict=False):
        segment["speaker"] = speaker
    return [*segments, {"type": "transcript.text.done", "text": " ".join(texts)}]


def with_models(page, **capabilities: dict | None) -> None:
    """Open the page anew with models of these names."""
    models = [{"id": name, "capabilities": able} for name, able in capabilities.items()]
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": models}))
    page.reload()
    page.locator("[name=model] option").last.wait_for(state="attached")
