"""Groups of processes on this machine for tests, by gloo: a function runs in each rank of a group."""

import datetime
import multiprocessing
import traceback
import warnings

import torch
from torch import distributed

SECONDS = 300  # after which a group is ended


def in_group(size, function, folder):
    """What function(rank, size) returns in each rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["numba", "scipy.sparse", "sklearn", "torch._dynamo", "triton"]
    )  # once for all groups
    receivers, children = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_join, args=(rank, size, function, str(folder / f"store{size}"), sender))
        child.start()
        sender.close()
        receivers.append(receiver)
        children.append(child)
    try:
        answers = []
        for rank, receiver in enumerate(receivers):
            assert receiver.poll(SECONDS), f"rank {rank} of {size} said nothing for {SECONDS} s"
            answers.append(receiver.recv())
        failed = [raised for _, raised in answers if raised]
        assert not failed, failed[0]
        for child in children:
            child.join(SECONDS)
        return [answer for answer, _ in answers]
    finally:
        for child in children:
            child.kill()
            child.join()


def _join(rank, size, function, store, sender):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        timeout = datetime.timedelta(seconds=SECONDS)
        distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout
        )
        sender.send((function(rank, size), None))
        distributed.destroy_process_group()
    except BaseException:  # whatever it is, the test that waits for this rank fails with it
        sender.send((None, traceback.format_exc()))


def shares(n, sizes):
    """Slices of n rows: so many each, the last takes the rest."""
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes) - 1)] + [n]
    return [slice(low, high) for low, high in zip([0, *ends[:-1]], ends, strict=True)]
