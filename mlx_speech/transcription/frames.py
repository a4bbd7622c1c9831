"""The frames that speech activity, cuts and word times are counted in: the Granite encoder's."""

import numpy as np

from ..audio import SAMPLING_RATE

FRAMES_PER_SECOND = 50
FRAME_SAMPLES = SAMPLING_RATE // FRAMES_PER_SECOND  #: samples of a frame


def runs(mask: np.ndarray) -> np.ndarray:
    """Where frames in a row are true, [start, end) each: (n,) boolean -> (runs, 2)."""
    return np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
