"""CUDA_VISIBLE_DEVICES in every form that CUDA takes, with a driver that is played: it knows whole UUIDs alone."""

import os
from dataclasses import dataclass

import pynvml
import pytest
import torch
import yaml
from conftest import ROOT

from benchmarks.measuring import machine, visible
from benchmarks.study import study
from benchmarks.study.config import ConfigError

A, B, C = (
    "GPU-af7b61d8-21af-baea-6a19-42a1f9f7c3cb",
    "GPU-af7c0000-0000-0000-0000-000000000000",
    "GPU-bb000000-0000-0000-0000-000000000000",
)


@dataclass(frozen=True)
class Device:
    uuid: str
    name: str = "NVIDIA Test 9000"
    parts: tuple = ()
    instance: tuple = ()


ONE = Device("MIG-c78853af-1111-2222-3333-07d024b1bb00", instance=(1, 0))
TWO = Device("MIG-c78853b0-1111-2222-3333-07d024b1bb00", instance=(2, 0))
GPUS = [Device(A, parts=(ONE, TWO)), Device(B), Device(C)]


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
            "DeviceGetMaxMigDeviceCount": lambda gpu: 7 if gpu.parts else 0,
            "DeviceGetMigDeviceHandleByIndex": lambda gpu, k: found(missing, iter(gpu.parts[k : k + 1])),
            "DeviceGetGpuInstanceId": lambda part: part.instance[0],
            "DeviceGetComputeInstanceId": lambda part: part.instance[1],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", answer)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
        machine.gpu.cache_clear()
        machine._first_gpu.cache_clear()
        return monkeypatch

    yield play
    machine.gpu.cache_clear()
    machine._first_gpu.cache_clear()


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
        (ONE.uuid, ONE),
        ("MIG-c78853b", TWO),
        (f"MIG-{A}/2/0", TWO),
        ("MIG-GPU-af7b/1/0", ONE),
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
    assert visible.first_gpu() == first
    assert machine._first_gpu() == first


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("3", rf"'3' is not the name of one GPU here \(0: {A}, 1: {B}, 2: {C}\)"),
        ("GPU-af7", "'GPU-af7' is not the name of one GPU"),  # the beginning of two
        ("GPU-00", "'GPU-00' is not"),
        ("gpu-bb", "'gpu-bb' is not"),
        ("bb000000", "'bb000000' is not"),
        (f"MIG-{A}/9/0", "is not the name"),
        ("MIG-c78853", "'MIG-c78853' is not"),
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


@pytest.mark.parametrize("named", ["0", "GPU-af7b61d8", "nonsense"])
def test_without_any_gpu_every_name_is_a_cpu(driver, named):
    environment = driver([])
    environment.setenv("CUDA_VISIBLE_DEVICES", named)
    assert study._device("auto") == "cpu"
    environment.setattr(pynvml, "nvmlInit", lambda: (_ for _ in ()).throw(pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)))
    assert visible.first_gpu() is None


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
    environment.setattr(torch.cuda, "is_available", lambda: True)
    assert study._device("cuda") == "cuda"  # nothing said: by PCI bus
    environment.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    machine._first_gpu.cache_clear()
    machine.gpu.cache_clear()
    if refused:
        with pytest.raises(ConfigError, match=r"NVIDIA Faster, NVIDIA Test 9000\) and are counted by PCI bus"):
            study._device("cuda")
    else:
        assert study._device("cuda") == "cuda"
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_name_that_pytorch_does_not_take_is_no_cpu_in_silence(driver):
    environment = driver()
    environment.setenv("CUDA_VISIBLE_DEVICES", ONE.uuid)
    environment.setattr(torch.version, "cuda", "12.8")
    environment.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no GPU of that name"):
        study._device("auto")
    environment.setattr(torch.version, "cuda", None)  # a build for the CPU
    assert study._device("auto") == "cpu"


def test_of_a_part_of_a_gpu_another_process_asks(driver):
    environment, here = driver(), []
    environment.setenv("CUDA_VISIBLE_DEVICES", ONE.uuid)
    environment.setattr(torch.cuda, "is_available", lambda: here.append(1) or True)
    assert study._device("auto") == "cuda"
    assert not here


def test_the_command_says_it_in_one_line(driver, monkeypatch, capsys):
    from benchmarks.__main__ import main

    driver().setenv("CUDA_VISIBLE_DEVICES", "GPU-00")
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "2")  # which main sets, and must not stay
    assert main(["check", "--config", str(ROOT / "config.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: device: 'auto', but CUDA_VISIBLE_DEVICES='GPU-00': ")
    assert yaml.safe_load((ROOT / "config.yaml").read_text())["device"] == "auto"
