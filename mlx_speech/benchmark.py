"""Command line: `python -m mlx_speech.benchmark [options] [AUDIO...]`."""

import sys

from .cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
