"""Command lines of which `mlx.launch` has started several, one a rank."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..distributed.launched import rank_of_launch
from ..errors import DistributedError
from .console import Console
from .streams import filter_standard_error

if TYPE_CHECKING:
    from ..distributed.group import Group

#: lines that are of MLX's sockets, see below, or are nothing but pieces of them
OF_SOCKETS = (
    r"\[ring\]|^(Socket|was closed by the peer|(Receiving from|Sending to) socket"
    r"|failed with errno|[ \d])*$"
)


def start_group(console: Console) -> Group | None:
    """The group of all ranks; None where this process is alone.

    Every rank has to call it. A rank that waits for another in vain ends, with an error.

    Raises:
        DistributedError: the others cannot be reached.
    """
    if rank_of_launch() is None:
        return None
    from ..distributed.group import Group

    group = Group.start(partial(end, console))
    if group is not None:
        # of a rank that has ended, threads of MLX tell ten times, in pieces that mix, and we once
        filter_standard_error(OF_SOCKETS)
    return group


def folder_facts(name: str, folder: Path) -> dict[str, str]:
    """What all ranks need to be alike, see `Group.check_same`: the files of a model or an adapter,
    by what it is called."""
    from ..checkpoint.folder import SEPARATE_WEIGHTS, SMALL_FILES, weight_files
    from ..distributed.digests import folder_digests

    small = {
        path.relative_to(folder).as_posix() for kind in SMALL_FILES for path in folder.glob(kind)
    }
    small = {file for file in small if not file.startswith(".")}
    files = sorted({*small, *weight_files(folder), *SEPARATE_WEIGHTS})
    return {f"{file} of {name}": known for file, known in folder_digests(folder, files).items()}


def leave(status: int) -> NoReturn:
    """End this process, though a thread of it may be in the middle of something, for which Python
    would wait, or MLX abort the process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def end(console: Console, message: str) -> NoReturn:
    """End at once, as another rank is silent."""
    console.error(DistributedError(message))
    leave(1)  # the main thread may wait in C++
