"""What a Triton kernel is on a GPU that is not there: compiled, disassembled, its loops counted.

`launched(jobs)` runs the project's own launches in a process where Triton is no interpreter and its driver says that it
has the GPU of a compute capability. Nothing is loaded or run: each launch is compiled, with the types, alignments and
sizes that it would have on that GPU.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

KINDS = {  # of instructions, by how their names begin; the first that fits
    "exp2": "MUFU.EX2",
    "tensor cores": r"HGMMA|HMMA|UTC\w*MMA",
    "spills": "LDL|STL",
    "float64": r"D(ADD|MUL|FMA|SETP|MNMX)|(F2F|I2F|F2I)\.([\w.]+\.)?F64",
    "two at once": "F(ADD|MUL|FMA)2",
    "float32": r"FADD|FMUL|FFMA|FMNMX|FSEL|FSETP",
    "conversions": "F2F|HADD2|PRMT",
    "shared memory": "LDS|STS|LDTM|STTM|SHFL|UTMA",
    "global memory": "LDG|STG|LDGSTS|ATOM|RED",
    "waiting": "WARPSYNC|BAR|DEPBAR|LDGDEPBAR|FENCE|WARPGROUP|MEMBAR|SYNCS|NOP",
}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)(.*);")  # its name, and the rest


@dataclass
class Loop:
    """The smallest loop with an exp2: the names of its instructions in order, and how many lie in loops inside."""

    instructions: list[str]
    inside: int

    @property
    def kinds(self):
        """How many instructions of each kind; what is in no kind is 'other'."""
        return _kinds(self.instructions)

    def per_pair(self, turns):
        """Instructions for a pair: a pair is one exp2, and a loop inside, over coordinates, has so many turns."""
        return (len(self.instructions) + (turns - 1) * self.inside) / self.kinds["exp2"]


@dataclass
class Kernel:
    """A compiled launch, and how many of its instructions are of each kind, as they stand.

    Registers and stack (bytes) are those of a thread, shared memory (bytes) that of a program.
    """

    name: str
    capability: int
    options: dict[str, int]
    registers: int
    stack: int
    shared: int
    kinds: dict[str, int]
    loops: list[Loop]  # over pairs


def _kinds(instructions):
    return Counter(next((k for k, p in KINDS.items() if re.match(p, i)), "other") for i in instructions)


def missing():
    """Why nothing can be counted here, None where it can."""
    try:
        import triton
    except ImportError:
        return "needs Triton"
    absent = [tool for tool in ("nvdisasm", "cuobjdump") if not _tool(triton, tool).exists()]
    return f"this Triton brings no {' and no '.join(absent)}" if absent else None


def launched(jobs):
    """The kernels of each job: (name in LAUNCHES, compute capability, d, what changes the tile)."""
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(jobs)],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [[Kernel(**k | {"loops": [Loop(*loop) for loop in k["loops"]]}) for k in kernels] for kernels in found]


def loops_over_pairs(sass):
    """(instructions, how many of them lie in loops inside) of the smallest loops with an exp2, from nvdisasm.

    A loop that adds in float64 is one around a loop over pairs, of which it has taken only a part out of line.
    """
    names, labels, loops = [], {}, set()
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(names)
        elif instruction := INSTRUCTION.search(line):
            target = re.search(r"`\((\.L_\w+)\)", instruction[2])
            names.append(instruction[1])
            if instruction[1].startswith("BRA") and target and target[1] in labels:
                loops.add(range(labels[target[1]], len(names)))
    over = [loop for loop in loops if any(names[i].startswith(KINDS["exp2"]) for i in loop)]
    found = []
    for loop in sorted(over, key=lambda loop: loop.start):
        smaller = [other for other in loops if other != loop and loop.start <= other.start and other.stop <= loop.stop]
        if not any(other in over for other in smaller) and not any(names[i] == "DADD" for i in loop):
            inside = {place for other in smaller for place in other}
            found.append(([names[i] for i in loop], len(inside)))
    return found


def _tool(triton, name):
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _compiled(capability, launch):
    """What `launch()` would have run on a GPU of this capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,  # a launch's kernels are kept by device
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)
    kernels, run = [], JITFunction.run
    JITFunction.run = lambda self, *args, **options: kernels.append(run(self, *args, **options | {"warmup": True}))
    try:
        launch()
    finally:
        JITFunction.run = run
    return kernels


def _counted(kernel, capability):
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        sass, used = (
            subprocess.run([_tool(triton, tool), option, cubin.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    registers, stack = (int(re.search(rf"{word}:(\d+)", used)[1]) for word in ("REG", "STACK"))
    return {
        "name": kernel.metadata.name,
        "capability": capability,
        "options": {"num_warps": kernel.metadata.num_warps, "num_stages": kernel.metadata.num_stages},
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "kinds": _kinds(instruction[1] for instruction in INSTRUCTION.finditer(sass)),
        "loops": loops_over_pairs(sass),
    }


def _ordered(d, options):
    """A pass over the pairs of two clouds of 1,024 points; options change the tile."""
    from mmdma_core.fused import pairs_cuda

    tile = pairs_cuda.candidates(d)[0]._replace(**options)
    points = [torch.randn(1024, d) for _ in "xy"]
    pairs_cuda.FusedMMD(1024, 1024, d, 1.0, True, tile)(*points, *map(torch.empty_like, points))


def _rate(d, options):
    """One of the chains that measure a rate; a tensor on "cuda" is one on the CPU."""
    from benchmarks import roofline

    with patch.object(roofline.torch, "empty", lambda *size, device: torch.zeros(*size)):
        roofline.operations(options["of"])


LAUNCHES = {"ordered": _ordered, "rate": _rate}


def _main(jobs):
    found = []
    for name, capability, d, options in jobs:
        kernels = _compiled(capability, partial(LAUNCHES[name], d, options))
        found.append([_counted(kernel, capability) for kernel in kernels])
    print(json.dumps(found))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
