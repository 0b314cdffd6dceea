"""A GPU that goes in the middle of a sweep, and what is said of WSL2: with stand-ins for driver, CUDA and GPU."""

import re
import shutil

import pytest
from conftest import ROOT

from benchmarks.measuring import records

SAYS = {
    "lost": "GPU is lost",
    "hidden": "the driver no longer knows GPU-",
    "words": "uncorrectable ECC error encountered",
    "dead": "CUDA error: unknown error",
    "hangs": "CUDA error: unknown error",
}


BEFORE = {
    how: rf"error: device: 'cuda' is asked for, but .* cannot measure: {why}; see what nvidia-smi says.*\n"
    for how, why in (
        ("lost", "the driver knows no GPU here: GPU is lost"),
        ("hidden", "the driver knows no GPU here: Invalid Argument"),
        ("dead", "Fake 9000 .* does not compute with PyTorch .*: CUDA error: unknown error"),
        ("hangs", "Fake 9000 .* does not compute with PyTorch .*: CUDA error: unknown error"),
    )
}


@pytest.fixture
def vanishing(project, configure):
    """The project on a node with two GPUs; its folder of results."""
    for name in ("fake_gpus", "vanishing"):
        shutil.copy(ROOT / "tests" / f"{name}.py", project)
    (project / "stand_ins").write_text("fake_gpus vanishing")
    study = {"n": [100, 200, 300], "p": [10], "variants": ["vanishing"], "cell_timeout_s": 3}

    def write(**keys):
        return configure(study | keys, device="cuda")

    return write


def statuses(root):
    paths = {n: records.record_path(root, "vanishing", 10, n) for n in (100, 200, 300)}
    return {n: records.read(path).status for n, path in paths.items() if path.exists()}


@pytest.mark.parametrize("how", SAYS)
def test_the_sweep_ends_with_one_line_and_goes_on_when_the_gpu_is_back(vanishing, project, command, how):
    root = vanishing()
    (project / "how").write_text(how)
    said = command("sweep", status=2)
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: the GPU does not answer any more: ")
    assert SAYS[how] in last
    assert "every finished measurement is on disk, and the same command goes on" in last
    assert "Traceback" not in said
    assert statuses(root) == {100: "ok"}
    if how != "words":
        assert re.fullmatch(BEFORE[how], command("sweep", status=2))  # before it begins
    for name in ("how", "gone"):  # it is back
        (project / name).unlink()
    said = command("sweep")
    assert statuses(root) == {100: "ok", 200: "ok", 300: "ok"}
    assert "n = 100 " not in said


def test_an_error_of_the_variant_is_recorded_and_the_sweep_goes_on(vanishing, project, command):
    root = vanishing()
    (project / "how").write_text("bug")
    command("sweep")
    assert statuses(root) == {100: "ok", 200: "error", 300: "ok"}
    found = records.read(records.record_path(root, "vanishing", 10, 100)).machine
    assert (found["wsl"], found["gpu"]["uuid"][:4]) == (False, "GPU-")


def test_more_gpus_than_there_are(vanishing, command):
    vanishing(devices=3)
    said = command("sweep", status=2)
    assert re.fullmatch(
        r"error: device: 'cuda' .* cannot measure: 3 GPUs are asked for, and PyTorch has 2 here\n", said
    )


@pytest.mark.parametrize("asked", ["check", "plan", "sweep"])
def test_wsl_is_said_and_the_card_is_the_limit(vanishing, project, command, asked):
    root = vanishing()
    note = "note: WSL2: the driver may move memory of the GPU into the host's"
    assert note not in command("check")
    (project / "wsl").touch()
    assert command(asked).count(note) == 1
    if asked == "check":
        from benchmarks import study

        card = {"memory_bytes": 16 * 2**30}
        with pytest.MonkeyPatch.context() as here:
            here.setattr(study.machine, "gpu", lambda: card)
            assert study.gpu_limit_gib("cuda", None) is None
            here.setattr(study.machine, "wsl", lambda: True)
            assert study.gpu_limit_gib("cuda", None) == 16
            assert study.gpu_limit_gib("cuda", 4) == 4
            assert study.gpu_limit_gib("cpu", None) is None
    if asked == "sweep":
        assert records.read(records.record_path(root, "vanishing", 10, 100)).limits["gpu_gib"] == 16
