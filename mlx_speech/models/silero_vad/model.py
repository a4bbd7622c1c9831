"""Silero VAD 6 in MLX: how likely somebody speaks in each 32 ms of a recording.

A net of 0.3 M parameters (1.2 MB) that the Silero team trained on speech in thousands of languages,
and on other sounds; https://github.com/snakers4/silero-vad, MIT (`LICENSE`). The weights
beside this file are those of the package's version 6.2.3 for 16 kHz.
"""

from pathlib import Path
from typing import Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

WINDOW_SAMPLES = 512  #: samples of a window, at 16 kHz
_CONTEXT_SAMPLES = 64  #: of the window before, which each is given
_REFLECTED_SAMPLES = 64  #: mirrored at its end
_FFT_SIZE, _HOP_SAMPLES = 256, 128
_BINS = _FFT_SIZE // 2 + 1
_WIDTH = 128
_TOGETHER = 1024  #: windows whose frames are computed at a time, so that memory does not grow
_WEIGHTS = Path(__file__).with_name("silero_vad_v6_16k.safetensors")

#: the last samples, (..., 64), and the LSTM's hidden and cell state, (..., 128) each
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
            samples: (n,) at 16 kHz, full scale -1 to 1; or (batch, n) of several recordings, the
                shorter ones with zeros behind them.
            state: what the samples before left; those were whole windows.

        Returns:
            (ceil(n / 512),) or (batch, ceil(n / 512)) float32, the last window filled up with
            zeros; and the state.
        """
        batch = samples.shape[:-1]
        context, hidden, cell = state or (
            mx.zeros((*batch, _CONTEXT_SAMPLES)),
            mx.zeros((*batch, _WIDTH)),
            mx.zeros((*batch, _WIDTH)),
        )
        rest = -samples.shape[-1] % WINDOW_SAMPLES
        filled = mx.pad(samples, [*[(0, 0) for _ in batch], (0, rest)])
        probabilities = [mx.zeros((*batch, 0))]
        for start in range(0, filled.shape[-1], _TOGETHER * WINDOW_SAMPLES):
            part = filled[..., start : start + _TOGETHER * WINDOW_SAMPLES]
            joined = mx.concatenate([context, part], axis=-1)
            hiddens, hidden, cell = self._recur(self._frames(joined), hidden, cell)
            logits = self.final_conv(nn.relu(hiddens)[..., None, :].reshape(-1, 1, _WIDTH))
            probabilities.append(mx.sigmoid(logits).reshape(hiddens.shape[:-1]))
            mx.eval(probabilities)
            context = part[..., -_CONTEXT_SAMPLES:]
        return mx.concatenate(probabilities, axis=-1), (context, hidden, cell)

    def _frames(self, samples: mx.array) -> mx.array:
        """(..., 64 + n) samples of whole windows, with those before -> (..., windows, 128)."""
        count = (samples.shape[-1] - _CONTEXT_SAMPLES) // WINDOW_SAMPLES
        starts = WINDOW_SAMPLES * mx.arange(count)[:, None]
        windows = samples[..., starts + mx.arange(_CONTEXT_SAMPLES + WINDOW_SAMPLES)]
        mirrored = windows[..., -2 : -2 - _REFLECTED_SAMPLES : -1]
        given = mx.concatenate([windows, mirrored], axis=-1)
        spectrum = self.stft_conv(given.reshape(-1, given.shape[-1], 1))
        frames = mx.sqrt(mx.square(spectrum[..., :_BINS]) + mx.square(spectrum[..., _BINS:]))
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            frames = nn.relu(convolution(frames))
        return frames.reshape(*windows.shape[:-1], _WIDTH)

    def _recur(
        self, frames: mx.array, hidden: mx.array, cell: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The LSTM over (..., windows, 128); returns its hidden states, alike, and the last ones.

        NumPy takes the steps: each is so small that calling MLX for it takes several times as long.
        """
        # sigmoid(x) is tanh(x / 2) / 2 + 1 / 2, so that one call serves all gates
        scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), _WIDTH)
        share, shift = scale, np.float32(1) - scale
        inputs = scale * np.array(mx.addmm(self.lstm.bias, frames, self.lstm.Wx.T))
        weights = np.array(self.lstm.Wh.T) * scale
        latest, memory = np.array(hidden), np.array(cell)
        hiddens = np.empty(frames.shape, np.float32)
        parts = [slice(start, start + _WIDTH) for start in range(0, 4 * _WIDTH, _WIDTH)]
        for index in range(frames.shape[-2]):
            gates = share * np.tanh(inputs[..., index, :] + latest @ weights) + shift
            taken, kept, new, given = (gates[..., part] for part in parts)
            memory = kept * memory + taken * new
            latest = given * np.tanh(memory)
            hiddens[..., index, :] = latest
        return mx.array(hiddens), mx.array(latest), mx.array(memory)
