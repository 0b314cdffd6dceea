"""A measurement in a group of processes that share one run: started and ended together, and told as one.

The ranks are forked by PyTorch's launcher from the measurement's child, in its group of processes, so that the guard
ends all of them with it. An epoch is that of the slowest rank; its host memory is the sum over ranks, its device memory
the largest of them; one rank that runs out of memory makes the measurement `oom`.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed, multiprocessing

from benchmarks.measuring.measurement import Measurement, Report, Work, measure

_ENDED = ("missing_dependency", "unsupported")
_LARGEST = ("data_s", "first_start_s", "prepare_s", "warmup_s", "peak_torch_bytes", "threads")


def in_ranks(asked: Measurement, report: Report, work: Work) -> None:
    """Do the work in `asked.devices` processes. Where one of them ends before its end, RuntimeError says which."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = asked, work, Path(folder, "store"), queue
        started = multiprocessing.start_processes(_rank, arguments, asked.devices, join=False, start_method="fork")
        facts: list[dict[str, Any]] = [{} for _ in range(asked.devices)]
        try:
            while not started.join(timeout=0.05, grace_period=5):
                _hear(queue, facts, report)
        except multiprocessing.ProcessExitedException as error:
            _hear(queue, facts, report)
            ended = f"rank {error.error_index}: {error.signal_name or f'exit status {error.exit_code}'}"
            killed = error.signal_name == "SIGKILL"
            report({"ranks": _told(facts, {error.error_index: ended}), "ended": ended, "killed": killed})
            raise RuntimeError(ended) from None
        finally:
            _hear(queue, facts, report)
        report(_together(facts))


def _rank(rank: int, asked: Measurement, work: Work, store: Path, queue: Any) -> None:
    """Be one rank: what it raises ends it, after a line that says which it was."""
    size = asked.devices
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    own = replace(asked, devices=1, threads=max(1, asked.threads // size))
    try:
        if asked.device == "cuda":
            torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl" if asked.device == "cuda" else "gloo"
        long = timedelta(seconds=asked.limits.timeout_s)
        meeting = {"init_method": f"file://{store}", "rank": rank, "world_size": size}
        distributed.init_process_group(backend, timeout=long, **meeting)
        measure(own, lambda facts: queue.put((rank, facts)), work)
        distributed.barrier()
        distributed.destroy_process_group()
    except Exception as error:
        queue.put((rank, {"raised": f"{type(error).__name__}: {error}"[:300]}))
        os.write(2, f"rank {rank} of {size}\n{traceback.format_exc()}".encode())
        os._exit(1)


def _hear(queue: Any, facts: list[dict[str, Any]], report: Report) -> None:
    while not queue.empty():
        rank, told = queue.get()
        facts[rank].update(told)
        if "stage" in told and rank == 0:
            report({key: told[key] for key in ("stage", "host_before") if key in told})


def _told(facts: list[dict[str, Any]], ended: dict[int, str] | None = None) -> list[dict[str, Any]]:
    """Return what a record says of each rank."""
    return [
        {
            "status": (ended or {}).get(rank) or own.get("raised") or own.get("status", "ended with the others"),
            "epoch_s": median(own["epoch_s"]) if own.get("epoch_s") else None,
            "peak_host_bytes": own.get("peak_host_bytes"),
            "peak_torch_bytes": own.get("peak_torch_bytes"),
        }
        for rank, own in enumerate(facts)
    ]


def _together(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of the record, from those of the ranks."""
    found: dict[str, Any] = {"ranks": _told(facts)}
    for status in _ENDED:
        for rank, own in enumerate(facts):
            if own.get("status") == status:
                return found | {"status": status, "detail": f"rank {rank}: {own.get('detail', '')}"}

    def of(name: str, together: Callable[[list[Any]], Any]) -> Any:
        values = [own[name] for own in facts if own.get(name) is not None]
        return together(values) if values else None

    found |= {name: of(name, max) for name in _LARGEST}
    found |= {name: facts[0].get(name) for name in ("float32_bits", "density", "losses", "metrics") if name in facts[0]}
    found["epoch_s"] = of("epoch_s", lambda ranks: [max(epochs) for epochs in zip(*ranks, strict=True)])
    found["peak_host_bytes"] = of("peak_host_bytes", sum)
    return {name: value for name, value in found.items() if value is not None} | {"status": "ok"}
