"""Commands whose streams are closed, full or without a reader: one line at most, and a status."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import ROOT

from mmdma_core.files import stdio
from mmdma_core.matching.command_line import main


@pytest.fixture
def stream(monkeypatch):
    """A function that puts another stream in the place of stdout or stderr."""
    opened = []

    def put(name, kind):
        if kind == "no reader":
            reader, writer = os.pipe()
            os.close(reader)
            put_there = os.fdopen(writer, "w")
        else:
            put_there = None if kind == "closed" else open(kind, "w", encoding="ascii")  # noqa: SIM115
        opened.append(put_there)
        monkeypatch.setattr(sys, name, put_there)

    yield put
    for file in filter(None, opened):
        file.close()


@pytest.mark.parametrize("length", [10, 100_000])  # within the buffer of the stream, and beyond
@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("closed", 1, "error: standard output: Bad file descriptor\n"),
        ("/dev/full", 1, "error: standard output: No space left on device\n"),
        ("no reader", 141, ""),
    ],
)
def test_stdout_that_cannot_be_written(stream, capsys, kind, status, said, length):
    stream("stdout", kind)
    assert stdio.run(lambda: print("x" * length)) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("kind", ["closed", "/dev/full", "no reader"])
def test_what_stderr_cannot_take_is_dropped(stream, kind):
    stream("stderr", kind)
    done = []

    def command():
        for _ in range(3):
            print("progress", file=sys.stderr, flush=True)
        done.append(True)
        return 7

    assert stdio.run(command) == 7
    assert done == [True]


def test_letters_that_the_encoding_lacks_are_escaped(stream, tmp_path):
    stream("stdout", tmp_path / "printed")
    assert stdio.run(lambda: print("MMD² \udce9")) == 0
    assert (tmp_path / "printed").read_text() == "MMD\\xb2 \\udce9\n"


def test_a_warning_is_one_line_without_its_place(capsys):
    stdio.run(lambda: print(warnings.formatwarning(UserWarning("one\n  line"), UserWarning, "file.py", 123), end=""))
    assert capsys.readouterr().out == "warning: one line\n"
    assert "file.py" in warnings.formatwarning(UserWarning("one"), UserWarning, "file.py", 123)


def shell(folder, line, **more):
    """Status and stderr of a line of the shell in which $MMDMA and $BENCHMARKS are commands."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MMDMA": f"{sys.executable} -m mmdma_core",
        "BENCHMARKS": f"{sys.executable} -m benchmarks",
        **more,
    }
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("$MMDMA simulate branch --n 9 --p 2 --out s >&-", 1, "error: standard output: Bad file descriptor\n"),
        ("$MMDMA simulate branch --n 9 --p 2 --out s | true", 141, ""),
        ("$MMDMA simulate branch --n 9 --p 2 --out s <&- 2>&- >/dev/null", 0, ""),
        ("PYTHONIOENCODING=ascii $MMDMA simulate branch --n 9 --p 2 --out é", 0, ""),
        ("$BENCHMARKS check --config $CONFIG >&-", 1, "error: standard output: Bad file descriptor\n"),
        ("$BENCHMARKS plan --config $CONFIG >/dev/full", 1, "error: standard output: No space left on dev"),
        ("$BENCHMARKS plan --config $CONFIG | true", 141, ""),
        ("$BENCHMARKS --help >&-", 0, ""),
        ("$BENCHMARKS --help >/dev/full", 0, ""),
    ],
)
def test_commands_with_streams_that_are_closed(tmp_path, config_file, line, status, said):
    found, error = shell(tmp_path, line, CONFIG=str(config_file))
    assert (found, error[: len(said)], error.count("\n")) == (status, said, bool(said))


@pytest.mark.slow
def test_a_fit_whose_progress_nobody_reads_is_written(tmp_path):
    for name, p in (("x", 4), ("y", 3)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(p).normal(size=(20, p)))
    fit = "$MMDMA fit --x x.npy --y y.npy --n-epochs 20 --n-starts 2 --variant primal --random-state 0 --out out"
    assert shell(tmp_path, f"{fit} 2>&1 >/dev/null | true")[0] == 0
    assert (tmp_path / "out" / "model.npz").exists()
    found, error = shell(tmp_path, f"{fit} --quiet --overwrite --n-components 5 >/dev/null")
    assert found == 0
    assert [line for line in error.splitlines() if "warning" in line.lower()] == [
        "warning: n_components = 5 exceeds the shape (20, 4) of x: its penalty cannot vanish",
        "warning: n_components = 5 exceeds the shape (20, 3) of y: its penalty cannot vanish",
    ]


def test_bad_input_keeps_its_status(tmp_path, stream, capsys):
    stream("stdout", "closed")
    assert main(["evaluate", "--x", str(tmp_path / "none.npy"), "--y", str(tmp_path / "none.npy")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
