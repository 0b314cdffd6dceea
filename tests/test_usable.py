"""Whether a GPU computes, asked of a child, and what is said where it does not."""

import faulthandler
import os
import re
import signal
import time
from types import SimpleNamespace

import pynvml
import pytest
import torch
from conftest import ROOT

from benchmarks.measuring import device as usable
from benchmarks.measuring import machine
from benchmarks.measuring.device import BUILDS

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: ..."
)
NO_KERNELS = (
    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be asynchronously "
    "reported at some other API call\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)

TORCH_IS_FOR_CPU = torch.version.cuda is None
OWN = os.getpid()  # no other run of these tests has these cards


def forget():
    for cached in (machine.gpu, machine.gpu_uuid, machine._gpus):
        cached.cache_clear()
    usable._answers.clear()


UNEXPECTED = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 802: system not yet initialized"
)


@pytest.fixture
def card(monkeypatch):
    """Plays a driver with two cards of a kind, and a PyTorch for some CUDA whose computing is given."""

    def play(compute=None, name="Tesla V100", capability=(7, 0), driver="535.1", cuda="13.0"):
        uuids = [f"GPU-{OWN}-{k}" for k in range(2)]
        answers = {
            "Init": lambda: None,
            "DeviceGetCount": lambda: 2,
            "DeviceGetHandleByIndex": lambda index: uuids[index],
            "DeviceGetUUID": str,
            "DeviceGetName": lambda handle: name,
            "DeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=16 * 2**30, used=0),
            "SystemGetDriverVersion": lambda: driver,
            "DeviceGetCudaComputeCapability": lambda handle: capability,
        }
        for query, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvml{query}", answer)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        forget()
        monkeypatch.setattr(usable, "_compute", compute or (lambda devices: seen()[:devices]))
        return monkeypatch

    yield play
    forget()


def seen(name="Tesla V100", gib=15.8, uuids=None):
    """What CUDA says of two devices."""
    uuids = uuids or [f"{OWN}-{k}" for k in range(2)]
    return [usable.Seen(name, int(gib * 2**30), uuid) for uuid in uuids]


def raising(message):
    def compute(devices):
        raise RuntimeError(message)

    return compute


def test_a_gpu_that_computes_is_asked_once_and_by_a_child(card):
    log = []

    def compute(devices):
        log.append(devices)  # in the child alone
        return seen()[:devices]

    environment = card(compute)
    assert usable.why_no_gpu() is usable.why_no_gpu(2) is None
    environment.setattr(usable, "_asked_of_a_child", lambda devices: pytest.fail("asked again"))
    assert usable.why_no_gpu() is usable.why_no_gpu(2) is None
    assert not log
    assert not torch.cuda.is_initialized()
    assert usable.why_no_gpu(3) == "3 GPUs are asked for, and PyTorch has 2 here"


@pytest.mark.parametrize(
    ("said", "played", "words"),
    [
        (TOO_OLD, {}, "Tesla V100 (compute capability 7.0, driver 535.1) does not compute with PyTorch"),
        (TOO_OLD, {}, "is too old (found version 12020); take PyTorch's build for CUDA 12.6, see docs/gpu.md"),
        (TOO_OLD, {"capability": (9, 0)}, "take PyTorch's build for CUDA 12.6, or a driver of 580 or newer, see"),
        (TOO_OLD, {"capability": None}, "take PyTorch's build for CUDA 12.6, see"),
        (TOO_OLD, {"driver": "470.2"}, "install a driver of 525 or newer, and PyTorch's build for CUDA 12.6, see"),
        (TOO_OLD, {"capability": (12, 0)}, "install a driver of 580 or newer, and PyTorch's build for CUDA 13.0, see"),
        (NO_KERNELS, {"driver": "580.1"}, "no kernel image is available for execution on the device; take PyTorch's "),
        (NO_KERNELS, {"driver": "580.1"}, "build for CUDA 12.6, see docs/gpu.md"),
        (NO_KERNELS, {"driver": "580.1", "capability": (3, 7)}, "has no build for this card: set device to cpu"),
        (NO_KERNELS, {"driver": "580.1", "capability": (10, 0), "cuda": "12.6"}, "take PyTorch's build for CUDA 13.0,"),
        ("Torch not compiled with CUDA enabled", {"cuda": None, "driver": "580.1", "capability": (8, 9)}, "CUDA 13.0,"),
        ("Torch not compiled with CUDA enabled", {"cuda": None}, "take PyTorch's build for CUDA 12.6,"),
        ("CUDA error: unknown error", {"driver": "535.1", "capability": (8, 0)}, "take PyTorch's build for CUDA 12.6"),
        ("CUDA error: unknown error", {"driver": "580.1", "capability": (8, 0)}, "see what nvidia-smi says, and dmesg"),
        ("CUDA out of memory. Tried to allocate", {}, "another process holds it: nvidia-smi says which"),
        ("CUDA-capable device(s) is/are busy or unavailable", {}, "another process holds it"),
        (UNEXPECTED, {}, ": Error 802: system not yet initialized; GPUs that NVSwitch joins need nvidia-f"),
        ("", {"driver": "580.1"}, "RuntimeError; see what nvidia-smi says"),
    ],
)
def test_what_cuda_raises_is_one_line_with_the_remedy(card, said, played, words):
    card(raising(said), **played)
    found = usable.why_no_gpu()
    assert words in found
    assert not re.search(r"\n|http|asynchronously", found)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (
            lambda devices: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)),
            "a process that computes there ends by SIGSEGV",
        ),
        (lambda devices: os._exit(3), "a process that computes there ends by exit status 3"),
        (lambda devices: time.sleep(60), "a small product and sum did not end within 0.5 s"),
    ],
)
def test_a_child_that_dies_or_hangs_is_one_line_in_time(card, work, words):
    card(work, driver="580.1").setattr(usable, "LIMIT_S", 0.5)
    begin = time.monotonic()
    found = usable.why_no_gpu()
    assert words in found
    assert "see what nvidia-smi says" in found
    assert time.monotonic() - begin < 20


def test_the_work_of_the_child_is_a_product_that_is_right(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ones, its = torch.ones, SimpleNamespace(name="Fake", total_memory=5, uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: its)
    asked = []
    monkeypatch.setattr(torch, "ones", lambda *shape, device: asked.append(device) or ones(*shape))
    assert usable._compute(2) == [usable.Seen("Fake", 5, "abc")] * 2
    assert asked == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape) / 2)
    with pytest.raises(RuntimeError, match="the sum of 64 x 64 x 64 ones is 65536"):
        usable._compute(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_pytorch_that_finds_no_gpu_is_told_what_to_do(card):
    card(usable._compute, cuda=torch.version.cuda)
    found = usable.why_no_gpu()
    words = ": Torch not compiled with CUDA enabled; take PyTorch's build for CUDA 12.6" if TORCH_IS_FOR_CPU else "; "
    assert "Tesla V100 (compute capability 7.0, driver 535.1) does not compute with PyTorch" in found
    assert words in found


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (seen(), None),
        (seen(uuids=["", ""]), None),  # a PyTorch that does not tell
        (seen(uuids=["other", "another"]), r"CUDA's GPU 0 is Tesla V100 \(.*, other\), and the driver's is Tesla V100"),
        (seen(uuids=[f"{OWN}-0", f"{OWN}-0"]), "CUDA's GPU 1 is"),
        (seen("Tesla V100 MIG 1g", 4.9), "CUDA's GPU 0 is Tesla V100 MIG 1g .* set CUDA_VISIBLE_DEVICES to a UUID"),
    ],
)
def test_that_cuda_computes_on_what_the_driver_was_asked_about(card, shown, words):
    card(lambda devices: shown[:devices])
    found = usable.why_no_gpu(2)
    assert found is None if words is None else re.search(words, found)


def test_while_somebody_measures_the_gpu_is_left_alone_and_asked_afterwards(card):
    environment = card(raising("a fault"))
    with usable.device_lock("cuda", wait=False) as ours:
        assert ours
        environment.setattr(usable, "_asked_of_a_child", lambda devices: pytest.fail("computes beside a measurement"))
        assert usable.why_no_gpu() is None
        environment.setattr(usable, "_asked_of_a_child", lambda devices: "a fault")
        assert "a fault" in usable.why_no_gpu(locked=True)
    assert "a fault" in usable.why_no_gpu()


def test_a_builds_table_is_that_of_pytorch_and_of_the_docs():
    known = getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", None)
    if known is not None and torch.__version__.split("+")[0] == usable.RELEASE:
        for build in BUILDS:
            assert {kind: set(kernels) for kind, kernels in build.kernels.items()} == known[build.cuda]
    assert f"torch=={usable.RELEASE}\n" in (ROOT / "constraints.txt").read_text()
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| CUDA ([\d.]+) \| (.*?) \| (.*?) \| (.*?) \| `(.*?)` \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == [build.cuda for build in BUILDS]
    for (cuda, driver, x86_64, aarch64, install), build in zip(rows, BUILDS, strict=True):
        assert driver == f"{build.driver} or newer"
        for told, kind in ((x86_64, "x86_64"), (aarch64, "aarch64")):
            assert told == ", ".join(f"{code // 10}.{code % 10}" for code in build.kernels[kind])
        assert install == f"pip install torch=={usable.RELEASE} --index-url URL_FOR_CUDA_{cuda}"


@pytest.mark.parametrize(
    ("capability", "cudas"),
    [
        *(((3, 7), []), ((5, 2), ["12.6"]), ((6, 1), ["12.6"]), ((7, 0), ["12.6"]), ((7, 5), ["13.0", "12.6"])),
        *(((8, 9), ["13.0", "12.6"]), ((9, 0), ["13.0", "12.6"]), ((10, 0), ["13.0"]), ((12, 0), ["13.0"])),
    ],
)
def test_which_builds_have_kernels_for_a_card(monkeypatch, capability, cudas):
    monkeypatch.setattr(usable.platform, "machine", lambda: "x86_64")
    assert [build.cuda for build in BUILDS if build.has_kernels(capability)] == cudas


@pytest.mark.gpu
def test_the_gpu_that_is_here_computes():
    assert usable.why_no_gpu() is None
    assert not torch.cuda.is_initialized()
