"""Planted studies for the tests of the report."""

from conftest import own_config
from test_records import record

from benchmarks import figures, report, study
from benchmarks.analysis import table
from benchmarks.measuring import records

MACHINE = {"gpu": None, "cpu": "a CPU", "cpu_threads": 2, "memory_bytes": 2**34, "commit": "abc"}
LOSSES = {"total": 1.5, "mmd": 0.5, "pen_x": 1.0, "pen_y": 2.0, "dis_x": 3.0, "dis_y": 4.0}
RUNTIMES = {"primal": 3.0, "dual": 2.0, "primal-fused": 0.5}
PIXEL = bytes.fromhex("89504e470d0a1a0a")  # a PNG's first bytes: what follows is not looked at
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="600pt" height="200pt" viewBox="0 0 600 200"></svg>'


def planted(variant, n, p, runtime=1.0, status="ok", **fields):
    """A record with a machine and losses, whose runtime is what it is told."""
    fields.setdefault("machine", MACHINE)
    if status == "ok":
        fields.setdefault("epoch_s", [runtime / 500] * 8)
        early = fields.pop("early", LOSSES)
        fields.setdefault("losses", {"early": {"epoch": 3, **early}, "final": {"epoch": 9, **early}})
    made = record(variant, n, p, status, limits={"host_gib": 0.5, "gpu_gib": None}, **fields)
    made.peak_host_bytes = 2**28 if status == "ok" else None
    return made


def study_of(root, made=(), n=(100, 200), p=(10, 20), variants=("primal", "dual", "primal-fused")):
    """A study whose folder `root` holds these records, their table, and pictures in the place of figures."""
    config = own_config()
    asked = {"n": list(n), "p": list(p), "variants": list(variants), "epochs": 500}
    config["studies"] = {"test": asked | {"cell_budget_s": 1, "cell_timeout_s": 9, "sweep_budget_s": 99}}
    config |= {"study": "test", "results": str(root.parent), "machine": root.name, "device": "cpu"}
    root.mkdir(exist_ok=True)
    for one in made:
        records.write(one, records.record_path(root, one.variant, one.p, one.n))
    if made:
        table.write_summary(root)
    (root / "figures").mkdir(exist_ok=True)
    for name in figures.NAMES:
        (root / "figures" / f"{name}.png").write_bytes(PIXEL)
        (root / "figures" / f"{name}.svg").write_text(SVG)
    return study.load(config)


def grid(runtimes, n=(100, 200), p=(10, 20)):
    """Records of every variant in `runtimes` at every n and p; a runtime of None ran out of memory."""
    return [
        planted(variant, one_n, one_p, runtime) if runtime else planted(variant, one_n, one_p, status="oom")
        for variant, runtime in runtimes.items()
        for one_p in p
        for one_n in n
    ]


def written(study):
    """The page of a study, as HTML."""
    return report.write(study).read_text()
