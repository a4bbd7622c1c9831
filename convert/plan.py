"""What becomes of each module: shape, bits, bytes before and after."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_speech.checkpoint.quantization import part_of

_SHORT = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_WIDTHS = (37, 12, 9, 9, 9)  # with a space between them, 80 columns


@dataclass(frozen=True)
class Row:
    """One module.

    path: its name.
    shape: of its weights, unpacked.
    settings: `group_size`, `bits` and `mode`; None where it is not quantized.
    dtype: type of what is not quantized in it, and of the scales of affine quantization.
    before, after: bytes of all its tensors, in the source (where a BatchNorm that is part of a
        convolution now counts in float32) and in the result.
    note: why it is not as asked, or empty.
    """

    path: str
    shape: tuple[int, ...]
    settings: dict[str, Any] | None
    dtype: str
    before: int
    after: int
    note: str = ""

    @property
    def storage(self) -> str:
        """`4/64` (bits and group size, where affine), the mode, or the type."""
        if self.settings is None:
            return _SHORT[self.dtype]
        if self.settings["mode"] != "affine":
            return self.settings["mode"]
        return f"{self.settings['bits']}/{self.settings['group_size']}"


@dataclass(frozen=True)
class Plan:
    """A conversion, module by module."""

    rows: tuple[Row, ...]

    @property
    def before(self) -> int:
        """Bytes of the source's tensors."""
        return sum(row.before for row in self.rows)

    @property
    def after(self) -> int:
        """Bytes of the result's tensors."""
        return sum(row.after for row in self.rows)

    @property
    def notes(self) -> list[str]:
        """What is not as asked, a line for each reason."""
        paths: dict[str, list[str]] = {}
        for row in self.rows:
            if row.note:
                paths.setdefault(row.note, []).append(row.path)
        return [
            f"{note}: {', '.join(found[:2])}" + (f" and {len(found) - 2} more" * (len(found) > 2))
            for note, found in paths.items()
        ]

    def bits(self) -> list[int]:
        """What the quantized modules have."""
        return sorted({row.settings["bits"] for row in self.rows if row.settings})

    def parts(self) -> dict[str, Plan]:
        """The modules of each part of the model that it has."""
        rows: dict[str, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(part_of(row.path), []).append(row)
        return {part: Plan(tuple(found)) for part, found in rows.items()}

    def lines(self) -> Iterator[str]:
        """A table of 80 columns: each module, each part, the whole."""
        yield _line("module", "shape", "stored", "before", "after")
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            yield from _entry(row.path, shape, row.storage, row.before, row.after)
        yield ""
        for name, part in self.parts().items():
            yield from _entry(name, "", "", part.before, part.after)
        yield from _entry("total", "", "", self.before, self.after)
        for note in self.notes:
            yield from textwrap.wrap(note, 80, subsequent_indent="  ", break_on_hyphens=False)


@dataclass(frozen=True)
class Learned:
    """How a model was quantized that learned from recordings.

    method: `"dwq"`, `"awq"`, `"gptq"` or `"dynamic"`.
    recordings, audio_seconds: how many, and how long together.
    seconds: it took.
    peak_memory: most bytes that all arrays had.
    """

    method: str
    recordings: int
    audio_seconds: float
    seconds: float
    peak_memory: int

    def __str__(self) -> str:
        recordings = f"{self.recordings} recording{'s' * (self.recordings != 1)}"
        return (
            f"{self.method}, learned from {recordings} of {self.audio_seconds:.0f} s, in "
            f"{self.seconds:.0f} s and at most {size(self.peak_memory)} of memory"
        )


@dataclass(frozen=True)
class Conversion:
    """One converted model.

    folder: where it is, or for a plan would be.
    plan: what became of each module, with bytes before and after.
    bits, group_size, mode: the usual ones, as at the top of config.json's `quantization`; None
        where the result is not quantized.
    recipe: name of the recipe, `"custom"` for a predicate, None where there was neither.
    dtype: type of what is not quantized, as in config.json: `"bfloat16"` and so on.
    source: the repository (`owner/name`), or the name of the folder, that it was made from.
    fused_adapter: `r`, `lora_alpha`, `target_modules` and `modules_to_save` of the adapter that is
        in the weights; of a further one also its `name`, and `over` which adapter it was put.
    learned: what was quantized by more than rounding to nearest, and what that took.
    """

    folder: Path
    plan: Plan
    bits: int | None
    group_size: int | None
    mode: str | None
    recipe: str | None
    dtype: str
    source: str
    fused_adapter: dict[str, Any] | None = None
    learned: Learned | None = None


def _entry(name: str, shape: str, storage: str, before: int, after: int) -> Iterator[str]:
    if len(name) > _WIDTHS[0]:
        yield name
        name = ""
    yield _line(name, shape, storage, size(before), size(after))


def _line(name: str, *columns: str) -> str:
    numbers = (f"{text:>{width}}" for text, width in zip(columns, _WIDTHS[1:], strict=True))
    return " ".join((f"{name:<{_WIDTHS[0]}}", *numbers))


def size(nbytes: int) -> str:
    """Bytes for people: three digits and a unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.{1 if nbytes >= 100 * scale else 2}f} {unit}"
    return f"{nbytes} B"
