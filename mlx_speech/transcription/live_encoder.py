"""The encoder and its CTC head over audio that is still coming in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..audio.live import RecentSamples
from ..models.conformer_window import Halos
from ..processing.log_mel import LogMelFeatureExtractor
from .chunks import SHORTEST_SAMPLES, AudioChunk
from .frames import FRAME_SAMPLES
from .segmenter import Span
from .vad import SpeechActivity

#: said of models that cannot
NO_LIVE_TEXT = (
    "live text is what an encoder's CTC head writes, and this model has none whose labels are "
    "known; Granite Speech models have one, save for 3.2"
)
CONTEXT_BLOCKS = 2  #: attention blocks before the first frame that is wanted; more change nothing

#: features of a window, (frames, width), its halos, and places in it -> what the model says of each
#: frame, (frames / stride, …) each, and the halos of each place
EncodeWindow = Callable[
    [mx.array, Halos, Sequence[int]], tuple[Sequence[mx.array], Sequence[Halos]]
]


@dataclass(frozen=True)
class _Edge:
    """The beginning of an attention block.

    frame: its first.
    halos: what windows that begin there need of what is before.
    """

    frame: int
    halos: Halos = ()


class LiveEncoder(ABC):
    """What a family's encoder says of the latest audio, made by `SpeechFamily.live_encoder`.

    Frames are of 20 ms, counted from the beginning of the audio. Windows start on the grid of the
    encoder's attention blocks, whatever is asked for: off that grid, no frame would get what it
    gets in the whole recording. Each call encodes the block that is not closed yet. It is, as soon
    as `hold_back` frames after it are known; then the one before it is encoded once more, with all
    of this behind it.

    Args:
        extractor: computes the features. Their greatest value so far counts for all frames of a
            window.
        encode_window: the model's.
        block_frames: frames of the grid.

    Attributes:
        stride: frames that become one of the encoder.
        span_frames: spans begin and end at multiples of these.
        label_frames: frames that the CTC head gives a label for, from the first encoded one on.
        hold_back: frames at the end of what is encoded that later ones may still change.
        first, end: of the frames that are encoded, [first, end).
    """

    def __init__(
        self,
        extractor: LogMelFeatureExtractor,
        encode_window: EncodeWindow,
        *,
        block_frames: int,
        span_frames: int,
        label_frames: int,
        hold_back: int,
        stride: int = 1,
    ):
        self.span_frames, self.label_frames, self.hold_back = span_frames, label_frames, hold_back
        self._extractor, self._encode_window = extractor, encode_window
        self._block_frames, self.stride = block_frames, stride
        self._highest = mx.array(-mx.inf)
        self._known = 0  # frames whose features were computed
        # while somebody speaks: blocks from here on may change, and are not closed yet
        self._settled: _Edge | None = None
        self._open = _Edge(0)
        self._encoded: list[mx.array] = []
        self.first = self.end = 0

    def needed_samples(self, first: int) -> int:
        """The first sample that is needed to encode from a frame on."""
        start = self._window_start(first)
        if self._settled is not None:
            start = min(start, self._settled.frame)
        return max(0, start * FRAME_SAMPLES - self._extractor.reach_samples)

    def _window_start(self, first: int) -> int:
        return max(0, first // self._block_frames - CONTEXT_BLOCKS) * self._block_frames

    def start(self, first: int) -> None:
        """Encode from a frame on, a multiple of the stride, what comes with the next `advance`."""
        self._settled = self._open = _Edge(self._window_start(first))
        self.first = self.end = first
        self._encoded = []

    def stop(self) -> None:
        """Encode no more."""
        self._settled, self._encoded = None, []

    def advance(self, samples: RecentSamples, *, ended: bool = False) -> None:
        """Look at the samples that have come.

        Args:
            ended: there will be no more.
        """
        if samples.size < SHORTEST_SAMPLES:
            return
        known = self._extractor.num_frames(samples.size, ended=ended)
        if self._settled is None:
            if known > self._known:
                self._features(samples, self._known, known)
                mx.eval(self._highest)
        elif known - known % self.stride > max(self._open.frame, self.end):
            closed = (known - self.hold_back - self._open.frame) // self._block_frames
            if closed <= 0:
                self._encode(samples, self._open, known)
            else:
                self._close(samples, closed, known)
        self._known = max(self._known, known)

    def settle(self, samples: RecentSamples) -> None:
        """Encode once more what is not settled, as what was said has ended."""
        if self._settled is not None and self._settled is not self._open:
            self._encode(samples, self._settled, self._known)

    def _close(self, samples: RecentSamples, blocks: int, known: int) -> None:
        """Encode, and let blocks be closed."""
        assert self._settled is not None
        start, end = self._settled, self._open.frame + blocks * self._block_frames
        edges = [end - self._block_frames, end]
        halos = self._encode(samples, start, known, [edge - start.frame for edge in edges])
        self._settled, self._open = map(_Edge, edges, halos)

    def _encode(
        self, samples: RecentSamples, start: _Edge, end: int, places: Sequence[int] = ()
    ) -> Sequence[Halos]:
        """Encode the frames from an edge on; gives the halos at the places."""
        features = self._features(samples, start.frame, end)
        encoded, halos = self._encode_window(features, start.halos, places)
        self.end = start.frame + len(encoded[0]) * self.stride
        before = max(0, self.first - start.frame) // self.stride
        fresh = [part[before:] for part in encoded]
        if kept := max(0, start.frame - self.first) // self.stride:
            pairs = zip(self._encoded, fresh, strict=True)
            fresh = [mx.concatenate([old[:kept], new]) for old, new in pairs]
        self._encoded = fresh
        mx.eval(fresh)
        return halos

    def _features(self, samples: RecentSamples, first: int, end: int) -> mx.array:
        given = samples.read, samples.size, first, end, self._highest
        features, self._highest = self._extractor.window(*given)
        return features

    def drop(self, first: int) -> None:
        """Let go of the frames before one, a multiple of the stride."""
        number = (first - self.first) // self.stride
        # copies: slices would hold on to the whole; of nothing, not all of MLX's backends make any
        some = first < self.end
        self._encoded = [mx.contiguous(part[number:]) for part in self._encoded if some]
        self.first = first

    def _part(self, first: int, end: int | None = None) -> list[mx.array]:
        """What is encoded of frames [first, end)."""
        start = (first - self.first) // self.stride
        stop = None if end is None else (end - self.first) // self.stride
        return [part[start:stop] for part in self._encoded]

    def labels(self, first: int, end: int) -> list[int]:
        """The likeliest labels, blanks included, of frames [first, end); both are whole labels from
        `self.first` on."""
        return self._labels(*self._part(first, end)) if first < end else []

    def activity(self, first: int, end: int) -> SpeechActivity:
        """What the CTC head detects in frames [first, end)."""
        if first >= end:
            return SpeechActivity.none()
        lead, rest = (first - self.first) % self.stride, (self.first - end) % self.stride
        activity = self._activity(*self._part(first - lead, end + rest))
        return activity[lead : lead + end - first]

    def chunk(
        self,
        span: Span,
        samples: RecentSamples,
        *,
        for_alignment: bool,
        drafts: bool,
        for_decoder: bool,
    ) -> AudioChunk:
        """A part of the audio, ready to be decoded; arguments as of `SpeechFamily.chunks`."""
        wanted = {"for_alignment": for_alignment, "drafts": drafts, "for_decoder": for_decoder}
        return self._chunk(span, samples, self._part(span.start), **wanted)

    @abstractmethod
    def text(self, labels: Sequence[int]) -> str:
        """What labels in a row say, blanks among them; runs of white space are one space."""

    @abstractmethod
    def _labels(self, *encoded: mx.array) -> list[int]:
        """See `labels`; of what was encoded of some frames."""

    @abstractmethod
    def _activity(self, *encoded: mx.array) -> SpeechActivity:
        """See `activity`; of what was encoded of some frames."""

    @abstractmethod
    def _chunk(
        self, span: Span, samples: RecentSamples, encoded: list[mx.array], **wanted: bool
    ) -> AudioChunk:
        """See `chunk`; of what was encoded from the beginning of the span on, also beyond it."""
