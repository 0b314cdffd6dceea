"""A cell's child process: forked, limited, watched, and its end put into words.

The process that calls `measure_cell` is the fork server: it has imported PyTorch but never computed with it, so that
it holds no pool of threads and no CUDA context, and a child starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import dropwhile, takewhile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

import psutil

import mmdma_core
from benchmarks.measuring import measurement as cell_module
from benchmarks.measuring import memory, ranks
from benchmarks.measuring.device import check_not_gone
from benchmarks.measuring.machine import lacking
from benchmarks.measuring.measurement import Cell, Limits, Work
from benchmarks.measuring.others import Others
from benchmarks.measuring.records import Record
from mmdma_core import host
from mmdma_core.errors import OUT_OF_MEMORY as _OUT_OF_MEMORY
from mmdma_core.errors import words_of
from mmdma_core.models import in_words

POLL_S = 0.05
_GRACE_S = 2.0
_TAIL_LINES = 12
_LOADED = "Extension modules:"  # what faulthandler says last, and a page long
# Where packages, Python, this project and its user are: what is left of a file's path is the same everywhere.
_OURS = "|".join(re.escape(f"{folder}/") for folder in (Path(__file__).parents[2], Path.home()))
_FOLDERS = re.compile(rf"/[^\s\"':]*/(?:(?:site|dist)-packages|python3\.\d+)/|{_OURS}")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ENDING = (signal.SIGINT, signal.SIGTERM)
# The fields of a record that the child reports.
_MEASURED = (
    *("float32_bits", "data_s", "density", "first_start_s", "prepare_s", "warmup_s", "epoch_s"),
    *("losses", "metrics", "peak_host_bytes", "peak_torch_bytes", "ranks"),
)
# What is raised by packages that print why.
_TELLS_LESS = re.compile(r"\[KeOps\]|'pykeops_|^tensorflow\.\S*(Internal|Unknown)Error", re.MULTILINE)
# A process that the kernel has ended, in the words of a rank, a shell, a compiler or Python.
_KILLED = re.compile(r"^Killed$|^\S*sh: .*\bKilled\b|Killed signal terminated|<Signals\.SIGKILL: 9>", re.MULTILINE)
_OPENS_NO_CUDA = ("torch._dynamo", "numba", "sklearn", "absl", "tenacity")  # on import
_fork = multiprocessing.get_context("fork")


@dataclass
class _Watch:
    """What the guard saw of a child while it ran."""

    facts: dict[str, Any] = field(default_factory=dict)
    host_bytes: int = 0
    device_bytes: int | None = None
    ended_for: tuple[str, str] | None = None  # (status, detail) when the guard ended it


def preload(variants: Iterable[str], device: str) -> None:
    """Import here, once, what the children would each import for themselves.

    On a GPU only what is known to leave CUDA alone, which does not survive a fork: KeOps opens it on import.
    """
    for name in variants:
        variant = mmdma_core.variant(name)
        for module in variant.requires:
            here = isinstance(module, str) and module not in variant.absent()
            if here and (device == "cpu" or module in _OPENS_NO_CUDA):
                with suppress(Exception):  # it is raised again in the variant's own cells, which say so
                    variant.importer(module)


def measure_cell(cell: Cell, machine: dict[str, Any], timeout_s: float, work: Work = cell_module.time_epochs) -> Record:
    """The record of a cell, measured in a child of this process. Whatever the variant does, this returns.

    The child is ended after timeout_s, and with this process, if that is interrupted or ended. It does the
    work within the cell's limits, see benchmarks.measuring.measurement.measure.

    Raises DeviceGone where the GPU no longer computes: that says nothing of the variant.
    """
    limited = replace(cell, limits=_with_host_limit(cell.limits))
    reach, kills = _within_reach(limited), host.kills()
    begin = time.perf_counter()
    probe = memory.DeviceProbe(cell.devices) if cell.device == "cuda" else None
    others = Others(cell.devices if cell.device == "cuda" else 0)
    with tempfile.TemporaryFile("w+", errors="replace") as output, _orphans_are_ours():
        receiver, sender = _fork.Pipe(duplex=False)
        child = _fork.Process(target=_run_child, args=(limited, sender, output.fileno(), work))
        try:
            with _signals_held():
                child.start()
            sender.close()
            watch = _watch(child, receiver, probe, others, limited, timeout_s)
        finally:
            if child.pid is not None:
                _end_child(child)
        seconds, said = time.perf_counter() - begin, _read(output)
        shares = {"others_cpu": others.cpu_share(), "others_gpu": others.gpu_share()}
    struck = child.exitcode == -signal.SIGKILL or _KILLED.search(said)  # it, or a compiler that it has started
    killed = struck and not watch.ended_for and host.killed_since(kills)
    status, detail = _status_and_detail(watch, child.exitcode, said, limited, killed)
    if cell.device == "cuda" and status != "ok":
        check_not_gone(cell.devices, f"{detail}\n{said}", ask=status in ("error", "timeout"))
    record = replace(_record(cell, watch, status, detail, seconds, machine), **shares)
    if status == "oom":
        kind = "device" if cell.device == "cuda" and not killed else "host"
        record.ran_out_of = {kind: reach[kind]} if reach[kind] is not None else {}
    if status in ("error", "missing_dependency"):
        record.missing = list(dict.fromkeys([*cell.absent, *lacking(f"{said}\n{detail}")]))
    return record


def _within_reach(cell: Cell) -> dict[str, int | None]:
    """What the cell could take at most of each memory, in bytes."""
    reach = {"host": memory.within_reach("host", cell.limits.host_gib)}
    return reach | (
        {"device": memory.within_reach("device", cell.limits.gpu_gib, cell.devices)} if cell.device == "cuda" else {}
    )


def measure_within(cell: Cell, machine: dict[str, Any], left_s: float, work: Work = cell_module.time_epochs) -> Record:
    """The same in the time that is left; what that ends before the cell's own limit is skipped, and no timeout."""
    record = measure_cell(cell, machine, min(left_s, cell.limits.timeout_s), work)
    if record.status == "timeout" and left_s < cell.limits.timeout_s:
        return replace(record, status="skipped", detail=f"the budget ended it: {record.detail}")
    return record


def _with_host_limit(limits: Limits) -> Limits:
    return limits if limits.host_gib else replace(limits, host_gib=memory.default_host_limit() / memory.GIB)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Take what would end this process after a fork: Python drops what a handler raises in the hooks of one."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _orphans_are_ours() -> Iterator[None]:
    """Of what a cell leaves behind this process is the parent: it is waited for, and what it took is known."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def leave_parent(output: int) -> None:
    """In a fork: it, and what it starts (KeOps' compiler), end with the parent; `output` takes what they print."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _run_child(cell: Cell, sender: Connection, output: int, work: Work) -> None:
    leave_parent(output)
    faulthandler.enable(file=2, all_threads=False)
    do = ranks.in_ranks if cell.devices > 1 else cell_module.measure
    try:
        do(cell, sender.send, work)
    except Exception as error:
        sender.send({"raised": words_of(error)})
        raise


def _watch(
    child: multiprocessing.Process,
    receiver: Connection,
    probe: memory.DeviceProbe | None,
    others: Others,
    cell: Cell,
    timeout_s: float,
) -> _Watch:
    watch = _Watch()
    begin, at_fork = time.perf_counter(), memory.host_bytes()
    process, pids = psutil.Process(child.pid), {child.pid}
    while True:
        wait([receiver, child.sentinel], timeout=POLL_S)
        alive = child.is_alive()  # asked first: what a child says before it ends is then in the pipe
        with suppress(EOFError, OSError):
            while receiver.poll():
                watch.facts.update(receiver.recv())
        if not alive:
            return watch
        with suppress(psutil.NoSuchProcess):
            watch.host_bytes = process.memory_info().rss - watch.facts.get("host_before", at_fork)
            ranks = process.children() if cell.devices > 1 else []  # for which it only waits
            watch.host_bytes += sum(_held(rank) - at_fork for rank in ranks)
            pids = {child.pid, *(rank.pid for rank in ranks)}
        if probe and watch.facts.get("stage") != "metrics":  # what evaluation takes is not the variant's
            watch.device_bytes = probe.peak(pids, watch.facts.get("stage"))
            watch.facts["sm_clock_mhz"] = probe.sm_clock_mhz
        others.look(pids)
        watch.ended_for = _broken_limit(watch, cell, time.perf_counter() - begin > timeout_s)
        if watch.ended_for:
            return watch


def _held(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return process.memory_info().rss
    return 0


def _broken_limit(watch: _Watch, cell: Cell, late: bool) -> tuple[str, str] | None:
    """The limit that the child has broken, as (status, detail)."""
    stage = watch.facts.get("stage", "start")
    if late:
        return "timeout", f"ended by its time limit during {stage}"
    if cell.device == "cpu" and watch.host_bytes > cell.limits.host_gib * memory.GIB:
        return "oom", f"host memory over the limit of {in_words(cell.limits.host_gib * memory.GIB)} during {stage}"
    if cell.limits.gpu_gib is not None and (watch.device_bytes or 0) > cell.limits.gpu_gib * memory.GIB:
        return "oom", f"device memory over the limit of {in_words(cell.limits.gpu_gib * memory.GIB)} during {stage}"
    return None


def _end_child(child: multiprocessing.Process) -> None:
    """End the child and all that it started: politely first, so that a compiler removes its half-written output."""
    for number, grace in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        child.terminate()  # it may not have a group of its own yet
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        child.join(grace)
    end = time.monotonic() + _GRACE_S
    with suppress(ChildProcessError):  # there are none, or no more
        while time.monotonic() < end:
            if os.waitpid(-child.pid, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def _status_and_detail(watch: _Watch, exit_code: int, output: str, cell: Cell, killed: bool) -> tuple[str, str]:
    """Status and detail of a child that has ended. Out of memory only on evidence; killed: the kernel counted it."""
    if watch.ended_for:
        return watch.ended_for
    if "status" in watch.facts:
        return watch.facts["status"], watch.facts.get("detail", "")
    stage = watch.facts.get("stage", "start")
    ran_out = _words_of_memory(watch.facts, output)
    if ran_out:
        return "oom", f"during {stage}: {ran_out[:300]}"
    if killed:
        return "oom", f"killed by the kernel for want of memory during {stage}"
    if exit_code == -signal.SIGKILL and watch.host_bytes > 0.9 * cell.limits.host_gib * memory.GIB:
        return "oom", f"killed during {stage} with {in_words(watch.host_bytes)} of host memory in use"
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit status {exit_code}"
    how = watch.facts.get("ended", how)
    return "error", f"{how} during {stage}\n{_last_words(output)}".strip()


def _words_of_memory(facts: dict[str, Any], output: str) -> str | None:
    """The line that says that memory ran out: what ended the cell, and nothing that was printed on the way.

    What is printed counts where nothing else tells: of a crash, of ranks, of packages that print why.
    """
    raised = facts.get("raised", "")
    printed = "ended" in facts or not raised or _TELLS_LESS.search(raised)
    evidence = _OUT_OF_MEMORY.search(raised) or (_OUT_OF_MEMORY.search(output) if printed else None)
    if evidence is None:
        return None
    begin = evidence.string.rfind("\n", 0, evidence.start()) + 1
    return evidence.string[begin:].splitlines()[0].strip()


def _last_words(output: str) -> str:
    """The end of the output; of a crash the calls that led to it, the last one last. No path of this machine."""
    kept = (line.replace(f"{os.getcwd()}/", "") for line in output.strip().splitlines() if not line.startswith(_LOADED))
    lines = [_FOLDERS.sub("", line) for line in kept]
    crash = next((k for k, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    if crash is not None:
        calls = list(takewhile(lambda line: line.startswith("  File"), dropwhile(_is_no_call, lines[crash:])))
        lines = [*reversed(calls[: _TAIL_LINES - 1]), lines[crash]]
    return "\n".join(lines[-_TAIL_LINES:])


def _is_no_call(line: str) -> bool:
    return not line.startswith("  File")


def _read(output: IO[str]) -> str:
    output.seek(0)
    return output.read()


def _record(cell: Cell, watch: _Watch, status: str, detail: str, seconds: float, machine: dict[str, Any]) -> Record:
    record = new_record(cell, status, detail, machine)
    record.cell_s = seconds
    for name in _MEASURED:
        if name in watch.facts:
            setattr(record, name, watch.facts[name])
    record.peak_device_bytes = watch.device_bytes
    record.machine = machine | {"cpu_threads": watch.facts.get("threads", machine.get("cpu_threads"))}
    if watch.facts.get("sm_clock_mhz"):
        record.machine |= {"gpu": machine["gpu"] | {"sm_clock_mhz": watch.facts["sm_clock_mhz"]}}
    if status == "ok":
        record.set_runtime()
    return record


def new_record(cell: Cell, status: str, detail: str, machine: dict[str, Any]) -> Record:
    """A record of the cell in which nothing has been measured."""
    return Record(
        variant=cell.variant,
        n=cell.n,
        p=cell.p,
        d=cell.settings.n_components,
        epochs=cell.epochs,
        seed=cell.seed,
        device=cell.device,
        key=cell.key,
        limits=dataclasses.asdict(cell.limits),
        status=status,
        detail=detail,
        data_mode=cell.data_mode,
        machine=machine,
        devices=cell.devices,
    )
