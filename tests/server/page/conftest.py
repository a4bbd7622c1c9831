"""A browser for the tests of the page."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import soundfile
from page_visits import AUDIO, Visit, chromium


@pytest.fixture(scope="package")
def browser(tmp_path_factory):
    """One that takes festival_14.flac for what is said into its microphone."""
    recording = tmp_path_factory.mktemp("microphone") / "said.wav"
    soundfile.write(recording, *soundfile.read(AUDIO / "festival_14.flac"))
    with chromium(microphone=recording) as browser:
        yield browser


@pytest.fixture
def visit(browser):
    """Opens the page; at the end nothing may have gone wrong in it or gone elsewhere."""
    visits = []

    def open_page(url: str, **options) -> Visit:
        visits.append((Visit(browser, url, **options), url))
        return visits[-1][0]

    yield open_page
    for opened, url in visits:
        assert opened.errors == []
        assert opened.hosts == {urlsplit(url).netloc}
        opened.page.context.close()


@pytest.fixture
def page(visit, server):
    return visit(server).page
