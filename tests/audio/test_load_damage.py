"""What is wrong inside a file: gaps, damage, tracks and channels."""

from __future__ import annotations

import re

import av
import numpy as np
import pytest
from audio import damages
from audio.damages import DAMAGES, NOISE
from media import encoded, frames_for, load, make, refused, sine, write

from mlx_speech.audio import SAMPLING_RATE, load_audio, open_recording
from mlx_speech.audio.av_reader import _BoundedFile
from mlx_speech.errors import InputError


def remarks(source, **options):
    with open_recording(source, **options) as recording:
        return recording.remarks


@pytest.mark.parametrize("kind", damages.FORMATS)
def test_the_table_of_damages_is_true(tmp_path, kind):
    (row,) = re.findall(rf"^\| {kind} \|.*$", damages.README.read_text(), re.MULTILINE)
    made = (damages.outcome(kind, damage, tmp_path) for damage in damages.DAMAGES)
    assert [cell.strip() for cell in row.split("|")[2:-1]] == list(made)


class TestTimeline:
    @pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "ts"])
    def test_a_track_that_begins_after_the_picture(self, tmp_path, kind):
        whole = np.concatenate([np.zeros(3 * SAMPLING_RATE), sine(seconds=2)])
        late = shifted(tmp_path / f"late.{kind}", 3.0, sine(seconds=2), video=6.0)
        samples = load(late)
        assert len(samples) == pytest.approx(len(whole), abs=0.1 * SAMPLING_RATE)
        assert np.abs(samples[: int(2.9 * SAMPLING_RATE)]).max() < 1e-3
        assert np.abs(samples[int(3.2 * SAMPLING_RATE) :][:8000]).max() > 0.4

    @pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "mka", "webm", "ts", "opus"])
    def test_packets_that_are_missing_are_silence(self, tmp_path, kind):
        whole = make(tmp_path / f"whole.{kind}", sine(seconds=6), rate=48000 // 3)
        part = without(whole, tmp_path / f"gap.{kind}", 2.0, 4.0)
        samples = load(part)
        assert len(samples) == pytest.approx(6 * SAMPLING_RATE, abs=0.15 * SAMPLING_RATE)
        loud = np.abs(samples[: 6 * SAMPLING_RATE - 4000]).reshape(-1, 400).max(axis=1) > 0.1
        seconds = np.flatnonzero(~loud[4:]) / 40 + 0.1
        assert seconds.min() == pytest.approx(2.0, abs=0.15)
        assert seconds.max() == pytest.approx(4.0, abs=0.15)
        assert loud.sum() == pytest.approx(4 * 40, abs=12)

    @pytest.mark.parametrize("kind", ["mka", "webm", "ts"])
    def test_a_clip_that_begins_late(self, tmp_path, kind):
        """As it is cut from a stream: its times go on from there."""
        whole = make(tmp_path / f"whole.{kind}", sine(48000, seconds=6), rate=48000)
        clip = without(whole, tmp_path / f"clip.{kind}", -1.0, 3.0)
        assert len(load(clip)) == pytest.approx(3 * SAMPLING_RATE, abs=0.1 * SAMPLING_RATE)

    def test_a_program_stream(self, tmp_path):
        late = shifted(tmp_path / "late.mpg", 3.0, sine(seconds=2), video=6.0)
        samples = load(late)
        assert len(samples) == pytest.approx(5 * SAMPLING_RATE, abs=0.1 * SAMPLING_RATE)
        assert np.abs(samples[: int(2.9 * SAMPLING_RATE)]).max() < 1e-3

    def test_gaps_in_a_recording_joined_to_another(self, tmp_path):
        """Its timestamps begin anew."""
        whole = make(tmp_path / "whole.ts", sine(seconds=6))
        part = without(whole, tmp_path / "gap.ts", 2.0, 4.0)
        path = write(tmp_path / "joined.ts", whole.read_bytes() + part.read_bytes())
        assert len(load(path)) == pytest.approx(12 * SAMPLING_RATE, abs=0.2 * SAMPLING_RATE)

    def test_a_timestamp_days_ahead_is_wrong(self, tmp_path):
        path = without(
            make(tmp_path / "a.mka", sine(seconds=4)), tmp_path / "b.mka", 2, 2, leap=10**6
        )
        assert len(load(path)) == pytest.approx(4 * SAMPLING_RATE, abs=0.3 * SAMPLING_RATE)


def shifted(path, start, samples, video):
    """A track that begins `start` seconds after the picture."""
    kind = path.suffix[1:]
    format = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg"}.get(kind, kind)
    with av.open(str(path), "w", format=format) as out:
        pictures = out.add_stream("mpeg4", rate=10, width=64, height=48)
        codec = "mp2" if kind == "mpg" else "aac"
        stream = out.add_stream(codec, rate=SAMPLING_RATE, layout="mono")
        for number in range(round(video * 10)):
            out.mux(
                pictures.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8)))
            )
        out.mux(pictures.encode(None))
        for frame in frames_for(stream, np.asarray(samples, np.float32), SAMPLING_RATE):
            frame.pts += round(start * SAMPLING_RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def without(whole, path, start, end, leap=0.0):
    """A copy that lacks the packets from `start` to `end` s; later ones are `leap` s ahead."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        track = source.streams.audio[0]
        copy = out.add_stream_from_template(track)
        first = float((source.start_time or 0) / av.time_base)
        for packet in source.demux(track):
            if packet.dts is None:
                continue
            time = float(packet.pts * packet.time_base) - first
            if not start <= time < end:
                if time >= end:
                    packet.pts += round(leap / packet.time_base)
                    packet.dts += round(leap / packet.time_base)
                packet.stream = copy
                out.mux(packet)
    return path


class TestDamage:
    KINDS = ("aac", "ac3", "flac", "m4a", "mp3", "mka", "mov", "ogg", "opus", "ts", "webm")

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_place_is_named_and_the_rest_read(self, tmp_path, kind):
        data = damages.whole(kind, tmp_path)
        whole = load(write(tmp_path / f"good.{kind}", data))
        path = write(tmp_path / f"bad.{kind}", DAMAGES["40 bytes in the middle"](data))
        (remark,) = remarks(path)
        place = float(re.fullmatch(r"it is damaged at (.*) s; the rest was read", remark)[1])
        assert 2.5 < place < 4.5
        samples = load(path)
        assert len(samples) == pytest.approx(len(whole), abs=0.1 * SAMPLING_RATE)
        # what follows is where it was
        np.testing.assert_allclose(samples[-16000:-4000], whole[-16000:-4000], atol=0.02)

    @pytest.mark.parametrize("kind", ["ac3", "eac3"])
    def test_whatever_a_decoder_calls_it(self, tmp_path, kind):
        """Their errors are of many kinds."""
        path = tmp_path / f"talk.{kind}"
        with av.open(str(path), "w") as out:
            stream = out.add_stream(kind, rate=48000, layout="mono")
            for frame in frames_for(stream, sine(48000, 6).astype(np.float32), 48000):
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        data = path.read_bytes()
        half = len(data) // 2
        write(path, data[:half] + bytes([data[half] ^ 0x55]) + data[half + 1 :])
        assert remarks(path) == ["it is damaged at 3.0 s; the rest was read"]
        assert len(load(path)) == pytest.approx(6 * SAMPLING_RATE, abs=0.1 * SAMPLING_RATE)

    @pytest.mark.parametrize("fill", [bytes, np.random.default_rng(1).bytes])
    def test_what_is_no_frame_takes_its_time(self, tmp_path, fill):
        """Whole frames are lost, of a format without times: what follows is where it was."""
        data = make(tmp_path / "good.mp3", NOISE).read_bytes()
        whole = load(tmp_path / "good.mp3")
        half, lost = len(data) // 2, len(data) // 16
        path = tmp_path / "bad.mp3"
        samples = load(write(path, data[:half] + fill(lost) + data[half + lost :]))
        (remark,) = remarks(path)
        assert re.fullmatch(r"it is damaged at (3\.9|4\.0) s; the rest was read", remark)
        assert len(samples) == pytest.approx(len(whole), abs=0.1 * SAMPLING_RATE)
        lost = len(data) * 3 // 8
        write(path, data[:half] + bytes(lost) + data[half + lost :])
        assert "cannot be decoded" in refused(path)

    @pytest.mark.parametrize("kind", ["flac", "mka"])
    def test_its_last_packet_where_the_length_is_known(self, tmp_path, kind):
        data = damages.whole(kind, tmp_path)
        path = write(tmp_path / f"bad.{kind}", data[:-500] + bytes(40) + data[-460:])
        (remark,) = remarks(path)
        assert re.fullmatch(r"it is damaged at (7\.9|8\.0) s; the rest was read", remark)
        assert len(load(path)) == pytest.approx(8 * SAMPLING_RATE, abs=0.3 * SAMPLING_RATE)

    def test_the_beginning_of_ogg(self, tmp_path):
        """What follows is where it was."""
        data = bytearray(damages.whole("opus", tmp_path))
        data[3000:3040] = bytes(40)
        path = write(tmp_path / "bad.opus", data)
        assert remarks(path)[0].startswith("it is damaged at 0.0 s")
        assert len(load(path)) == pytest.approx(8 * SAMPLING_RATE, abs=0.1 * SAMPLING_RATE)

    def test_encoders_that_fill_up_frames_make_no_damage(self, tmp_path, monkeypatch):
        """As where MP3 frames with bits that nothing uses are more than a few."""
        data = DAMAGES["40 bytes in the middle"](damages.whole("mp3", tmp_path))
        path = write(tmp_path / "filled.mp3", data)
        assert remarks(path)
        for limit in ("_FEW_DOUBTS", "_MOST_DOUBTS"):
            monkeypatch.setattr(f"mlx_speech.audio.av_track.{limit}", 0)
        assert remarks(path) == []

    def test_another_recording_behind_the_end(self, tmp_path):
        data = encoded(NOISE, format="WAV")
        (remark,) = remarks(write(tmp_path / "two.wav", data + data))
        assert remark.startswith(f"it ends after {len(data)} bytes; another recording begins there")

    def test_what_joined_mp3_files_have_between_them_is_none(self, tmp_path):
        data = encoded(NOISE, format="MP3")
        tag = b"ID3\3\0\0\0\0\x4e\x10" + bytes(10000)
        path = write(tmp_path / "joined.mp3", data + b"TAG" + bytes(125) + tag + data)
        assert remarks(path) == []
        assert len(load(path)) == pytest.approx(16 * SAMPLING_RATE, rel=0.03)


@pytest.mark.parametrize("kind", ["ogg", "opus", "oga"])
def test_joined_ogg_streams_are_all_read(tmp_path, kind):
    first, second = sine(seconds=3), sine(seconds=2, hertz=880)
    if kind == "ogg":
        parts = [encoded(samples, format="OGG") for samples in (first, second)]
    else:
        parts = [
            make(tmp_path / f"{n}.{kind}", s).read_bytes() for n, s in enumerate((first, second))
        ]
    for joined, seconds in ((parts[0] + parts[1], 5), (parts[0] + parts[0], 6)):
        path = write(tmp_path / f"joined.{kind}", joined)
        assert len(load(path)) == pytest.approx(seconds * SAMPLING_RATE, rel=0.03)
        assert remarks(path) == []


class TestTracks:
    def test_the_first_with_sound(self, tmp_path):
        tracks = [np.zeros(32000), np.zeros(32000), sine(seconds=2), sine(seconds=2, hertz=880)]
        path = make(tmp_path / "talk.mkv", *tracks)
        assert remarks(path) == [
            "of its 4 audio tracks the first that is not silent, number 3, was read"
        ]
        assert _pitch(load(path)) == pytest.approx(440, abs=5)
        assert _pitch(load(path, audio_track=4)) == pytest.approx(880, abs=5)
        assert remarks(path, audio_track=3) == []
        assert np.abs(load(path, audio_track=1)).max() < 1e-3

    def test_the_first_where_all_have_it(self, tmp_path):
        path = make(tmp_path / "talk.mp4", sine(), sine(hertz=880))
        assert remarks(path) == ["of its 2 audio tracks the first was read"]
        assert _pitch(load(path)) == pytest.approx(440, abs=5)

    def test_all_silent(self, tmp_path):
        path = make(tmp_path / "talk.mp4", np.zeros(16000), np.zeros(32000))
        assert remarks(path) == ["of its 2 audio tracks the first was read"]
        assert len(load(path)) == pytest.approx(16000, abs=2000)

    @pytest.mark.parametrize("number", [0, -1, True, 1.5, "1"])
    def test_no_number(self, number):
        with pytest.raises(
            InputError, match=r"audio_track is .*, but must be an integer, at least 1"
        ):
            load_audio("talk.mp4", audio_track=number)

    def test_no_such_track(self, tmp_path):
        path = make(tmp_path / "talk.mp4", sine(), sine())
        assert "talk.mp4 has 2 audio tracks, and none with number 3" in refused(path, audio_track=3)
        path = write(tmp_path / "talk.wav", encoded(sine(), format="WAV"))
        assert "has 1 audio track," in refused(path, audio_track=2)
        assert len(load(path, audio_track=1)) == 16000

    def test_arrays_have_none(self):
        with pytest.raises(InputError, match="audio_track is for files"):
            load_audio(sine(), 16000, audio_track=1)


class TestChannels:
    OPPOSITE = np.stack([sine(), -sine()], axis=1)

    def test_channels_that_cancel_each_other_out(self, tmp_path):
        path = write(tmp_path / "phase.wav", encoded(self.OPPOSITE, format="WAV"))
        np.testing.assert_allclose(load(path), sine(), atol=1e-4)
        assert remarks(path) == [
            "its channels cancel each other out in the mean of them: channel 1 alone was read there"
        ]
        np.testing.assert_allclose(load(self.OPPOSITE.T, 16000), sine(), atol=1e-4)

    def test_the_louder_one(self):
        array = np.stack([sine(amplitude=0.4), -sine(amplitude=0.41)])
        np.testing.assert_allclose(load(array, 16000), array[1], atol=1e-6)

    @pytest.mark.parametrize("half", [slice(None, 8000), slice(8000, None)])
    def test_for_a_part_of_the_time(self, half):
        array = np.stack([sine(), sine()])
        array[1, half] *= -1
        samples = load(array, 16000)
        np.testing.assert_allclose(samples[half], sine()[half], atol=1e-6)
        np.testing.assert_allclose(samples, sine(), atol=1e-6)

    @pytest.mark.parametrize("common", [0.05 * sine(hertz=50), np.full(16000, 0.2)])
    def test_beside_hum_and_offsets(self, common):
        array = np.stack([sine() + common, -sine() + common])
        np.testing.assert_allclose(load(array, 16000), array[0], atol=1e-6)

    def test_silence_does_not_cancel(self):
        noise = 1e-5 * np.random.default_rng(0).standard_normal(16000)
        array = np.stack([sine(), sine()])
        array[:, 8000:] = np.stack([noise, -noise])[:, 8000:]
        with open_recording(array, 16000) as recording:
            assert recording.remarks == []

    def test_others_are_averaged(self):
        one_of_many = np.zeros((60, 16000), np.float32)
        one_of_many[7] = sine()
        np.testing.assert_allclose(load(one_of_many, 16000), sine() / 60, atol=1e-6)
        apart = np.stack([sine(), sine(hertz=880)])
        np.testing.assert_allclose(load(apart, 16000), apart.mean(axis=0), atol=1e-6)

    def test_a_chosen_one(self, tmp_path):
        np.testing.assert_allclose(load(self.OPPOSITE.T, 16000, channel=2), -sine(), atol=1e-6)
        assert np.abs(load(self.OPPOSITE.T, 16000, channel="mix")).max() < 1e-6
        path = write(tmp_path / "phase.wav", encoded(self.OPPOSITE, format="WAV"))
        np.testing.assert_allclose(load(path, channel=2), -sine(), atol=1e-4)
        for channel in (np.int64(2), 2.0):
            np.testing.assert_allclose(load(path, channel=channel), -sine(), atol=1e-4)
        assert remarks(path, channel=2) == []
        assert "has 2 channels, and none is 3" in refused(path, channel=3)
        mono = write(tmp_path / "mono.wav", encoded(sine(), format="WAV"))
        assert "has 1 channel, and none is 2" in refused(mono, channel=2)

    @pytest.mark.parametrize("channel", [0, -1, True, 1.5, "left"])
    def test_none(self, channel):
        with pytest.raises(InputError, match=r"channel is .*, but must be .* or 'mix'"):
            load_audio(sine(), 16000, channel=channel)


def _pitch(samples):
    spectrum = np.abs(np.fft.rfft(samples[4000:12000] * np.hanning(8000)))
    return spectrum.argmax() * 2


class TestLimits:
    """What a file may ask for is bounded by its own size."""

    def test_hours_in_few_bytes(self, tmp_path, monkeypatch):
        path = write(tmp_path / "mute.flac", encoded(np.zeros(100 * SAMPLING_RATE), format="FLAC"))
        assert len(load(path)) == 100 * SAMPLING_RATE
        monkeypatch.setattr("mlx_speech.audio.recording._LONGEST_SECONDS", 20)
        assert re.search(r"mute\.flac has \d+ bytes, and hours of silence", refused(path))
        monkeypatch.setattr("mlx_speech.audio.recording._LEAST_BYTE_RATE", 400)
        video = make(tmp_path / "mute.mka", np.zeros(100 * SAMPLING_RATE))
        assert "hours of silence" in refused(video)
        assert len(load(write(tmp_path / "talk.flac", encoded(NOISE, format="FLAC")))) == len(NOISE)

    def test_empty_chunks_without_end(self, tmp_path, monkeypatch):
        path = write(tmp_path / "empty.wav", b"RIFF\0\0\0\0WAVE" + bytes(1_000_000))
        monkeypatch.setattr("mlx_speech.audio.av_reader._MOST_SEEKS", 1000)
        seek, seeks = _BoundedFile.seek, []
        monkeypatch.setattr(_BoundedFile, "seek", lambda *a: seeks.append(a) or seek(*a))
        assert "empty.wav is not audio" in refused(path)
        assert len(seeks) < 50_000

    @pytest.mark.parametrize("size", [b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f"])
    @pytest.mark.parametrize("kind", ["W64", "CAF"])
    def test_chunk_sizes_beyond_all_files(self, tmp_path, kind, size):
        data = bytearray(encoded(sine(), format=kind))
        at = 56 if kind == "W64" else 12
        data[at : at + 8] = size
        assert f"{kind} is" in refused(write(tmp_path / f"bad.{kind}", data))

    @pytest.mark.parametrize(
        "data", [b".snd\0\0\0\1\0", b"NIST_1A\nabc\n" + bytes(2000), b"NIST_1A\n   " + b"9" * 2000]
    )
    def test_headers_that_end_too_early(self, tmp_path, data):
        assert "talk.wav is not audio" in refused(write(tmp_path / "talk.wav", data))

    def test_frames_without_audio(self, tmp_path):
        message = refused(write(tmp_path / "talk.mp3", b"\xff\xfb" + bytes(5000)))
        assert "sampling rate" not in message

    def test_floats_beyond_all_sounds(self, tmp_path):
        data = np.full((1000, 2), 3e38, np.float32)
        path = write(tmp_path / "loud.wav", encoded(data, format="WAV", subtype="FLOAT"))
        assert "float samples up to 3e+38" in refused(path)


@pytest.mark.parametrize("kind", ["m4a", "mka", "opus", "wav"])
def test_eight_channels(tmp_path, kind):
    """7.1: more than FFmpeg has pointers to planes for."""
    samples = sine(48000, seconds=1)[:, None] * np.arange(1, 9) / 8
    path = make(tmp_path / f"surround.{kind}", samples, rate=48000, layout="7.1")
    assert np.abs(load(path)[4000:12000]).max() == pytest.approx(0.5 * 4.5 / 8, abs=0.15)
    if kind in ("mka", "wav"):  # without loss
        for channel in range(1, 9):
            part = load(path, channel=channel)[4000:12000]
            assert np.abs(part).max() == pytest.approx(0.5 * channel / 8, abs=0.01)
