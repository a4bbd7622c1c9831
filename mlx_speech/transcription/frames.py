"""The frames that speech activity, cuts and word times are counted in: the Granite encoder's."""

from ..audio import SAMPLING_RATE

FRAMES_PER_SECOND = 50
#: samples of a frame
FRAME_SAMPLES = SAMPLING_RATE // FRAMES_PER_SECOND
