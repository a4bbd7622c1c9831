"""Command line: `python -m mlx_speech.transcribe [options] AUDIO...`."""

import sys

from .cli.transcribe import main

if __name__ == "__main__":
    sys.exit(main())
