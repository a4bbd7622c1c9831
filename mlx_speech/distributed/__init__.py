"""Several processes, on one machine or more, that work on the same: ranks of `mx.distributed`."""

from .bus import Bus, Message
from .group import TIMEOUT_SECONDS, Group
from .launched import rank_of_launch

__all__ = ["TIMEOUT_SECONDS", "Bus", "Group", "Message", "rank_of_launch"]
