"""CUDA_VISIBLE_DEVICES in every form that CUDA takes, with a driver that is played: it knows whole UUIDs alone."""

import os
from dataclasses import dataclass
from types import SimpleNamespace

import pynvml
import pytest
import torch

from benchmarks import study
from benchmarks.config import ConfigError
from benchmarks.measuring import device as usable
from benchmarks.measuring import machine
from benchmarks.measuring.memory import GIB

A, B, C = (
    "GPU-af7b61d8-21af-baea-6a19-42a1f9f7c3cb",
    "GPU-af7c0000-0000-0000-0000-000000000000",
    "GPU-bb000000-0000-0000-0000-000000000000",
)


@dataclass(frozen=True)
class Device:
    uuid: str
    name: str = "NVIDIA Test 9000"
    gib: int = 40
    parts: tuple = ()
    instance: tuple = ()
    divided: bool = False  # in MIG mode, if it has no parts


ONE = Device("MIG-c78853af-1111-2222-3333-07d024b1bb00", "NVIDIA Test 9000 MIG 1g", 5, instance=(1, 0))
TWO = Device("MIG-c78853b0-1111-2222-3333-07d024b1bb00", "NVIDIA Test 9000 MIG 2g", 10, instance=(2, 0))
GPUS = [Device(A), Device(B), Device(C)]
DIVIDED = [Device(A, parts=(ONE, TWO)), Device(B), Device(C)]
EMPTY = Device(A, divided=True)


@pytest.fixture
def driver(monkeypatch):
    """Plays NVML with the GPUs that it is given."""

    def play(gpus=GPUS):
        def found(code, devices):
            device = next(devices, None)
            if device is None:
                raise pynvml.NVMLError(code)
            return device

        every = [*gpus, *(part for gpu in gpus for part in gpu.parts)]
        missing, argument = pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT
        answers = {
            "Init": lambda: None,
            "SystemGetDriverVersion": lambda: "1.2",
            "DeviceGetCount": lambda: len(gpus),
            "DeviceGetHandleByIndex": lambda index: found(argument, iter(gpus[index : index + 1])),
            "DeviceGetHandleByUUID": lambda uuid: found(missing, (gpu for gpu in every if gpu.uuid == uuid)),
            "DeviceGetUUID": lambda device: device.uuid,
            "DeviceGetName": lambda device: device.name,
            "DeviceGetMemoryInfo": lambda device: SimpleNamespace(total=device.gib * GIB, used=0),
            "DeviceGetClockInfo": lambda device, kind: found(argument, iter([1000] if device in gpus else [])),
            "DeviceGetMaxClockInfo": lambda device, kind: found(argument, iter([2000] if device in gpus else [])),
            "DeviceGetDeviceHandleFromMigDeviceHandle": lambda part: found(
                argument, (gpu for gpu in gpus if part in gpu.parts)
            ),
            "DeviceGetMaxMigDeviceCount": lambda gpu: 7 if gpu.parts or gpu.divided else 0,
            "DeviceGetMigDeviceHandleByIndex": lambda gpu, k: found(missing, iter(gpu.parts[k : k + 1])),
            "DeviceGetGpuInstanceId": lambda part: part.instance[0],
            "DeviceGetComputeInstanceId": lambda part: part.instance[1],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", answer)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

        def seen(devices):
            return [usable.Seen(machine.gpu(k)["name"], machine.gpu(k)["memory_bytes"], "") for k in range(devices)]

        monkeypatch.setattr(usable, "_compute", seen)
        forget()
        return monkeypatch

    yield play
    forget()


def forget():
    for cached in (machine.gpu, machine.gpu_uuid, machine._gpus):
        cached.cache_clear()
    usable._answers.clear()


@pytest.mark.parametrize(
    ("named", "first"),
    [
        (None, GPUS[0]),
        ("0", GPUS[0]),
        ("2,0", GPUS[2]),
        (" 1 , 0", GPUS[1]),
        ("+1", GPUS[1]),
        ("1st", GPUS[1]),  # read as CUDA does
        ("1,-1,1", GPUS[1]),  # what comes after -1 is hidden
        ("1,9,1", GPUS[1]),
        (f"2,{C}", GPUS[2]),  # another form ends the list
        (A, GPUS[0]),
        (f"{B},{A}", GPUS[1]),
        ("GPU-af7b61d8", GPUS[0]),
        ("GPU-bb", GPUS[2]),
        ("GPU-bb,GPU-nonsense,GPU-bb", GPUS[2]),
        ("", None),
        (" ", None),
        ("-1", None),
        ("-1,0", None),
        ("NoDevFiles", None),
    ],
)
def test_the_first_of_the_names(driver, named, first):
    environment = driver()
    if named is not None:
        environment.setenv("CUDA_VISIBLE_DEVICES", named)
    assert machine.visible_gpus()[:1] == ([first] if first else [])
    assert machine.gpu_uuid() == (first and first.uuid)


@pytest.mark.parametrize(
    ("gpus", "named", "shown"),
    [
        (DIVIDED, None, [ONE]),  # the first part, and no whole GPU beside it
        (DIVIDED, "0", [ONE]),
        (DIVIDED, "1,0", [ONE]),
        (DIVIDED, "1,2", DIVIDED[1:]),
        (DIVIDED, A, [ONE]),
        (DIVIDED, ONE.uuid, [ONE]),
        (DIVIDED, f"{TWO.uuid},{ONE.uuid}", [TWO]),
        (DIVIDED, "MIG-c78853b", [TWO]),
        (DIVIDED, f"MIG-{A}/2/0", [TWO]),
        (DIVIDED, "MIG-GPU-af7b/1/0", [ONE]),
        ([EMPTY, Device(B)], None, [Device(B)]),
        (GPUS, None, GPUS),
        (GPUS, "2,0", [GPUS[2], GPUS[0]]),
    ],
)
def test_of_a_gpu_in_parts_cuda_takes_the_first_part(driver, gpus, named, shown):
    environment = driver(gpus)
    if named is not None:
        environment.setenv("CUDA_VISIBLE_DEVICES", named)
    assert machine.visible_gpus() == shown
    assert machine.gpu_count() == len(shown)
    found = machine.describe("cuda", 2)["gpu"]
    assert (found["name"], found["uuid"]) == (shown[0].name, shown[0].uuid)
    assert found["memory_bytes"] == shown[0].gib * GIB
    assert (found["sm_clock_mhz"], found["max_sm_clock_mhz"]) == (1000, 2000)  # of a part those of its GPU


def test_a_gpu_in_mig_mode_without_parts_is_one_line(driver):
    driver([EMPTY])
    with pytest.raises(
        ConfigError, match=r"NVIDIA Test 9000 is in MIG mode and has no parts: make some \(nvidia-smi mig"
    ):
        study._device("auto")


def test_gpus_of_others_are_counted_by_the_driver_and_not_by_cuda(driver):
    environment = driver()

    def handle(index):
        if index == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return GPUS[index]

    environment.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    assert machine.visible_gpus() == GPUS[1:]
    environment.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.visible_gpus() == GPUS[2:]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("3", rf"'3' is not the name of one GPU here \(0: {A}, 1: {B}, 2: {C}\)"),
        ("GPU-af7", "'GPU-af7' is not the name of one GPU"),  # the beginning of two
        ("GPU-00", "'GPU-00' is not"),
        ("gpu-bb", "'gpu-bb' is not"),
        ("bb000000", "'bb000000' is not"),
        ("none", "set it to '' to measure on the CPU"),
        (",0", "'' is not"),
        ("0,1,0", "names a GPU twice"),
        (f"{A},GPU-af7b", "names a GPU twice"),
    ],
)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_names_that_show_no_gpu_are_one_line(driver, named, words, device):
    driver().setenv("CUDA_VISIBLE_DEVICES", named)
    with pytest.raises(ConfigError, match=words) as caught:
        study._device(device)
    assert "\n" not in str(caught.value)
    assert study._device("cpu") == "cpu"


@pytest.mark.parametrize("named", [f"MIG-{A}/9/0", "MIG-c78853"])
def test_names_that_show_no_part_are_one_line(driver, named):
    driver(DIVIDED).setenv("CUDA_VISIBLE_DEVICES", named)
    with pytest.raises(ConfigError, match=f"'{named}' is not the name of one GPU"):
        study._device("auto")


@pytest.mark.parametrize("named", ["0", "GPU-af7b61d8", "nonsense"])
def test_without_any_gpu_every_name_is_a_cpu(driver, named):
    environment = driver([])
    environment.setenv("CUDA_VISIBLE_DEVICES", named)
    assert study._device("auto") == "cpu"
    environment.setattr(pynvml, "nvmlInit", lambda: (_ for _ in ()).throw(pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)))
    assert machine.visible_gpus() == []
    assert machine.trouble() == "Unknown Error"
    assert study._device("auto") == "cpu"
    assert "the driver knows no GPU here: Unknown Error; see what nvidia-smi says" in usable.why_no_gpu()
    assert "'auto' takes the CPU here: the driver knows no GPU" in next(study._notes("auto", "cpu"))
    environment.setenv("CUDA_VISIBLE_DEVICES", "")  # on purpose
    assert usable.why_no_gpu() == "the driver knows no GPU here"


@pytest.mark.parametrize(
    ("gpus", "named", "refused"),
    [
        ([Device(A), Device(B, "NVIDIA Faster")], None, True),
        ([Device(A), Device(B, "NVIDIA Faster")], "1", True),
        ([Device(A), Device(B, "NVIDIA Faster")], B, False),
        ([Device(A), Device(B)], "1", False),
        ([Device(A)], None, False),
    ],
)
def test_another_order_is_refused_where_it_may_give_another_gpu(driver, gpus, named, refused):
    environment = driver(gpus)
    if named is not None:
        environment.setenv("CUDA_VISIBLE_DEVICES", named)
    assert study._device("cuda") == "cuda"  # nothing said: by PCI bus
    environment.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    forget()
    if refused:
        with pytest.raises(ConfigError, match=r"NVIDIA Faster, NVIDIA Test 9000\) and are counted by PCI bus"):
            study._device("cuda")
    else:
        assert study._device("cuda") == "cuda"
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_gpu_that_does_not_compute_is_no_cpu_in_silence(driver):
    environment = driver()

    def refuse(devices):
        raise RuntimeError("No CUDA GPUs are available")

    environment.setattr(usable, "_compute", refuse)
    environment.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(ConfigError, match=r"No CUDA GPUs are available; .*to measure on the CPU, set device to cpu"):
        study._device("auto")
    environment.setattr(torch.version, "cuda", None)  # a build for the CPU
    assert study._device("auto") == "cpu"
    assert "'auto' takes the CPU here: NVIDIA Test 9000 (driver 1.2) does not" in next(study._notes("auto", "cpu"))


def test_the_command_says_it_in_one_line(driver, monkeypatch, capsys, config_file):
    from benchmarks.__main__ import main

    driver().setenv("CUDA_VISIBLE_DEVICES", "GPU-00")
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "2")  # which main sets, and must not stay
    assert main(["check", "--config", str(config_file)]) == 2
    assert capsys.readouterr().err.startswith("error: device: 'auto', but CUDA_VISIBLE_DEVICES='GPU-00': ")
