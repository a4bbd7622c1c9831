"""Whether this process is one of several; imports nothing, as every command line asks."""

import os

# set by mlx.launch for all its backends but MPI; by Open MPI; by MPICH and Intel's
_RANK = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def rank_of_launch() -> int | None:
    """The number of this process among those that were launched together; None: it is alone."""
    stated = next((os.environ[name] for name in _RANK if name in os.environ), "")
    return int(stated) if stated.isdecimal() else None
