"""Speech and language models on Apple Silicon, through MLX."""

__version__ = "0.1.0"
