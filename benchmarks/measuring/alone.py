"""One measurement at a time on a device, and one model of device in a folder of results."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import machine, records
from benchmarks.measuring.usable import why_no_gpu

_POLL_S = 0.2


class WrongDevice(RuntimeError):
    """This node cannot measure what is asked; the message names the node, and what it has."""


@contextmanager
def alone(device: str, root: Path) -> Iterator[None]:
    """Hold this host's GPU, or its CPU, for measurements into root: who else wants to measure on it waits.

    The lock is the name of an abstract socket. The kernel keeps it for this host, whoever its user is, and takes it
    back however its holder ends; it needs no file, so that no file system's locks matter. With a word in MMDMA_LOCK it
    is another lock, for tests that do not look at times.

    Raises WrongDevice, before anything is measured, if the device is not there or root holds records of another model.
    """
    _check_device(device)
    _check_model(machine.model(device), root)
    name = machine.gpu_uuid() if device == "cuda" else "CPU"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        if not _taken(lock, name):
            print(f"another sweep is measuring on {name}: waiting for it to end", file=sys.stderr, flush=True)
            while not _taken(lock, name):
                time.sleep(_POLL_S)
        yield


def _taken(lock: socket.socket, name: str | None) -> bool:
    try:
        lock.bind(f"\0mmdma-benchmark {name} {os.environ.get('MMDMA_LOCK', '')}")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _check_device(device: str) -> None:
    if device == "cuda" and why_no_gpu():
        raise WrongDevice(f"device: 'cuda' is asked for, but {machine.node()} cannot measure: {why_no_gpu()}")


def _check_model(model: str, root: Path) -> None:
    """The folder belongs to the model that measured into it first."""
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
            f"{root} holds measurements of {held}, and {machine.node()} has {model}: name another folder in `machine`"
        )


def _recorded_model(root: Path) -> str | None:
    found = records.read_folder(root).records
    return machine.recorded_model(found[0].machine) if found else None
