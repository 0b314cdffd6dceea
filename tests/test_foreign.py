"""Files that lie among those of the harness and are none of its own are named once, and nothing reads them."""

import json
import os
import shutil
import time

import pytest
from test_records import load, record

from benchmarks import plan
from benchmarks.analysis import compare, table
from benchmarks.figures import scaling
from benchmarks.measuring import records
from benchmarks.report.evidence import gather

FOREIGN = [
    "primal/p100/n1000.sync-conflict-20261130-101010-ABCDEFG.json",
    "primal/p100/n1000 (conflicted copy).json",
    "primal/p100/n1000 copy.json",
    "primal/p100/n1000.old.json",
    "primal/p100/n1000.json~",
    "primal/p100/.n1000.json.swp",
    "primal/p100/N1000.JSON",
    "primal/p100/n01000.json",
    "primal/p100/n2000.json",  # the record of another cell
    "primal/p100 copy/n1000.json",
    "primal/P100/n1000.json",
    "primal/p10/n1000.json",
    "primal (1)/p100/n1000.json",
    "Primal/p100/n1000.json",
    "backup/primal/p100/n1000.json",
    "n1000.json",
]


def put(root, name="primal/p100/n1000.json", **fields):
    path = root / "records" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(record(machine={"cpu": "A CPU", "cpu_threads": 2}, **fields), path)
    return path


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_beside_the_records_is_named_and_not_read(tmp_path, name, capsys):
    a, study = tmp_path / "a", load(tmp_path)
    put(a)
    put(study.root)
    copy = put(study.root, name, epoch_s=[9.0, 9.0])
    frame = table.write_summary(study.root)
    assert frame[["n", "p", "median_epoch_s"]].values.tolist() == [[1000, 100, 0.1]]
    found = compare.compare(a, study.root)
    assert list(found.found["verdict"]) == ["same"]
    evidence = gather(study)
    assert len(evidence.table) == 1
    for said in (capsys.readouterr().err, "".join(found.left_out), "".join(evidence.notes)):
        assert said.count(f"1 file ({copy}) that the harness has not written") == 1
    assert str(copy) in "".join(table.left_out(study))
    assert f"{study.root}: 1 records: 1 ok" in list(table.describe_contents(study))


def test_many_files_are_one_line(tmp_path, capsys):
    put(tmp_path)
    for name in FOREIGN:
        put(tmp_path, name)
    assert len(records.read_all(tmp_path)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"left out: {len(FOREIGN)} files (" in said
    assert f"and {len(FOREIGN) - 3} more)" in said


@pytest.mark.parametrize("name", ["n1000.json.bak", "n1000 copy.json", ".DS_Store"])
def test_a_file_of_another_name_is_not_opened(tmp_path, name):
    put(tmp_path)
    path = tmp_path / "records" / "primal" / "p100" / name
    path.write_text("{")
    held = records.read_folder(tmp_path)
    assert (len(held.records), held.unreadable, held.foreign) == (1, [], [path])


def test_a_copy_of_a_folder_of_several_devices_is_not_read(tmp_path):
    for name, devices in (("", 1), ("devices2", 2), ("devices2 copy", 3), ("devices2.sync-conflict-1", 4)):
        put(tmp_path / name, devices=devices)
    assert list(scaling.read_scaling(tmp_path)["devices"]) == [1, 2]


def test_what_runs_is_told_by_files_of_the_harness_alone(tmp_path):
    study = load(tmp_path)
    with plan.told(study, "primal", 10, 100):
        (path,) = (study.root / "running").iterdir()
        copies = [f"{path.stem}.sync-conflict-1-A.json", f"{path.stem} copy.json", path.stem, "notes.txt", "x-1.json"]
        for name in copies:
            shutil.copy(path, path.with_name(name))
        path.with_name("list-7.json").write_text("[]")
        path.with_name("node-8.json").write_text(json.dumps({"node": "node"}))
        dead = path.with_name("dead-9.json")
        dead.write_text(path.read_text().replace(json.loads(path.read_text())["node"], "dead"))
        old = time.time() - study.cell_timeout_s - 100
        os.utime(dead, (old, old))
        found, others = plan.running(study)
    assert [(cell["variant"], cell["p"], cell["n"]) for cell in found] == [("primal", 10, 100)]
    assert {other.name for other in others} == {*copies, "list-7.json", "node-8.json", "dead-9.json"}


def test_check_says_what_lies_in_the_folder_in_few_lines(tmp_path, capsys):
    study = load(tmp_path)
    put(study.root)
    put(study.root, "dual/p10/n1000.json", variant="dual", p=10, status="oom")
    put(study.root, "dual/p10/n2000.json", variant="dual", n=2000, p=10)
    other = put(study.root, "dual/p10/n3000.json", variant="dual", n=3000, p=10)
    other.write_text(other.read_text().replace("A CPU", "Another"))
    broken = put(study.root, "dual/p10/n4000.json")
    broken.write_text("{")
    put(study.root, "dual/p10/n1000.old.json")
    put(study.root / "scale" / "start0", "primal-in-batches/p100/n1000.json", variant="primal in batches")
    for name in ("figures/.17.part.memory.svg", "records/dual/p10/n9.unreadable"):
        (study.root / name).parent.mkdir(exist_ok=True)
        (study.root / name).touch()
    said = list(table.describe_contents(study))
    assert said[0] == f"{study.root}: 4 records: 3 ok, 1 oom"
    assert said[1] == "  1 measurement of Another: the folder holds those of several machines, A CPU has the most"
    assert said[2].startswith(f"  1 more that cannot be read, such as {broken}: ")
    assert said[3].startswith("  left out: 1 file (")
    assert said[4] == f"{study.root / 'scale'}: 1 records: 1 ok"
    assert said[5].startswith("  half written when a process ended, or set aside: 2 files (")
    assert len(said) == 6
