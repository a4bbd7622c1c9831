"""Command line: `python -m mlx_speech.serve [options]`."""

import sys

from .cli.serve import main

if __name__ == "__main__":
    sys.exit(main())
