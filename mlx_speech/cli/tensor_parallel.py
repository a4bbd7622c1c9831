"""--tensor-parallel: rank 0 does what a command line asks for, the others follow it."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import Any

from ..auto import AutoConfig
from ..checkpoint.hub import resolve_adapter, resolve_checkpoint
from ..distributed.bus import attended
from ..distributed.digests import version_facts
from ..distributed.group import Group
from ..loading import load, load_shard
from ..models.leader import Leader, follow
from .console import Console
from .ranks import folder_facts, start_group


def run_shared(args: argparse.Namespace, console: Console, work: Callable[[], int]) -> int:
    """Do the work on rank 0, and what it takes of that on others; the exit status.

    Args:
        args: gets a `leader`, by which `load_named` loads.

    Raises:
        DistributedError: a rank is lost, or is not like the others.
    """
    group = start_group(console)
    if group is None:
        return work()
    if group.rank:
        _follow(group)
        return 0
    args.leader = Leader(group)
    try:
        return work()
    finally:
        args.leader.close()


def _follow(group: Group) -> None:
    """Do what rank 0 says, until it ends: what signals are to do that all ranks get, it decides,
    such as to finish what a server works on. Only what is being loaded SIGTERM ends at once."""
    terminate = signal.getsignal(signal.SIGTERM)

    def load_own(told: dict[str, Any]) -> Any:
        signal.signal(signal.SIGTERM, terminate)
        try:
            return _load(group, load_shard, **told, progress=False)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow(group, load_own)


def load_shared(leader: Leader, model: str, *, progress: bool, **options: Any) -> tuple[Any, Any]:
    """As `load`, on rank 0; the others load their shards.

    Raises:
        DistributedError: a rank is lost or fails, or has other files or versions.
    """
    told = {"model": model, **options}

    def load_own() -> tuple[Any, Any]:
        loaded = _load(leader.group, load, **told, progress=progress)
        return loaded, loaded[0].get_decoder()

    return leader.load(told, load_own)


def _load(
    group: Group,
    load_own: Callable[..., Any],
    model: str,
    *,
    revision: str | None,
    adapter: str | None,
    dtype: str | None,
    progress: bool,
) -> Any:
    """What this rank has of a model, if all have the same files, and compute in the same type."""
    with attended(group):
        folder = resolve_checkpoint(model, revision=revision, progress=progress)
        AutoConfig.from_pretrained(folder).check_sharding(group.size)
        facts = version_facts() | folder_facts(model, folder)
        if adapter is not None:
            own = resolve_adapter(adapter, progress=progress)
            facts |= folder_facts(adapter, own)
    group.check_same(facts)
    with attended(group):
        options = {"revision": revision, "adapter": adapter, "dtype": dtype, "progress": progress}
        loaded = load_own(model, tensor_group=group.distributed, **options)
        part = loaded[0] if isinstance(loaded, tuple) else loaded
    group.check_same({"the type of numbers, which --dtype sets,": str(part.dtype).split(".")[-1]})
    return loaded
