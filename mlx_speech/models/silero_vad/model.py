"""Silero VAD 6 in MLX: how likely somebody speaks in each 32 ms of a recording.

A net of 0.3 M parameters (1.2 MB) that the Silero team trained on speech in thousands of languages,
and on other sounds; https://github.com/snakers4/silero-vad, MIT (`LICENSE`). The weights
beside this file are those of the package's version 6.2.3 for 16 kHz.
"""

from pathlib import Path
from typing import Self

import mlx.core as mx
import mlx.nn as nn

WINDOW_SAMPLES = 512  #: samples of a window, at 16 kHz
_CONTEXT_SAMPLES = 64  #: of the window before, which each is given
_REFLECTED_SAMPLES = 64  #: mirrored at its end
_FFT_SIZE, _HOP_SAMPLES = 256, 128
_BINS = _FFT_SIZE // 2 + 1
_WIDTH = 128
_WEIGHTS = Path(__file__).with_name("silero_vad_v6_16k.safetensors")

#: the last samples, (64,), and the LSTM's hidden and cell state, (128,) each
State = tuple[mx.array, mx.array, mx.array]


class SileroVAD(nn.Module):
    """A spectrum, four convolutions that make one frame of a window's four, and an LSTM over these.

    It computes in float32, whatever the speech model does.
    """

    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _BINS, _FFT_SIZE, stride=_HOP_SAMPLES, bias=False)
        self.conv1 = nn.Conv1d(_BINS, _WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(_WIDTH, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, _WIDTH, 3, padding=1)
        self.lstm = nn.LSTM(_WIDTH, _WIDTH)
        self.final_conv = nn.Conv1d(_WIDTH, 1, 1)

    @classmethod
    def bundled(cls) -> Self:
        """The one whose weights come with the package."""
        model = cls()
        model.load_weights(list(cls.sanitize(mx.load(str(_WEIGHTS))).items()))
        model.eval()
        return model

    @staticmethod
    def sanitize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The package's tensors under MLX's names and layouts."""
        own = {k: v.swapaxes(1, 2) if v.ndim == 3 else v for k, v in weights.items()}
        own["lstm.Wx"] = own.pop("lstm_cell.weight_ih")
        own["lstm.Wh"] = own.pop("lstm_cell.weight_hh")
        own["lstm.bias"] = own.pop("lstm_cell.bias_ih") + own.pop("lstm_cell.bias_hh")
        return own

    def __call__(self, samples: mx.array, state: State | None = None) -> tuple[mx.array, State]:
        """Probabilities of speech, and what the net remembers of the samples.

        Args:
            samples: (n,) at 16 kHz, full scale -1 to 1.
            state: what the samples before left; those were whole windows.

        Returns:
            (ceil(n / 512),) float32, the last window filled up with zeros; and the state.
        """
        context, hidden, cell = state or (mx.zeros(_CONTEXT_SAMPLES), None, None)
        count = -(-samples.size // WINDOW_SAMPLES)
        filled = mx.pad(samples, (0, count * WINDOW_SAMPLES - samples.size))
        joined = mx.concatenate([context, filled])
        size = _CONTEXT_SAMPLES + WINDOW_SAMPLES
        windows = mx.as_strided(joined, (count, size), (WINDOW_SAMPLES, 1))
        hiddens, cells = self.lstm(self._frames(windows), hidden, cell)
        logits = self.final_conv(nn.relu(hiddens)[:, None])
        state = (joined[-_CONTEXT_SAMPLES:], hiddens[-1], cells[-1])
        return mx.sigmoid(logits).reshape(-1), state

    def _frames(self, windows: mx.array) -> mx.array:
        """(windows, 576) samples -> (windows, 128)."""
        mirrored = windows[:, -2 : -2 - _REFLECTED_SAMPLES : -1]
        spectrum = self.stft_conv(mx.concatenate([windows, mirrored], axis=1)[..., None])
        frames = mx.sqrt(mx.square(spectrum[..., :_BINS]) + mx.square(spectrum[..., _BINS:]))
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            frames = nn.relu(convolution(frames))
        return frames[:, 0]
