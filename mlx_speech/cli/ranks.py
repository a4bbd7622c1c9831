"""Command lines of which `mlx.launch` has started several, one a rank."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ..distributed.launched import rank_of_launch
from ..errors import DistributedError
from .console import Console

if TYPE_CHECKING:
    from ..distributed.group import Group


def start_group(console: Console) -> Group | None:
    """The group of all ranks; None where this process is alone.

    Every rank has to call it. A rank that waits for another in vain ends, with an error.

    Raises:
        DistributedError: the others cannot be reached.
    """
    if rank_of_launch() is None:
        return None
    from ..distributed.group import Group

    return Group.start(partial(_end, console))


def _end(console: Console, message: str) -> None:
    console.error(DistributedError(message))
    os._exit(1)  # the main thread waits in C++
