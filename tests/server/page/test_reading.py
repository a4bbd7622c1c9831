"""The page for all: by keyboard alone, on small screens, in both themes."""

from __future__ import annotations

import re

import pytest
from page_visits import (
    AUDIO,
    GATE,
    answer_with,
    segment_events,
    send,
    texts,
    wait_until_done,
    with_models,
)

FOCUSED = "document.activeElement.innerText?.split('\\n')[0]"


def test_by_keyboard_alone(page):
    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(FOCUSED) == name:
                return
        pytest.fail(f"{name} is not reached by Tab")

    files = [AUDIO / "festival_14.flac", AUDIO / "flite_08.flac"]
    page.on("filechooser", lambda chooser: chooser.set_files(files))
    tab_to("Choose files")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    page.locator("#queue .state", has_text="0:04").wait_for()
    page.locator("#queue .state", has_text="0:01").wait_for()
    words = GATE.split()
    tab_to(words[0])
    for key, word in [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", -1),
        ("Home", 0),
        ("End", -1),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == words[word]
    page.keyboard.press("Enter")
    page.locator(".place.now", has_text=words[-1]).wait_for()
    tab_to("flite_08.flac")
    page.keyboard.press("Enter")
    assert texts(page) == ["unlock the back gate"]
    tab_to("txt")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "flite_08.txt"


def test_up_and_down_go_by_segments(page):
    answer_with(page, segment_events("segment 0", "segment 1", "segment 2"))
    send(page, "flite_08.flac")
    wait_until_done(page)
    page.locator(".place").first.focus()
    for key, number in [("ArrowDown", 1), ("ArrowDown", 2), ("ArrowDown", 2), ("ArrowUp", 1)]:
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == f"segment {number}"


def test_what_is_said_is_told_to_screen_readers(page):
    page.evaluate(
        """() => {
            const log = document.querySelector("[role=log]");
            window.told = [];
            const tell = () => window.told.push(log.textContent);
            new MutationObserver(tell).observe(log, { childList: true });
        }"""
    )
    send(page, "festival_14.flac")
    wait_until_done(page)
    assert page.evaluate("window.told") == [GATE, "festival_14.flac: done"]
    assert page.locator("[role=log]").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize(
    ("preference", "way"), [("reduce", "instant"), ("no-preference", "smooth")]
)
def test_who_wants_no_motion_gets_none(visit, server, preference, way):
    page = visit(server, reduced_motion=preference).page
    page.evaluate(
        """() => {
            window.ways = new Set();
            Element.prototype.scrollIntoView = ({ behavior }) => window.ways.add(behavior);
        }"""
    )
    send(page, "festival_14.flac")
    wait_until_done(page)
    page.locator(".place").last.click()
    page.locator(".place.now", has_text="gate").wait_for()
    assert page.evaluate("[...window.ways]") == [way]
    duration = page.locator(".place").first.evaluate("e => getComputedStyle(e).transitionDuration")
    assert (duration == "0s") == (preference == "reduce")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(visit, server, tmp_path, width):
    page = visit(server, viewport={"width": width, "height": 740}).page
    name = 20 * "long" + ".flac"
    (tmp_path / name).write_bytes((AUDIO / "flite_08.flac").read_bytes())
    with_models(page, **{50 * "model": None})
    answer_with(page, [{"type": "transcript.text.done", "text": 90 * "word" + 90 * " word"}])
    for files in [[], [tmp_path / name]]:
        if files:
            page.set_input_files("#files", files)
            wait_until_done(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(visit, server, theme):
    page = visit(server, color_scheme=theme).page
    page.evaluate("document.getElementById('notice').textContent = 'an error'")
    answer_with(page, segment_events(*6 * ["word"], speakers="ABCDEF"))
    send(page, "flite_08.flac")
    wait_until_done(page)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) < 0.2) == (theme == "dark")
    for what in ["#about", "#segments p", ".time", "#notice", "h1", "label", "#queue .state"]:
        assert contrast(colour(page, what), background) >= 4.5, what
    for number in range(6):
        assert contrast(colour(page, f".voice-{number}"), background) >= 4.5, number
    primary = page.locator(".primary").first
    inside = primary.evaluate("e => getComputedStyle(e).backgroundColor")
    assert contrast(colour(page, ".primary"), inside) >= 4.5


def colour(page, selector: str) -> str:
    return page.locator(selector).first.evaluate("e => getComputedStyle(e).color")


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
