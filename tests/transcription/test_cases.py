"""Files that other readers get wrong, each with what is in it.

The values were checked with ffmpeg and sox. `A` and `B` are what the voices say.
"""

from __future__ import annotations

import os
from threading import Thread

import av
import numpy as np
import pytest
from conftest import DATA
from media import give_stdin, make

from mlx_speech import AudioError, InputError, load_audio, stream_transcribe, transcribe
from mlx_speech.audio import SAMPLING_RATE
from mlx_speech.transcription.pipeline import prepare

CASES = DATA / "cases"
A = (0.1, "set the kitchen to thirty degrees")
B = "eight three seven seven"
HISS = 0.01 * np.random.default_rng(0).standard_normal(32000)
WHOLE = [
    ("cat.mp3", [A, (5.6, B)]),  # two MP3 files joined
    ("chain_opus.ogg", [A, (5.5, B)]),  # two Ogg streams, one after the other
    ("clean.wav", [A]),
    ("delayed.mkv", [(4.96, A[1])]),  # the sound begins after the picture
    ("delayed.mp4", [(4.96, A[1])]),
    ("gap.mp4", [A, (12.5, B)]),  # packets are missing, and the timestamps say so
    ("gap2.mkv", [A, (12.5, B)]),
    ("h_2e9.wav", [A]),  # 2000000000 stands for a size that is not known
    ("minus1.caf", [A]),  # as -1 does
    ("vbr_noxing.mp3", [A]),
    ("xing_frames0.mp3", [A]),  # a header that promises no frames
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The folder of all: of some there is the header, and their samples are those of clean.wav."""
    folder = tmp_path_factory.mktemp("cases")
    clean = (CASES / "clean.wav").read_bytes()
    samples = clean[clean.index(b"data") + 8 :]
    for file in CASES.iterdir():
        if file.suffix == ".header":
            (folder / file.stem).write_bytes(file.read_bytes() + samples)
        else:
            (folder / file.name).symlink_to(file)
    whole = (folder / "cut2.w64").read_bytes()
    (folder / "cut2.w64").write_bytes(whole[:40000])
    return folder


def said(transcript):
    return [(segment.start, segment.text) for segment in transcript.segments]


@pytest.mark.parametrize(("name", "expected"), WHOLE)
def test_all_of_it_at_its_time(tiny, cases, name, expected):
    transcript = transcribe(cases / name, tiny)
    assert [text for _, text in said(transcript)] == [text for _, text in expected]
    for (start, _), (right, _) in zip(said(transcript), expected, strict=True):
        assert start == pytest.approx(right, abs=0.1)
    assert transcript.remarks == []


@pytest.mark.parametrize("extra", [1, 2, 8, 16, 28, 36])
def test_a_size_that_is_off_by_some_bytes(tiny, tmp_path, extra):
    data = bytearray((CASES / "clean.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "little") + extra).to_bytes(4, "little")
    path = tmp_path / "talk.wav"
    path.write_bytes(data)
    assert transcribe(path, tiny).text == A[1]


def test_what_is_cut_short_is_an_error(cases):
    with pytest.raises(AudioError, match=r"cut2\.w64 is cut short"):
        load_audio(cases / "cut2.w64")


def test_what_is_damaged_is_named_and_the_rest_transcribed(tiny, tmp_path):
    speech = np.array(load_audio(DATA / "audio" / "long.flac")[: 35 * SAMPLING_RATE])
    path = make(tmp_path / "talk.m4a", speech)
    with av.open(str(path)) as container:
        packets = (packet for packet in container.demux(audio=0) if packet.size)
        at = next(packet.pos for packet in packets if packet.pts * packet.time_base >= 30)
    data = bytearray(path.read_bytes())
    data[at : at + 40] = np.random.default_rng(1).bytes(40)
    path.write_bytes(data)
    transcript = transcribe(path, tiny, chunk_duration=9, min_silence=0.4)
    assert len(transcript.segments) == 9
    assert transcript.segments[7].text == "what is the weather in cairo tonight"
    assert transcript.segments[8].text == "remind me to feed the cat on monday"
    assert transcript.remarks == ["it is damaged at 30.0 s; the rest was read"]


def test_channels_of_opposite_phase(tiny):
    transcript = transcribe(CASES / "phase.flac", tiny)
    assert transcript.text == A[1]
    (remark,) = transcript.remarks
    assert "channel 1 alone was read" in remark
    assert transcribe(CASES / "phase.flac", tiny, channel=2).text == A[1]
    mixed = transcribe(CASES / "phase.flac", tiny, channel="mix")
    assert (mixed.text, mixed.remarks) == ("", ["no text: it is silent"])
    with pytest.raises(InputError, match="channel is 0"):
        transcribe(CASES / "phase.flac", tiny, channel=0)


class TestTracks:
    READ = "of its {} audio tracks the first that is {}, number {}, was read"

    def test_the_first_is_silent(self, tiny):
        transcript = transcribe(CASES / "silent_first.mp4", tiny)
        assert transcript.text == A[1]
        assert transcript.remarks == [self.READ.format(2, "not silent", 2)]
        transcript = transcribe(CASES / "silent_first.mp4", tiny, audio_track=1)
        assert (transcript.text, transcript.remarks) == ("", ["no text: it is silent"])

    @pytest.mark.parametrize("run", [transcribe, stream_transcribe])
    def test_the_first_two_have_no_speech(self, tiny, tmp_path, run):
        speech = np.array(load_audio(CASES / "clean.wav"))
        path = make(tmp_path / "talk.mkv", HISS, HISS, speech, speech)
        transcript = run(path, tiny)
        if run is stream_transcribe:
            transcript = _returned(transcript)
        assert transcript.text == A[1]
        assert transcript.remarks == [self.READ.format(4, "with speech", 3)]
        assert transcript.audio_track == 3

    @pytest.mark.parametrize("pipe", [False, True])
    def test_of_what_can_be_read_once_only(self, tiny, tmp_path, monkeypatch, pipe):
        """Standard input, or a pipe with a name."""
        speech = np.array(load_audio(CASES / "clean.wav"))
        data = make(tmp_path / "talk.mkv", HISS, HISS, speech).read_bytes()
        source = tmp_path / "pipe" if pipe else "-"
        if pipe:
            os.mkfifo(source)
            Thread(target=source.write_bytes, args=[data], daemon=True).start()
        else:
            give_stdin(monkeypatch, data)
        transcript = transcribe(source, tiny)
        assert (transcript.text, transcript.audio_track) == (A[1], 3)

    def test_each_has_a_decoder_of_its_own(self, tiny, tmp_path):
        """One may go on with what it was given before."""
        job = prepare(make(tmp_path / "talk.mkv", HISS, HISS), tiny)
        first, second = job.tracks()
        assert (first.recording.track, second.recording.track) == (1, 2)
        assert type(first.decoder) is type(second.decoder)
        assert first.decoder is not second.decoder

    def test_none_has_speech(self, tiny, tmp_path):
        path = make(tmp_path / "talk.mkv", HISS, np.zeros(32000))
        transcript = transcribe(path, tiny)
        assert transcript.text == ""
        first, second, third = transcript.remarks
        assert first == "of its 2 audio tracks the first was read"
        assert second == "no text: no speech was detected in it (its peak is -27 dBFS)"
        assert third == "nor was speech found in its other audio tracks"


def _returned(generator):
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value
