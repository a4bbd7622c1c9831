"""Command line: `python -m mlx_speech.chat [options]`."""

import sys

from .cli.chat import main

if __name__ == "__main__":
    sys.exit(main())
