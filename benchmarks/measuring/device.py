"""The device that measures: nobody else does there meanwhile, it computes, and a folder of results has one model.

Whether a GPU computes is asked of a forked child, for the process that forks measurements never opens CUDA itself.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import platform
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measuring import machine, records
from mmdma_core.models import in_words

_POLL_S = 0.2
_NO_KERNELS = re.compile(r"no kernel image|ARCH_MISMATCH|unsupported gpu architecture", re.IGNORECASE)
_OLD_DRIVER = re.compile(r"driver.* is (too old|insufficient)|unsupported toolchain", re.IGNORECASE)
_NO_CUDA = re.compile(r"not compiled with CUDA", re.IGNORECASE)
_NO_FABRIC = re.compile(r"system not yet initialized", re.IGNORECASE)
_TAKEN = re.compile(r"busy or unavailable|out of memory", re.IGNORECASE)
# Said by CUDA and NVML of a device that is lost or broken, whatever else it does later.
_LOST = re.compile(
    r"GPU is lost|device (is )?lost|fallen off the bus|uncorrectable|ECC_UNCORRECTABLE|\bXid\b", re.IGNORECASE
)
_END_OF_SENTENCE = re.compile(r"\.\s+(?=[A-Z])|\n|\.?\s*$")
_fork = multiprocessing.get_context("fork")
_answers: dict[int, str | None] = {}  # number of GPUs -> why not
_LOOK = "see what nvidia-smi says, and dmesg in lines with NVRM or Xid; after an update of the driver, restart"

LIMIT_S = 120.0  # the first use of many GPUs, or of libraries on a slow file system, takes a minute
RELEASE = "2.13.0"  # of PyTorch, the one that constraints.txt names; what follows is of its builds


class Build(NamedTuple):
    """A build of PyTorch: the CUDA that it brings, the oldest driver, and the cards that it has kernels for.

    kernels  of each kind of processor, as 10 x compute capability; they run on later ones of the same generation
    """

    cuda: str
    driver: int
    kernels: Mapping[str, tuple[int, ...]]

    def has_kernels(self, capability: tuple[int, int]) -> bool:
        """Return whether it computes on a card of this compute capability, in this host."""
        generation, step = capability
        kernels = self.kernels.get(platform.machine(), ())
        return any(code // 10 == generation and code % 10 <= step for code in kernels)


# The one to take first. Kernels: torch.cuda.PYTORCH_RELEASES_CODE_CC; drivers: NVIDIA's notes on CUDA compatibility.
BUILDS = (
    Build("13.0", 580, {"x86_64": (75, 80, 86, 90, 100, 120), "aarch64": (80, 90, 100, 110, 120)}),
    Build("12.6", 525, {"x86_64": (50, 60, 70, 75, 80, 86, 90), "aarch64": (80, 90)}),
)


class DeviceGone(RuntimeError):
    """A GPU was here when the sweep began, and computes no longer."""


class WrongDevice(RuntimeError):
    """This node cannot measure what is asked; the message names the node, and what it has."""


@contextmanager
def alone(device: str, root: Path, devices: int = 1) -> Iterator[None]:
    """Hold this host's first GPUs, or its CPU, for measurements into root: who else wants to measure there waits.

    Raises WrongDevice, before anything is measured, if a device is not there, does not compute or is of another model
    than the rest, or if root holds records of another model.
    """
    _check_device(device, devices, locked=False)
    _check_model(machine.model(device), root)
    with device_lock(device, devices):
        _check_device(device, devices, locked=True)  # not known while somebody else has measured
        yield


@contextmanager
def device_lock(device: str, devices: int = 1, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of the first GPUs, or of the CPU, as soon as it is free; give False where it is not, without wait.

    The locks of several GPUs are taken in the order of their UUIDs, so that no two processes wait for each other.

    A lock is the name of an abstract socket. The kernel keeps it for this host, whoever its user is, and takes it
    back however its holder ends; it needs no file, so that no file system's locks matter. With a word in MMDMA_LOCK it
    is another lock, for tests that do not look at times.
    """
    names = {str(machine.gpu_uuid(k)) for k in range(devices)} if device == "cuda" else {"CPU"}
    with ExitStack() as taken:
        for name in sorted(names):
            lock = taken.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            if _take(lock, name):
                continue
            if not wait:
                taken.close()
                yield False
                return
            print(f"another sweep is measuring on {name}: waiting for it to end", file=sys.stderr, flush=True)
            while not _take(lock, name):
                time.sleep(_POLL_S)
        yield True


class Seen(NamedTuple):
    """What CUDA says of a device that has computed: name, memory in bytes, UUID or ''."""

    name: str
    memory_bytes: int
    uuid: str


def why_no_gpu(devices: int = 1, locked: bool = False) -> str | None:
    """Return None if the first GPUs compute with this PyTorch, else why not and what to do, in one line.

    A child computes on them, once for this process. Not while somebody else measures there: then None is an answer for
    now, and whoever waits for the end asks again with `locked`, as the one who holds the device lock.

    Raises ValueError where CUDA_VISIBLE_DEVICES names none of the GPUs that are there.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # PyTorch asks the driver here, and opens no context
    count = machine.gpu_count()
    if count == 0:
        trouble = machine.trouble()
        return "the driver knows no GPU here" + (f": {trouble}; {_LOOK}" if trouble else "")
    if count < devices:
        return f"{devices} GPUs are asked for, and PyTorch has {count} here"
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver counts
    if devices not in _answers:
        with nullcontext(True) if locked else device_lock("cuda", devices, wait=False) as is_ours:
            if not is_ours:
                return None
            found = _asked_of_a_child(devices)
        _answers[devices] = _sentence(found) if isinstance(found, str) else _disagreement(found)
    return _answers[devices]


def check_not_gone(devices: int, said: str, ask: bool) -> None:
    """Raise DeviceGone if the GPUs are no longer there, by the driver and by what a measurement has said.

    ask  whether a child is to compute on them, too
    """
    lost = _LOST.search(said)
    why = machine.gone(devices) or (lost and said[lost.start() :].partition("\n")[0][:200])
    if not why and ask and machine.gpu_count() >= devices:
        found = _asked_of_a_child(devices)
        why = found if isinstance(found, str) else None
    if why:
        _answers.clear()
        raise DeviceGone(
            f"the GPU does not answer any more: {_first_sentence(why)}; every finished measurement is on disk, and "
            f"the same command goes on when it answers again: {_LOOK}"
        )


def _asked_of_a_child(devices: int) -> list[Seen] | str:
    """Let a child compute on the devices; return what CUDA shows of them, or in words what came in its place."""
    receiver, sender = _fork.Pipe(duplex=False)
    child = _fork.Process(target=_tell, args=(sender, devices), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(LIMIT_S):
            return f"a small product and sum did not end within {LIMIT_S:g} s"
        return receiver.recv()
    except EOFError:
        child.join(10.0)
        code = child.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"a process that computes there ends by {how}"
    finally:
        child.kill()
        child.join(1.0)  # one that hangs in the driver cannot be ended
        receiver.close()


def _tell(sender: Connection, devices: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    signal.alarm(int(LIMIT_S) + 1)  # if nobody is left to end it
    try:
        sender.send(_compute(devices))
    except Exception as error:  # whatever it is, it is why nothing can be measured
        sender.send(str(error) or type(error).__name__)


def _compute(devices: int) -> list[Seen]:
    """Compute on the first devices; raises what CUDA raises."""
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    if not torch.cuda.is_available():
        torch.cuda.init()  # raises, and says why
    found = []
    for k in range(devices):
        ones = torch.ones(64, 64, device=f"cuda:{k}")
        total = (ones @ ones).sum().item()
        if total != 64**3:
            raise RuntimeError(f"the sum of 64 x 64 x 64 ones is {total}")
        its = torch.cuda.get_device_properties(k)
        found.append(Seen(its.name, its.total_memory, str(getattr(its, "uuid", ""))))
    return found


def _sentence(said: str) -> str:
    """Say what CUDA has raised, with the card, the driver, this PyTorch, and the remedy."""
    capability, driver = machine.compute_capability(), machine.driver()
    known = [f"compute capability {capability[0]}.{capability[1]}"] if capability else []
    known += [f"driver {driver}"] if driver else []
    cuda = f" for CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return (
        f"{machine.gpu()['name']} ({', '.join(known)}) does not compute with PyTorch {torch.__version__}{cuda}: "
        f"{_first_sentence(said)}; {remedy(said, capability, driver)}"
    )


def _first_sentence(said: str) -> str:
    """Return the first sentence, or CUDA's own number and words where PyTorch gives them at the end."""
    own = re.search(r"Error \d+: [^\n]*", said)
    return _END_OF_SENTENCE.split(own[0] if own else said.strip(), maxsplit=1)[0]


def remedy(said: str, capability: tuple[int, int] | None, driver: str | None) -> str:
    """Say what to do about what CUDA has raised, for a card and a driver, each None where it is not known."""
    if _TAKEN.search(said):
        return "another process holds it: nvidia-smi says which; wait for it, or end it"
    if _NO_FABRIC.search(said):
        return "GPUs that NVSwitch joins need nvidia-fabricmanager, of the driver's version: start it"
    number = int(driver.split(".")[0]) if driver and driver.split(".")[0].isdigit() else None
    own = {"13": 580, "12": 525}.get((torch.version.cuda or "").split(".")[0])
    old = _OLD_DRIVER.search(said) or (own and number and number < own)
    if not old and not _NO_KERNELS.search(said) and not _NO_CUDA.search(said):
        return _LOOK
    with_kernels = [build for build in BUILDS if capability is None or build.has_kernels(capability)]
    if not with_kernels:
        return f"PyTorch {RELEASE} has no build for this card: set device to cpu"
    able = [build for build in with_kernels if number is None or number >= build.driver]
    newer = f"a driver of {with_kernels[0].driver} or newer"
    if not able:
        return f"install {newer}, and PyTorch's build for CUDA {with_kernels[0].cuda}, see docs/gpu.md"
    take = f"take PyTorch's build for CUDA {able[0].cuda}"
    return f"{take}{f', or {newer}' if capability and able[0] != with_kernels[0] else ''}, see docs/gpu.md"


def _disagreement(found: list[Seen]) -> str | None:
    """Say in one line where CUDA computes on something else than the driver was asked about."""
    for k, seen in enumerate(found):
        asked = machine.gpu(k)
        uuids = {_bare(uuid) for uuid in (asked["uuid"], machine.whole_gpu_uuid(k)) if uuid}
        other = bool(seen.uuid and uuids and _bare(seen.uuid) not in uuids)
        total = asked["memory_bytes"]
        if other or (total and not 0.6 * total <= seen.memory_bytes <= 1.1 * total):
            return (
                f"CUDA's GPU {k} is {_called(seen.name, seen.memory_bytes, seen.uuid)}, and the driver's is "
                f"{_called(asked['name'], total, asked['uuid'])}: set CUDA_VISIBLE_DEVICES to a UUID of nvidia-smi -L"
            )
    return None


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _called(name: str, memory_bytes: int | None, uuid: str | None) -> str:
    memory = in_words(memory_bytes) if memory_bytes else "memory of its own kind"
    return f"{name} ({memory}, {uuid or 'no UUID'})"


def _take(lock: socket.socket, name: str) -> bool:
    """Take the lock; whether it is ours now."""
    try:
        lock.bind(f"\0mmdma-benchmark {name} {os.environ.get('MMDMA_LOCK', '')}")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _check_device(device: str, devices: int, locked: bool) -> None:
    if device != "cuda":
        return
    why_not = why_no_gpu(devices, locked)
    models = {} if why_not else {machine.model(device, k) for k in range(devices)}
    if len(models) > 1:
        why_not = f"its GPUs differ ({', '.join(sorted(models))}): name those of one kind in CUDA_VISIBLE_DEVICES"
    if why_not:
        raise WrongDevice(f"device: 'cuda' is asked for, but {platform.node()} cannot measure: {why_not}")


def _check_model(model: str, root: Path) -> None:
    """Raise WrongDevice where another model has measured into the folder first."""
    owner = root / "model.txt"
    if not owner.exists():
        root.mkdir(parents=True, exist_ok=True)
        part = root / f".{os.getpid()}.part.{secrets.token_hex(4)}"  # containers on several nodes share numbers
        part.write_text(_recorded_model(root) or model)
        try:
            os.link(part, owner)
        except FileExistsError:  # another node was faster
            pass
        except OSError:  # a file system without hard links
            part.replace(owner)
        finally:
            part.unlink(missing_ok=True)
    try:
        held = owner.read_text().strip()
    except PermissionError:  # another user's, from before it was written with the rights that the folder gives
        held = _recorded_model(root)
        if held is None:
            raise
    if held != model:
        raise WrongDevice(
            f"{root} holds measurements of {held}, and {platform.node()} has {model}: name another folder in `machine`"
        )


def _recorded_model(root: Path) -> str | None:
    found = records.read_folder(root).records
    return machine.recorded_model(found[0].machine) if found else None
