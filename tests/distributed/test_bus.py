"""Messages reach all ranks in one order; a rank that fails or is lost is noticed by all."""

from __future__ import annotations

import pytest
from distributed.test_group import FAULTS, check_fault, program
from ranks import run_bare_ranks

BUS = """
    from mlx_speech.distributed.bus import Bus
    from mlx_speech.errors import DistributedError
    import random, threading, time
    bus = Bus(group)
    bus.start()
"""


def test_order(tmp_path):
    """Each rank posts at its own pace, from two threads, some messages larger than a round takes;
    all get all of them, in one order, and each rank's own in the order in which it posted them."""
    code = """
    def talk(name):
        for number in range(20):
            bus.post([name, number], bytes([group.rank]) * (3_000_000 if number == 7 else number))
            time.sleep(random.random() / 100)
    threads = [threading.Thread(target=talk, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    got = [bus.receive() for _ in range(40 * group.size)]
    for thread in threads:
        thread.join()
    assert bus.receive(0.01) is None
    for m in got:
        length = 3_000_000 if m.content[1] == 7 else m.content[1]
        assert m.data == bytes([m.rank]) * length
    for rank in range(group.size):
        for name in "ab":
            own = [m.content[1] for m in got if (m.rank, m.content[0]) == (rank, name)]
            assert own == list(range(20))
    bus.close()
    say([(m.rank, *m.content) for m in got])
    """
    results = run_bare_ranks(program(BUS + code), 3, tmp_path)
    assert {(status, said) for status, _, said in results} == {(0, "")}
    assert len({printed for _, printed, _ in results}) == 1


def test_close_waits_for_all(tmp_path):
    """What is posted before another closes arrives, though one has nothing to say any more."""
    code = """
    if group.rank == 1:
        bus.close()
        say("closed")
    else:
        time.sleep(0.5)
        bus.post("late")
        bus.close()
    say([(m.rank, m.content) for m in iter(lambda: bus.receive(0), None)])
    """
    late = "[(0, 'late')]\n"
    results = run_bare_ranks(program(BUS + code), 2, tmp_path)
    assert results == [(0, late, ""), (0, f"closed\n{late}", "")]


def test_a_rank_that_fails(tmp_path):
    code = """
    if group.rank == 1:
        bus.post("before")
        bus.fail(OSError("the disk is full"))
    else:
        say(bus.receive().content)
        for _ in range(2):
            try:
                bus.receive()
            except DistributedError as error:
                say(error)
        bus.close()
    """
    failed = "before\n" + "rank 1 has failed: the disk is full\n" * 2
    results = run_bare_ranks(program(BUS + code), 3, tmp_path)
    assert results == [(0, failed, ""), (0, "", ""), (0, failed, "")]


@pytest.mark.parametrize(("number", "rank"), FAULTS)
def test_a_rank_that_dies_or_hangs(tmp_path, number, rank):
    """While nobody says anything."""
    code = """
    say("ready")
    try:
        bus.receive()
    except DistributedError as error:
        say(error)
    bus.close()
    """
    check_fault(BUS + code, tmp_path, number, rank)


def test_attended(tmp_path):
    """Ranks are there for the slowest as long as it takes, and learn what goes wrong in another."""
    code = """
    from mlx_speech.distributed.bus import attended
    with attended(group):
        before = group._gathered
        while group.rank and group._gathered < before + 10:
            time.sleep(0.01)
    say(group.broadcast(b"all" if group.rank == 0 else b""))
    try:
        with attended(group):
            if group.rank == 1:
                raise ValueError("no such file")
    except (DistributedError, ValueError) as error:
        say(error)
    """
    results = run_bare_ranks(program(BUS.replace("bus.start()", "") + code), 2, tmp_path)
    assert results == [
        (0, "b'all'\nrank 1 has failed: no such file\n", ""),
        (0, "b'all'\nno such file\n", ""),
    ]
