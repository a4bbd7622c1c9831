"""Recordings from files, their transcripts, and what can be done with these."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
import srt
import webvtt
from conftest import ROOT
from page_visits import (
    AUDIO,
    GATE,
    answer_with,
    seconds,
    segment_events,
    send,
    texts,
    wait_until_done,
)
from serving import serving

PAGE = ROOT / "mlx_speech" / "server" / "page" / "index.html"


def test_the_policy_admits_this_style_and_this_script_alone():
    html = PAGE.read_text(encoding="utf-8")
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', html)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}.*?>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"].removesuffix(" blob:") == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert re.findall(r"\w+://[^'\"]*", html) == ["http://www.w3.org/2000/svg"]


def test_a_file_is_transcribed(page):
    send(page, "festival_14.flac")
    wait_until_done(page)
    assert texts(page) == [GATE]
    assert page.locator("#segments .place").all_inner_texts() == GATE.split()
    assert page.locator("#segments .time").inner_text() == "0:00"
    assert page.locator("#title").inner_text() == "festival_14.flac"
    assert page.locator("#queue .state").inner_text() == "0:04"


def test_several_files_are_a_queue(page):
    said = {
        "espeak_02.flac": "set the kitchen to thirty degrees",
        "flite_08.flac": "unlock the back gate",
        "festival_12.flac": "one six four",
        "silence.flac": "There is no speech in this recording.",
    }
    send(page, *said)
    rows = page.locator("#queue li")
    for name, text in said.items():
        row = rows.filter(has_text=name)
        row.locator(".state", has_text=re.compile(r"^\d:\d\d$")).wait_for()
        row.locator(".open").click()
        assert (texts(page) or [page.locator("#about").inner_text()]) == [text]
    for name in said:
        page.get_by_role("button", name=f"Remove {name}").click()
    assert rows.count() == 0
    assert page.locator("#title").inner_text() == "No recording yet"


def test_a_word_is_played_from_where_it_was_said(page):
    send(page, "festival_14.flac")
    wait_until_done(page)
    words = page.locator("#segments .place")
    start = float(words.nth(7).get_attribute("data-start"))
    assert 2 < start < 3.5  # of four seconds
    words.nth(7).click()
    page.locator(".place.now", has_text="gate").wait_for()  # the last, by playing
    assert start < seconds(page) < 4.1
    page.locator(".time").click()
    assert seconds(page) < start


def downloaded(page, kind: str) -> str:
    """What a file of the transcript holds."""
    with page.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).click()
    stem = page.locator("#title").inner_text().rpartition(".")[0]
    # the browser puts others in place of what no file's name should have
    assert download.value.suggested_filename == re.sub("[<>]", "_", stem) + f".{kind}"
    return download.value.path().read_text(encoding="utf-8")


def test_downloads(page):
    send(page, "festival_14.flac")
    wait_until_done(page)
    files = {kind: downloaded(page, kind) for kind in ("txt", "srt", "vtt", "json")}
    assert files["txt"] == GATE + "\n"
    (cue,) = srt.parse(files["srt"])
    (caption,) = webvtt.from_string(files["vtt"])
    document = json.loads(files["json"])
    (segment,) = document["segments"]
    assert cue.content == caption.text == segment["text"] == document["text"] == GATE
    assert [word["word"] for word in segment["words"]] == GATE.split()
    assert document["duration"] == pytest.approx(4.03, abs=0.01)
    for start, end in [
        (cue.start.total_seconds(), cue.end.total_seconds()),
        (caption.start_in_seconds, caption.end_in_seconds),
    ]:
        assert start == pytest.approx(segment["start"], abs=1)
        assert end == pytest.approx(segment["end"], abs=1)
    assert 0 < segment["start"] <= segment["words"][0]["start"] < 0.7
    assert 3.3 < segment["words"][-1]["end"] <= segment["end"] < 4.03


def test_an_error_is_one_line_that_says_what_to_do(visit, server, tmp_path):
    opened = visit(server)
    page = opened.page
    (tmp_path / "notes.mp3").write_text("no audio")
    page.set_input_files("#files", tmp_path / "notes.mp3")
    error = page.locator("#queue .state.wrong")
    error.wait_for()
    assert "is not audio" in error.inner_text()
    assert page.locator("#about").inner_text() == error.inner_text()
    assert "\n" not in error.inner_text()
    page.get_by_text("This browser cannot play this kind of file.").wait_for()
    assert opened.errors == [
        "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    ]
    opened.errors.clear()


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ([], "The answer broke off. Try again."),
        ([{"error": {"message": "the model does not fit"}}], "the model does not fit"),
    ],
)
def test_text_that_breaks_off_stays(page, last, line):
    answer_with(page, [*segment_events("the first part")[:1], *last])
    send(page, "flite_08.flac")
    wait_until_done(page)
    assert page.locator("#about").inner_text() == line
    assert texts(page) == ["the first part"]
    answer_with(page, segment_events("the whole"))
    page.get_by_role("button", name="Transcribe again").click()
    page.locator("#segments p", has_text="the whole").wait_for()
    assert page.locator("#queue .state.wrong").count() == 0


def test_names_and_texts_are_never_markup(page, tmp_path):
    name, text = "<img src=x onerror=alert(1)>.flac", "<b>bold</b> --> &amp;"
    (tmp_path / name).write_bytes((AUDIO / "flite_08.flac").read_bytes())
    delta = {"type": "transcript.text.delta", "delta": text}
    answer_with(page, [delta, *segment_events(text, speakers=["<i>A</i>"])])
    page.set_input_files("#files", tmp_path / name)
    wait_until_done(page)
    assert page.locator("#title").inner_text() == name
    assert texts(page) == [text]
    assert page.locator("main :is(img, b, i)").count() == 0
    escaped = "<v &lt;i&gt;A&lt;/i&gt;>&lt;b&gt;bold&lt;/b&gt; --&gt; &amp;amp;"
    assert downloaded(page, "vtt").endswith(f"\n{escaped}\n")
    (cue,) = srt.parse(downloaded(page, "srt"))
    assert cue.content == "[<i>A</i>]: <b>bold</b> -> &amp;"


def test_speakers_have_names(page):
    said = ["good morning", "who is it", "it is me", "come in"]
    answer_with(page, segment_events(*said, speakers="AABA"))
    send(page, "flite_08.flac")
    wait_until_done(page)
    shown = page.locator("#segments li").all_inner_texts()
    assert [re.split(r"\s*\n\s*", line)[1:] for line in shown] == [
        ["Speaker A", "good morning"],
        ["who is it"],
        ["Speaker B", "it is me"],
        ["Speaker A", "come in"],
    ]
    colours = page.locator(".speaker").evaluate_all(
        "all => all.map(e => getComputedStyle(e).color)"
    )
    assert colours[0] == colours[2] != colours[1]
    captions = webvtt.from_string(downloaded(page, "vtt"))
    assert [caption.voice for caption in captions] == [f"Speaker {name}" for name in "AABA"]


def test_the_key_is_asked_for_and_kept(visit, tiny):
    with serving(lambda name: tiny, api_key="opensesame") as url:
        opened = visit(url)
        page = opened.page
        dialog = page.get_by_role("dialog")
        for key in ("wrong", "opensesame"):
            dialog.get_by_label("API key").fill(key)
            dialog.get_by_role("button", name="Continue").click()
            if key == "wrong":
                dialog.get_by_text("That is not the key of this server.").wait_for()
        dialog.wait_for(state="hidden")
        page.reload()
        send(page, "flite_08.flac")
        wait_until_done(page)
        assert texts(page) == ["unlock the back gate"]
        assert {re.search(r"status of (\d+)", error)[1] for error in opened.errors} == {"401"}
        opened.errors.clear()


def test_what_runs_can_be_cancelled(page):
    send(page, "long.flac")
    page.get_by_role("button", name="Cancel long.flac").click()
    page.locator("#queue .state", has_text="Cancelled").wait_for()
    send(page, "flite_08.flac")
    page.locator("#queue .state", has_text="0:01").wait_for()


def test_files_are_dropped(page):
    content = base64.b64encode((AUDIO / "flite_08.flac").read_bytes()).decode()
    dropped = page.evaluate_handle(
        """(content) => {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "dropped.flac"));
            return dropped;
        }""",
        content,
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": dropped})
    assert page.locator("body.dragging").count() == 1
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    wait_until_done(page)
    assert texts(page) == ["unlock the back gate"]
    assert page.locator("body.dragging").count() == 0
