"""Sounds that are no speech, made anew from a number: noises, hums and tones that are steady, and
lively ones: sweeps, plucked strings, beeps, sirens, noise that fades."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATE = 16000
SHORTEST_S, LONGEST_S = 0.02, 60.0
QUIETEST_DBFS, LOUDEST_DBFS = -60.0, 0.0

Random = np.random.Generator
#: (seconds (n,) of each sample, randomness) -> (n,) samples of any level
Maker = Callable[[np.ndarray, Random], np.ndarray]


@dataclass(frozen=True)
class Sound:
    """samples: (n,), float32 at 16 kHz."""

    kind: str
    samples: np.ndarray


def at_level(samples: np.ndarray, dbfs: float) -> np.ndarray:
    """The samples with an RMS of `dbfs`, clipped as a file would."""
    rms = np.sqrt(np.square(samples, dtype=np.float64).mean()) or 1.0
    return np.clip(samples * (10 ** (dbfs / 20) / rms), -1.0, 1.0).astype(np.float32)


def colored_noise(size: int, slope: float, random: Random) -> np.ndarray:
    """Noise whose power falls with frequency to the power of `slope`: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(random.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 5)
    return np.fft.irfft(spectrum * frequency ** (-slope / 2), size)


def over(
    samples: np.ndarray, noise: float | np.ndarray, decibels: float, random: Random
) -> np.ndarray:
    """A recording over noise that it is `decibels` louder than.

    Args:
        noise: the slope of a coloured one, or the recordings, (n,), of which six at a time babble.
    """
    if isinstance(noise, np.ndarray):
        starts = random.integers(noise.size, size=6)
        background = sum(np.resize(np.roll(noise, start), samples.size) for start in starts)
    else:
        background = colored_noise(samples.size, noise, random)
    power = np.square(samples).mean() / np.square(background).mean()
    mixed = samples + background * np.sqrt(power / 10 ** (decibels / 10))
    return mixed.astype(np.float32)


def _between(low: float, high: float, random: Random) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def _harmonics(phase: np.ndarray, random: Random, most: int = 12) -> np.ndarray:
    """A tone with up to `most` harmonics of falling strength over a phase in radians, (n,)."""
    slope = random.uniform(0.5, 2)
    harmonics = range(1, int(random.integers(1, most + 1)) + 1)
    return sum(np.sin(k * phase + random.uniform(0, 6)) / k**slope for k in harmonics)


def _phase(hertz: np.ndarray) -> np.ndarray:
    return 2 * np.pi * np.cumsum(hertz) / RATE


def _notes(
    t: np.ndarray, random: Random, shortest: float, longest: float
) -> list[tuple[slice, np.ndarray]]:
    """Where notes that follow on each other lie, and the seconds since the start of each."""
    edges, at = [], 0.0
    while at * RATE < t.size:
        edges.append(int(at * RATE))
        at += _between(shortest, longest, random)
    stops = [*edges[1:], t.size]
    return [(slice(a, b), t[a:b] - t[a]) for a, b in zip(edges, stops, strict=True) if b > a]


# steady


def _noise(slope: float) -> Maker:
    return lambda t, random: colored_noise(t.size, slope, random)


def _hum(t: np.ndarray, random: Random) -> np.ndarray:
    phase = 2 * np.pi * random.choice([50.0, 60.0]) * t
    noise = colored_noise(t.size, random.uniform(0, 2), random)
    return _harmonics(phase, random) + random.uniform(0, 0.1) * noise / (np.abs(noise).max() + 1e-9)


def _tone(t: np.ndarray, random: Random) -> np.ndarray:
    return np.sin(2 * np.pi * _between(60, 7000, random) * t)


def _buzz(t: np.ndarray, random: Random) -> np.ndarray:
    return np.sign(np.sin(2 * np.pi * _between(60, 600, random) * t))


def _chord(t: np.ndarray, random: Random) -> np.ndarray:
    tones = [_between(100, 3000, random) for _ in range(random.integers(2, 6))]
    return sum(np.sin(2 * np.pi * hertz * t + random.uniform(0, 6)) for hertz in tones)


def _fan(t: np.ndarray, random: Random) -> np.ndarray:
    """Noise of a falling spectrum, and the blades over it."""
    noise = colored_noise(t.size, random.uniform(0.5, 2), random)
    blades = _harmonics(2 * np.pi * random.uniform(30, 200) * t, random)
    return noise / noise.std() + random.uniform(0, 0.5) * blades if t.size > 1 else noise


# lively


def _sweep(t: np.ndarray, random: Random) -> np.ndarray:
    first, last = _between(80, 6000, random), _between(80, 6000, random)
    return np.sin(_phase(first * (last / first) ** (t / max(t[-1], 1e-9))))


def _sweeps(t: np.ndarray, random: Random) -> np.ndarray:
    period = _between(0.2, 4, random)
    first, last = _between(80, 1500, random), _between(300, 6000, random)
    return _harmonics(_phase(first * (last / first) ** (t % period / period)), random, 4)


def _plucked(t: np.ndarray, random: Random) -> np.ndarray:
    """Strings plucked together, again and again (Karplus and Strong)."""
    out = np.zeros(t.size)
    for where, since in _notes(t, random, 0.3, 2):
        root = _between(80, 400, random)
        decay = random.uniform(1, 6)
        for ratio in (1, 5 / 4, 3 / 2, 2)[: random.integers(1, 5)]:
            for k in range(1, 13):
                hertz = root * ratio * k
                if hertz < RATE / 2:
                    wave = np.sin(2 * np.pi * hertz * since + random.uniform(0, 6))
                    out[where] += wave * np.exp(-decay * k**0.7 * since) / k
    return out


def _beeps(t: np.ndarray, random: Random) -> np.ndarray:
    period, share = _between(0.15, 2, random), random.uniform(0.2, 0.8)
    phase = 2 * np.pi * _between(300, 4000, random) * t
    return _harmonics(phase, random, 3) * (t % period < share * period)


def _dtmf(t: np.ndarray, random: Random) -> np.ndarray:
    out = np.zeros(t.size)
    on = random.uniform(0.4, 0.8)
    length = random.uniform(0.1, 0.5)
    for where, since in _notes(t, random, length, length * 1.01):
        pair = random.choice([697, 770, 852, 941]), random.choice([1209, 1336, 1477, 1633])
        tones = sum(np.sin(2 * np.pi * hertz * since) for hertz in pair)
        out[where] = tones * (since < on * length)
    return out


def _siren(t: np.ndarray, random: Random) -> np.ndarray:
    middle, rate = random.uniform(500, 1200), _between(0.2, 6, random)
    swing = np.sin(2 * np.pi * rate * t)
    if random.random() < 0.3:
        swing = np.sign(swing)
    return _harmonics(_phase(middle * 2 ** (random.uniform(0.2, 0.8) * swing)), random, 6)


def _modulated_noise(t: np.ndarray, random: Random) -> np.ndarray:
    noise = colored_noise(t.size, random.uniform(0, 2), random)
    rate, depth = _between(0.5, 20, random), random.uniform(0.5, 1)
    return noise * (1 + depth * np.sin(2 * np.pi * rate * t + random.uniform(0, 6)))


def _fading_noise(t: np.ndarray, random: Random) -> np.ndarray:
    noise = colored_noise(t.size, random.uniform(0, 2), random)
    decibels = random.uniform(20, 60) * t / max(t[-1], 1e-9)
    return noise * 10 ** (-(decibels if random.random() < 0.5 else decibels[::-1]) / 20)


def _clicks(t: np.ndarray, random: Random) -> np.ndarray:
    """Knocks: bursts that ring for a moment."""
    out = np.zeros(t.size)
    for where, since in _notes(t, random, 0.05, 1.5):
        ring = np.sin(2 * np.pi * _between(100, 4000, random) * since)
        burst = ring + random.uniform(0, 1) * random.standard_normal(since.size)
        out[where] = burst * np.exp(-since / _between(0.002, 0.05, random))
    return out


def _arpeggio(t: np.ndarray, random: Random) -> np.ndarray:
    """Notes of a scale one by one, each with an attack and a decay, as a melody has."""
    out = np.zeros(t.size)
    length = random.uniform(0.1, 0.6)
    root = _between(110, 440, random)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12, 16, 19])
    for where, since in _notes(t, random, length, length * 1.01):
        hertz = root * 2 ** (random.choice(scale) / 12)
        envelope = np.minimum(since / 0.01, 1) * np.exp(-since * random.uniform(1, 8))
        out[where] = _harmonics(2 * np.pi * hertz * since, random, 8) * envelope
    return out


STEADY: dict[str, Maker] = {
    "white": _noise(0),
    "pink": _noise(1),
    "brown": _noise(2),
    "hum": _hum,
    "tone": _tone,
    "buzz": _buzz,
    "chord": _chord,
    "fan": _fan,
}
LIVELY: dict[str, Maker] = {
    "sweep": _sweep,
    "sweeps": _sweeps,
    "plucked": _plucked,
    "beeps": _beeps,
    "dtmf": _dtmf,
    "siren": _siren,
    "modulated noise": _modulated_noise,
    "fading noise": _fading_noise,
    "clicks": _clicks,
    "arpeggio": _arpeggio,
}


def sound(
    makers: dict[str, Maker],
    index: int,
    seed: int = 0,
    shortest: float = SHORTEST_S,
    longest: float = LONGEST_S,
) -> Sound:
    """One of any level and a length between the two in seconds, the kinds being taken in turn; the
    same for the same index and seed."""
    random = np.random.default_rng([seed, index])
    kind = list(makers)[index % len(makers)]
    size = round(_between(shortest, longest, random) * RATE)
    level = random.uniform(QUIETEST_DBFS, LOUDEST_DBFS)
    samples = makers[kind](np.arange(size) / RATE, random)
    return Sound(kind, at_level(samples, level))


def sounds(
    makers: dict[str, Maker],
    count: int,
    seed: int = 0,
    shortest: float = SHORTEST_S,
    longest: float = LONGEST_S,
) -> list[Sound]:
    """The first `count` of them."""
    return [sound(makers, index, seed, shortest, longest) for index in range(count)]
