"""Commands in forks of one process that has imported them, which saves each command two seconds of imports, or four.

    python tests/commands.py [VARIANT ...]

Reads requests, a JSON object {program, folder, arguments, output} a line, runs each in a process of its own in that
folder, with both streams in the file `output`, and answers with its exit status. The program is `benchmarks`, `mmdma`,
`snakemake`, or `python`, of a script. The modules that a file `stand_ins` in the folder names are imported before, with
stand-ins for a driver and its GPUs. Like a sweep, which forks its cells, the one process has imported PyTorch, and what
the variants named require, and never computed with it.
"""

import importlib
import json
import multiprocessing
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks.analysis import table  # noqa: F401
from benchmarks.measuring import guard, others

MODULES = {
    "benchmarks": "benchmarks.__main__",
    "mmdma": "mmdma_core.matching.command_line",
    "snakemake": "snakemake.cli",
}


def run(program: str, folder: str, arguments: list[str], output: str) -> None:
    os.chdir(folder)
    sys.path.insert(0, folder)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    names = Path("stand_ins")
    for module in names.read_text().split() if names.exists() else ():
        importlib.import_module(module)
    if program == "snakemake":  # whose jobs are of the folder's project
        del os.environ["PYTHONPATH"]
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if program == "python":
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        sys.exit(importlib.import_module(MODULES[program]).main(arguments))


if __name__ == "__main__":
    others.AGAIN = 1.0  # the other tests are no reason to measure a cell once more
    with redirect_stdout(sys.stderr):  # KeOps says there what it finds
        guard.preload(sys.argv[1:], "cpu")
    for line in sys.stdin:
        asked = json.loads(line)
        importlib.import_module(MODULES.get(asked["program"], "mmdma_core.matching.estimator"))  # once for all forks
        child = multiprocessing.get_context("fork").Process(target=run, kwargs=asked)
        child.start()
        child.join()
        print(child.exitcode, flush=True)
