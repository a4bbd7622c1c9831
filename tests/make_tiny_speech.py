"""Writes speech of a small command language to train the tiny models on: sentences drawn from a
grammar, none of which holds a sentence of data/audio, each said by one of many voices.

Needs espeakng-loader and py-nanotts from PyPI, which bring espeak-ng and SVOX Pico with them, and
what `make parity` installs: `.venv/bin/python tests/make_tiny_speech.py speech.npz`.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import random
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tiny_training import SAMPLE_RATE, held_out
from torchaudio.functional import resample


def words(text: str) -> list[str]:
    return text.split()


DIGITS = words("zero one two three four five six seven eight nine")
HOURS = [*DIGITS[1:], "ten", "eleven", "twelve"]
NUMBERS = [*HOURS[1:], "fifteen", "twenty", "thirty", "forty", "fifty"]
ROOMS = words("kitchen bedroom bathroom office garden garage")
DAYS = words("monday tuesday wednesday thursday friday saturday sunday")
WORDS = {
    "city": words("rome paris london berlin madrid tokyo boston cairo dublin"),
    "day": ["today", "tonight", "tomorrow", *(f"on {day}" for day in DAYS)],
    "number": NUMBERS,
    "hour": [*HOURS, *(f"{hour} {past}" for hour in HOURS for past in ("fifteen", "thirty"))],
    "unit": ["seconds", "minutes", "hours"],
    "room": ROOMS,
    "device": ["light", "lamp", "fan", "heater", "radio"],
    "move": ["open", "close", "lock", "unlock"],
    "place": ["front", "back", *ROOMS],
    "barrier": ["door", "window", "gate"],
    "food": words("milk eggs apples bread cheese water coffee tea rice butter"),
    "chore": ["feed the cat", "feed the dog", "water the plants", "call the doctor"],
    "person": words("sister brother mother father"),
    "music": ["music", "jazz"],
    "switch": ["on", "off"],
    "turn": ["up", "down"],
    "short": ["good morning", "good night", "what time is it", "how far is it", "stop the music"],
}
SHAPES = [
    "turn {switch} the {room} {device}",
    "{move} the {place} {barrier}",
    "set the {room} to {number} degrees",
    "set a timer for {number} {unit}",
    "what is the weather in {city} {day}",
    "book a train from {city} to {city} {day}",
    "remind me to {chore} {day}",
    "wake me up at {hour}",
    "add {food} to the shopping list",
    "add {food} and {food} to the shopping list",
    "send a message to my {person}",
    "call my {person}",
    "turn the volume {turn}",
    "play some {music}",
    "{short}",
]
ACCENTS = words("en-us en en-gb-scotland en-029 en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc")
TIMBRES = words(
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 klatt5 klatt6 Alex Andy "
    "Denis Gene Lee Michael Mike Annie adam david edward ian john linda max paul quincy rob robert "
    "steph travis victor zac belinda caleb grandma Alicia"
)


def command(rng: random.Random) -> str:
    """One command, or a string of digits."""
    if rng.random() < 0.25:
        return " ".join(rng.choices(DIGITS, k=rng.randint(2, 7)))
    shape = rng.choices(SHAPES, [shape.count("{") + 0.3 for shape in SHAPES])[0]
    while "{" in shape:
        name = shape[shape.index("{") + 1 : shape.index("}")]
        shape = shape.replace(f"{{{name}}}", rng.choice(WORDS[name]), 1)
    return shape


def sentences(count: int, seed: int, kept_out: list[str]) -> list[str]:
    """`count` sentences of one command or two, none of which holds one that is kept out."""
    rng = random.Random(seed)
    found = []
    while len(found) < count:
        text = command(rng) if rng.random() < 0.7 else f"{command(rng)} and {command(rng)}"
        if not any(f" {text} ".find(f" {other} ") >= 0 for other in kept_out):
            found.append(text)
    return found


@cache
def espeak() -> ctypes.CDLL:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    synchronous = 2
    rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate != 22050:
        raise RuntimeError(f"espeak-ng gives {rate} Hz, not 22050")
    return library


def espeak_says(text: str, voice: str, rng: random.Random) -> np.ndarray:
    library, parts = espeak(), []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(receive)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice}")
    words_per_minute, pitch, pitch_range = 1, 3, 4  # the numbers of these parameters
    library.espeak_SetParameter(words_per_minute, rng.randint(120, 200), 0)
    library.espeak_SetParameter(pitch, rng.randint(25, 75), 0)
    library.espeak_SetParameter(pitch_range, rng.randint(20, 80), 0)
    utf8, data = 1, text.encode() + b"\0"
    library.espeak_Synth(data, len(data), 0, 0, 0, utf8, None, None)
    wave = torch.from_numpy(np.concatenate(parts).astype(np.float32) / 32768)
    return resample(wave, 22050, SAMPLE_RATE).numpy()


def pico_says(text: str, voice: str, rng: random.Random) -> np.ndarray:
    from py_nanotts import NanoTTS

    speed, pitch = rng.uniform(0.8, 1.3), rng.uniform(0.7, 1.3)
    pcm = NanoTTS().speak(text, voice=voice, speed=speed, pitch=pitch)
    return np.frombuffer(pcm, np.int16).astype(np.float32) / 32768


def say(numbered: tuple[int, str]) -> np.ndarray:
    """Speech of a sentence by a voice that its number chooses, 16 bit, silence cut off its ends."""
    torch.set_num_threads(1)
    rng = random.Random(numbered[0])
    if rng.random() < 0.25:
        wave = pico_says(numbered[1], rng.choice(["en-US", "en-GB"]), rng)
    else:
        voice = f"{rng.choice(ACCENTS)}+{rng.choice(TIMBRES)}"
        wave = espeak_says(numbered[1], voice, rng)
    peak = np.abs(wave).max()
    loud = np.flatnonzero(np.abs(wave) > 0.01 * peak)
    wave = wave[loud[0] : loud[-1] + 1]
    return (wave / peak * 30000).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--sentences", type=int, default=24000)
    args = parser.parse_args()
    kept_out = [recording.text for recording in held_out() if recording.text]
    texts = sentences(args.sentences, 17, kept_out)
    with multiprocessing.get_context("spawn").Pool() as pool:
        spoken = pool.map(say, list(enumerate(texts)), chunksize=50)
    lengths = [len(wave) for wave in spoken]
    np.savez(args.file, audio=np.concatenate(spoken), lengths=lengths, texts=texts)
    print(f"{len(texts)} sentences, {sum(lengths) / SAMPLE_RATE / 3600:.1f} h")


if __name__ == "__main__":
    main()
