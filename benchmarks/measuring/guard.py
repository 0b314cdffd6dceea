"""The child process of a measurement: forked, limited, watched, and its end told.

The process that calls `measure` is the fork server: it has imported PyTorch but never computed with it, so that it
holds no pool of threads and no CUDA context, and a child starts in milliseconds.

By hand, for no library ends a process tree by its memory, keeps orphans, and tells an end by what the kernel counted.
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
from typing import Any

import psutil

import mmdma_core
from benchmarks.measuring import measurement, memory, ranks
from benchmarks.measuring.device import check_not_gone
from benchmarks.measuring.machine import lacking
from benchmarks.measuring.measurement import Measurement, Work
from benchmarks.measuring.others import Others
from benchmarks.measuring.records import Record
from mmdma_core import host
from mmdma_core.errors import OUT_OF_MEMORY, words_of
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
# The fields of a record that are not the child's to tell.
_TOLD_HERE = ("status", "detail", "machine")
# What is raised by packages that print why.
_TELLS_LESS = re.compile(r"\[KeOps\]|'pykeops_|^tensorflow\.\S*(Internal|Unknown)Error", re.MULTILINE)
# A process that the kernel has ended, in the words of a shell, a compiler or Python.
_KILLED = re.compile(r"^Killed$|^\S*sh: .*\bKilled\b|Killed signal terminated|<Signals\.SIGKILL: 9>", re.MULTILINE)
_OPENS_NO_CUDA = ("torch._dynamo", "numba", "sklearn", "absl", "tenacity")  # on import
_fork = multiprocessing.get_context("fork")


def preload(variants: Iterable[str], device: str) -> None:
    """Import here, once, what the children would each import for themselves.

    On a GPU only what is known to leave CUDA alone, which does not survive a fork: KeOps opens it on import.
    """
    for name in variants:
        variant = mmdma_core.variant(name)
        for module in variant.requires:
            here = isinstance(module, str) and module not in variant.absent()
            if here and (device == "cpu" or module in _OPENS_NO_CUDA):
                with suppress(Exception):  # it is raised again in the variant's own measurements, which say so
                    variant.importer(module)


def measure(
    asked: Measurement, machine: dict[str, Any], timeout_s: float, work: Work = measurement.time_epochs
) -> Record:
    """Measure in a child of this process, and return the record. Whatever the variant does, this returns.

    The child is ended after timeout_s, and with this process, if that is interrupted or ended. It does the work within
    the limits of the measurement, see benchmarks.measuring.measurement.measure.

    Raises DeviceGone where the GPU no longer computes: that says nothing of the variant.
    """
    on_cuda, limits = asked.device == "cuda", asked.limits
    reach = {"host": memory.within_reach("host", limits.host_gib)}
    if on_cuda:
        reach["device"] = memory.within_reach("device", limits.gpu_gib, asked.devices)
    limits = replace(limits, host_gib=limits.host_gib or memory.within_reach("host", None) / memory.GIB)
    limited, kills, begin = replace(asked, limits=limits), host.kills(), time.perf_counter()
    others = Others(asked.devices if on_cuda else 0)
    watch, exit_code, said = _run(limited, others, timeout_s, work)
    seconds, shares = time.perf_counter() - begin, {"others_cpu": others.cpu_share(), "others_gpu": others.gpu_share()}
    struck = exit_code == -signal.SIGKILL or watch.facts.get("killed") or _KILLED.search(said)  # it, or a compiler
    killed = bool(struck and not watch.ended_for and host.killed_since(kills))
    status, detail = watch.ended_for or _end(watch, exit_code, said, limited, killed)
    if on_cuda and status != "ok":
        check_not_gone(asked.devices, f"{detail}\n{said}", ask=status in ("error", "timeout"))
    record = _record(asked, watch, status, detail, machine, cell_s=seconds, **shares)
    kind = "device" if on_cuda and not killed else "host"
    if status == "oom" and reach[kind] is not None:
        record.ran_out_of = {kind: reach[kind]}
    if status in ("error", "missing_dependency"):
        record.missing = list(dict.fromkeys([*asked.absent, *lacking(f"{said}\n{detail}")]))
    return record


def measure_within(
    asked: Measurement, machine: dict[str, Any], left_s: float, work: Work = measurement.time_epochs
) -> Record:
    """Measure in the time that is left; what that ends before the measurement's own limit is skipped, and no timeout.

    The parameters are those of `measure`.
    """
    record = measure(asked, machine, min(left_s, asked.limits.timeout_s), work)
    if record.status == "timeout" and left_s < asked.limits.timeout_s:
        return replace(record, status="skipped", detail=f"the budget ended it: {record.detail}")
    return record


def new_record(asked: Measurement, status: str, detail: str, machine: dict[str, Any], **fields: Any) -> Record:
    """Return a record in which nothing has been measured; fields: further ones of it."""
    return Record(
        variant=asked.variant,
        n=asked.n,
        p=asked.p,
        d=asked.settings.n_components,
        epochs=asked.epochs,
        seed=asked.seed,
        device=asked.device,
        key=asked.key,
        limits=dataclasses.asdict(asked.limits),
        status=status,
        detail=detail,
        data_mode=asked.data_mode,
        machine=machine,
        devices=asked.devices,
        **fields,
    )


def leave_parent(output: int) -> None:
    """In a fork: end with the parent, as does what it starts (KeOps' compiler); `output` takes what they print."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)


@dataclass
class _Watch:
    """What the guard saw of a child while it ran."""

    facts: dict[str, Any] = field(default_factory=dict)
    host_bytes: int = 0
    device_bytes: int | None = None
    ended_for: tuple[str, str] | None = None  # (status, detail) when the guard ended it


def _run(asked: Measurement, others: Others, timeout_s: float, work: Work) -> tuple[_Watch, int, str]:
    """Run the child to its end: what was seen of it, its exit code, and what it and its own children printed."""
    probe = memory.DeviceProbe(asked.devices) if asked.device == "cuda" else None
    with tempfile.TemporaryFile("w+", errors="replace") as output, _orphans_are_ours():
        receiver, sender = _fork.Pipe(duplex=False)
        child = _fork.Process(target=_run_child, args=(asked, sender, output.fileno(), work))
        try:
            with _signals_held():
                child.start()
            sender.close()
            watch = _watch(child, receiver, probe, others, asked, timeout_s)
        finally:
            if child.pid is not None:
                _end_child(child)
        output.seek(0)
        return watch, child.exitcode, output.read()


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
    """Be the parent of what a child leaves behind: it is waited for, and what it took is known."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _run_child(asked: Measurement, sender: Connection, output: int, work: Work) -> None:
    leave_parent(output)
    faulthandler.enable(file=2, all_threads=False)
    do = ranks.in_ranks if asked.devices > 1 else measurement.measure
    try:
        do(asked, sender.send, work)
    except Exception as error:
        sender.send({"raised": words_of(error)})
        raise


def _watch(
    child: multiprocessing.Process,
    receiver: Connection,
    probe: memory.DeviceProbe | None,
    others: Others,
    asked: Measurement,
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
            of_ranks = process.children() if asked.devices > 1 else []  # for which it only waits
            pids = {child.pid, *(rank.pid for rank in of_ranks)}
            for rank in of_ranks:
                with suppress(psutil.NoSuchProcess):
                    watch.host_bytes += rank.memory_info().rss - at_fork
        if probe and watch.facts.get("stage") != "metrics":  # what evaluation takes is not the variant's
            watch.device_bytes = probe.peak(pids, watch.facts.get("stage"))
            watch.facts["sm_clock_mhz"] = probe.sm_clock_mhz
        others.look(pids)
        watch.ended_for = _broken_limit(watch, asked, time.perf_counter() - begin > timeout_s)
        if watch.ended_for:
            return watch


def _broken_limit(watch: _Watch, asked: Measurement, late: bool) -> tuple[str, str] | None:
    """Return the limit that the child has broken, as (status, detail)."""
    stage, limits = watch.facts.get("stage", "start"), asked.limits
    if late:
        return "timeout", f"ended by its time limit during {stage}"
    if asked.device == "cpu" and watch.host_bytes > limits.host_gib * memory.GIB:
        return "oom", f"host memory over the limit of {in_words(limits.host_gib * memory.GIB)} during {stage}"
    if limits.gpu_gib is not None and (watch.device_bytes or 0) > limits.gpu_gib * memory.GIB:
        return "oom", f"device memory over the limit of {in_words(limits.gpu_gib * memory.GIB)} during {stage}"
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


def _end(watch: _Watch, exit_code: int, output: str, asked: Measurement, killed: bool) -> tuple[str, str]:
    """Return (status, detail) of a child that has ended: oom on evidence alone; killed: the kernel counted it."""
    if "status" in watch.facts:
        return watch.facts["status"], watch.facts.get("detail", "")
    stage = watch.facts.get("stage", "start")
    ran_out = _words_of_memory(watch.facts, output)
    if ran_out:
        return "oom", f"during {stage}: {ran_out[:300]}"
    if killed:
        return "oom", f"killed by the kernel for want of memory during {stage}"
    if exit_code == -signal.SIGKILL and watch.host_bytes > 0.9 * asked.limits.host_gib * memory.GIB:
        return "oom", f"killed during {stage} with {in_words(watch.host_bytes)} of host memory in use"
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit status {exit_code}"
    how = watch.facts.get("ended", how)
    return "error", f"{how} during {stage}\n{_last_words(output)}".strip()


def _words_of_memory(facts: dict[str, Any], output: str) -> str | None:
    """Return the line that says that memory ran out: of what ended the child, not of what it printed on the way.

    What is printed counts where nothing else tells: of a crash, of ranks, of packages that print why.
    """
    raised = facts.get("raised", "")
    printed = "ended" in facts or not raised or _TELLS_LESS.search(raised)
    evidence = OUT_OF_MEMORY.search(raised) or (OUT_OF_MEMORY.search(output) if printed else None)
    if evidence is None:
        return None
    begin = evidence.string.rfind("\n", 0, evidence.start()) + 1
    return evidence.string[begin:].splitlines()[0].strip()


def _last_words(output: str) -> str:
    """Return the end of the output; of a crash the calls that led to it, the last one last. No path of this machine."""
    kept = (line.replace(f"{os.getcwd()}/", "") for line in output.strip().splitlines() if not line.startswith(_LOADED))
    lines = [_FOLDERS.sub("", line) for line in kept]
    crash = next((k for k, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    if crash is not None:
        from_calls = dropwhile(lambda line: not line.startswith("  File"), lines[crash:])
        calls = list(takewhile(lambda line: line.startswith("  File"), from_calls))
        lines = [*reversed(calls[: _TAIL_LINES - 1]), lines[crash]]
    return "\n".join(lines[-_TAIL_LINES:])


def _record(
    asked: Measurement, watch: _Watch, status: str, detail: str, machine: dict[str, Any], **fields: Any
) -> Record:
    names = {f.name for f in dataclasses.fields(Record)}.difference(_TOLD_HERE)
    told = {name: value for name, value in watch.facts.items() if name in names}
    record = new_record(asked, status, detail, machine, peak_device_bytes=watch.device_bytes, **told, **fields)
    record.machine = machine | {"cpu_threads": watch.facts.get("threads", machine.get("cpu_threads"))}
    if watch.facts.get("sm_clock_mhz"):
        record.machine |= {"gpu": machine["gpu"] | {"sm_clock_mhz": watch.facts["sm_clock_mhz"]}}
    if status == "ok":
        record.set_runtime()
    return record
