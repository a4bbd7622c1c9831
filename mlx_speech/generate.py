"""Command line: `python -m mlx_speech.generate [options] --prompt TEXT`."""

import sys

from .cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
