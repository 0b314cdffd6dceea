"""One measurement at a time on a device, and one model of device in a folder of results."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import locks, machine, records
from benchmarks.measuring.device import why_no_gpu


class WrongDevice(RuntimeError):
    """This node cannot measure what is asked; the message names the node, and what it has."""


@contextmanager
def alone(device: str, root: Path, devices: int = 1) -> Iterator[None]:
    """Hold this host's first GPUs, or its CPU, for measurements into root: who else wants to measure there waits.

    Raises WrongDevice, before anything is measured, if a device is not there, does not compute or is of another model
    than the rest, or if root holds records of another model.
    """
    _check_device(device, devices, alone=False)
    _check_model(machine.model(device), root)
    with locks.held(locks.names(device, devices), wait=True):
        _check_device(device, devices, alone=True)  # not known while somebody else has measured
        yield


def _check_device(device: str, devices: int, alone: bool) -> None:
    if device != "cuda":
        return
    why_not = why_no_gpu(devices, alone)
    models = {} if why_not else {machine.model(device, k) for k in range(devices)}
    if len(models) > 1:
        why_not = f"its GPUs differ ({', '.join(sorted(models))}): name those of one kind in CUDA_VISIBLE_DEVICES"
    if why_not:
        raise WrongDevice(f"device: 'cuda' is asked for, but {machine.node()} cannot measure: {why_not}")


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
