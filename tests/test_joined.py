"""`mmdma fit` in several processes by the real torchrun: one result, and one end with one reason."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from embeddings import PLAIN_OPTIONS

from mmdma_core import MMDMA as Model
from mmdma_core import io, simulate
from mmdma_core.matching.command_line import main

pytestmark = pytest.mark.slow

TORCHRUN = Path(sys.executable).with_name("torchrun")
MMDMA = ("-m", "mmdma_core")
IMPATIENT = Path(__file__).with_name("impatient.py")
FIT = ("fit", "--quiet", "--n-starts", "1", "--random-state", "0", "--n-components", "2", *PLAIN_OPTIONS)
MINUTE = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    x, y, match = simulate("branch", 301, 20, p_y=15)
    for name, array in (("x", x.numpy()), ("y", y.numpy()), ("match", match)):
        io.write_array(array, folder / f"{name}.npy")
    return folder


def arguments(data, out, *more, y="y.npy", program=MMDMA):
    files = ("--x", data / "x.npy", "--y", data / y, "--match", data / "match.npy")
    return [*program, *FIT, *files, "--variant", "primal-fused", "--out", out, *more]


def begin(size, arguments):
    command = [TORCHRUN, "--nproc-per-node", str(size), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fit(size, arguments):
    """What `mmdma fit` prints, in so many processes; one is this one, which has imported it all."""
    if size == 1:
        with redirect_stdout(StringIO()) as printed:
            assert main(list(map(str, arguments[len(MMDMA) :]))) == 0
        return printed.getvalue()
    with begin(size, arguments) as process:
        said, complaint = process.communicate(timeout=2 * MINUTE)
    assert process.returncode == 0, complaint
    return said


def results(out):
    return (
        np.load(out / "embedding_x.npy"),
        np.load(out / "embedding_y.npy"),
        json.loads((out / "metrics.json").read_text()),
    )


def agree(out, other, to=1e-5, loss_to=1e-6):
    for found, right in zip(results(out)[:2], results(other)[:2], strict=True):
        assert np.linalg.norm(found - right) <= to * np.linalg.norm(right)
    assert results(out)[2]["fit"]["loss"] == pytest.approx(results(other)[2]["fit"]["loss"], rel=loss_to)


def test_two_ranks_write_what_one_process_writes(data, tmp_path):
    for size in (1, 2):
        said = fit(size, arguments(data, tmp_path / str(size), "--n-epochs", "50", "--center"))
        assert said == f"{tmp_path / str(size)}\n"
    agree(tmp_path / "2", tmp_path / "1")
    assert (tmp_path / "2" / "model.npz").exists()


def test_two_ranks_refine_as_one_process_does(data, tmp_path):
    """MMD2 is flat about its minimum: there rounding moves the map by per cents, its value and the match hardly."""
    refined = ("--n-epochs", "50", "--starts", "both", "--refine")
    for size in (1, 2):
        fit(size, arguments(data, tmp_path / str(size), *refined))
    agree(tmp_path / "2", tmp_path / "1", to=0.1, loss_to=0.1)
    one, two = (pd.read_csv(tmp_path / size / "starts.csv") for size in "12")
    pd.testing.assert_frame_equal(two[["from", "match", "chosen"]], one[["from", "match", "chosen"]])
    np.testing.assert_allclose(two["discrepancy"], one["discrepancy"], atol=0.01 / 301)
    for size in "12":
        assert results(tmp_path / size)[2]["values"]["foscttm"] < 0.001


def test_two_ranks_find_the_cells_that_a_view_lacks(tmp_path):
    x, y, _ = simulate("triangle", 400, 30)
    io.write_array(x.numpy(), tmp_path / "x.npy")
    io.write_array(y.numpy()[:300], tmp_path / "y.npy")
    axes = ("--starts", "symmetries", "--n-starts", "0", "--n-epochs", "0", "--scale", "--refine")
    for size in (1, 2):
        files = ["--x", tmp_path / "x.npy", "--y", tmp_path / "y.npy", "--out", tmp_path / str(size)]
        fit(size, [*MMDMA, *FIT, *axes, *files])
    (_, _, one), (_, _, two) = (results(tmp_path / size) for size in "12")
    assert one["fit"]["lacking"][0] > 70
    assert one["fit"]["lacking"][1] == 0
    assert two["fit"]["lacking"] == pytest.approx(one["fit"]["lacking"], abs=4)
    assert len(Model.load(tmp_path / "2" / "model.npz").lacking_x_) == 400


def test_a_checkpoint_goes_on_with_another_number_of_ranks(data, tmp_path):
    saved = "--checkpoint", tmp_path / "saved.npz", "--loss-every", "10"
    fit(2, arguments(data, tmp_path / "half", "--n-epochs", "20", *saved))
    fit(1, arguments(data, tmp_path / "more", "--n-epochs", "40", *saved))
    fit(3, arguments(data, tmp_path / "all", "--n-epochs", "60", *saved))
    fit(1, arguments(data, tmp_path / "alone", "--n-epochs", "60", "--loss-every", "10"))
    agree(tmp_path / "all", tmp_path / "alone")
    assert len((tmp_path / "all" / "loss.csv").read_text().splitlines()) == 8


def ended(process, since):
    """What a run that is to fail has said of errors, once it and all that it has started are gone."""
    started = [process, *process_children(process)]
    _, complaint = process.communicate(timeout=MINUTE)
    assert process.returncode != 0
    assert time.monotonic() - since < MINUTE
    psutil.wait_procs(started[1:], timeout=5)
    assert not [child for child in started[1:] if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    return re.findall(r"error: .*", complaint)


def process_children(process):
    return psutil.Process(process.pid).children(recursive=True)


def workers(process, size, out):
    """The ranks' processes, in order, once all are in their epochs: the watchers are their children."""
    until = time.monotonic() + MINUTE
    while time.monotonic() < until:
        found = [child for child in psutil.Process(process.pid).children() if "fit" in child.cmdline()]
        if len(found) == size and all(child.children() for child in found) and (out.parent / "saved.npz").exists():
            return sorted(found, key=lambda child: int(child.environ()["RANK"]))
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "error: rank 1 ended without a word: it was killed, or has crashed"),
        (signal.SIGSTOP, "error: rank 1 hangs: it has done nothing for 8 s while the others wait for it"),
    ],
)
def test_a_rank_that_dies_or_hangs_ends_all(data, tmp_path, number, said):
    out = tmp_path / "out"
    saved = "--checkpoint", tmp_path / "saved.npz", "--loss-every", "10"
    program = IMPATIENT, "HANGING_S=8"
    process = begin(3, arguments(data, out, "--n-epochs", "1000000", *saved, program=program))
    ranks = workers(process, 3, out)
    since = time.monotonic()
    ranks[1].send_signal(number)
    assert ended(process, since) == [said]


@pytest.mark.parametrize("beats", [0, 2])
def test_a_rank_that_torchrun_has_ended_is_no_fault_however_late_its_watcher_looks(data, tmp_path, beats):
    """By then torchrun is gone, and the store with it, which the watcher may never have reached."""
    out = tmp_path / "out"
    saved = "--checkpoint", tmp_path / "saved.npz", "--loss-every", "10"
    process = begin(3, arguments(data, out, "--n-epochs", "1000000", *saved))
    ranks = workers(process, 3, out)
    (late,) = ranks[2].children()
    time.sleep(beats)
    late.suspend()
    ranks[1].kill()
    process.wait(MINUTE)
    late.resume()
    _, complaint = process.communicate(timeout=MINUTE)
    assert re.findall(r"error: .*", complaint) == ["error: rank 1 ended without a word: it was killed, or has crashed"]


def test_a_rank_with_bad_rows_ends_all(data, tmp_path):
    y = np.load(data / "y.npy")
    y[250, 3] = np.nan
    np.save(tmp_path / "y.npy", y)
    process = begin(2, arguments(data, tmp_path / "out", y=tmp_path / "y.npy"))
    lines = ended(process, time.monotonic())
    assert lines == [f"error: rank 1 of 2: {tmp_path / 'y.npy'} must be finite in float32, row 251, column 4 holds nan"]


def test_a_rank_that_the_others_do_not_reach_ends(data, tmp_path):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, *map(str, arguments(data, tmp_path / "out", program=(IMPATIENT, "PATIENCE_S=3")))],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=MINUTE,
    )
    assert time.monotonic() - begun < MINUTE
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert lines == [
        "error: rank 0 of 2: cannot reach the others at 127.0.0.1:29731 within 3 s: not there is rank 1"
    ], done.stderr


def test_a_rank_may_work_on_in_silence_when_the_others_have_left(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(
        "import time\n"
        "from mmdma_core.matching import joined\n"
        "joined.HANGING_S = 2.5\n"
        "with joined.joined(use_gpu=False) as ranks:\n"
        "    time.sleep(1.5 if ranks.rank else 6)\n"
        "    print(f'done {ranks.rank}', flush=True)\n"
    )
    done = subprocess.run([TORCHRUN, "--nproc-per-node", "2", script], capture_output=True, text=True, timeout=MINUTE)
    assert (done.returncode, sorted(done.stdout.split("\n"))) == (0, ["", "done 0", "done 1"]), done.stderr
