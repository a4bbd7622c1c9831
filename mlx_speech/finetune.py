"""Command line: `python -m mlx_speech.finetune [options] --data DATA`."""

import sys

from .cli.finetune import main

if __name__ == "__main__":
    sys.exit(main())
