"""What a reader of a table leaves out, and that it says so."""

import dataclasses

import pytest
from test_records import load, record

from benchmarks import figures
from benchmarks.analysis import table
from benchmarks.measuring import records


def of(machine, variant="primal", n=100, p=10, device="cpu"):
    made = record(variant, n, p, machine={"cpu": machine, "gpu": {"name": machine}})
    made.device = device
    return made


@pytest.fixture
def smoke(tmp_path):
    return load(tmp_path)


def test_a_sound_table_passes_whole(smoke):
    frame = table.to_frame([of("EPYC", n=n) for n in (100, 200)])
    kept, said = table.of_study(frame, smoke)
    assert len(kept) == 2
    assert said == []


def test_the_machine_with_the_most_cells_stays():
    frame = table.to_frame([of("EPYC"), of("T4", n=200, device="cuda"), of("T4", "dual", device="cuda")])
    kept, said = table.one_machine(frame)
    assert set(kept["gpu"]) == {"T4"}
    assert said == ["1 measurement of EPYC: the folder holds those of several machines, T4 has the most"]
    nameless = table.to_frame([record(), record(n=2000)])
    assert table.one_machine(nameless)[1] == []


def test_what_the_study_does_not_ask_for_is_named(tmp_path):
    config_study = load(tmp_path)
    asked = {"variants": tuple(name for name in config_study.variants if name != "dual")}
    import dataclasses

    narrower = dataclasses.replace(config_study, **asked)
    frame = table.to_frame([of("E"), of("E", "dual"), of("E", "gone"), of("E", n=300), of("E", p=7)])
    kept, said = table.of_study(frame, narrower)
    assert kept[["variant", "n", "p"]].values.tolist() == [["primal", 100, 10]]
    assert sorted(said) == [
        "1 measurement at n = 300, not in the grid of the study 'smoke'",
        "1 measurement at p = 7, not in the grid of the study 'smoke'",
        "1 measurement of dual, which the study 'smoke' does not ask for",
        "1 measurement of gone, which is not registered: it no longer exists, or config.yaml does not list its plugin",
    ]


def test_table_and_figures_say_what_they_leave_out(smoke, capsys, monkeypatch):
    from benchmarks.figures import style

    for made in (of("EPYC"), of("EPYC", n=200), of("EPYC", "gone"), of("Xeon", "dual")):
        records.write(made, records.record_path(smoke.root, made.variant, made.p, made.n))
    old = records.record_path(smoke.root, "primal", 10, 300)
    records.write_atomically(old, '{"schema": 0}')
    table.write_summary(smoke.root)
    assert "schema version 0, this program reads 1" in capsys.readouterr().err
    drawn = []
    monkeypatch.setattr(style, "save", lambda figure, folder, name: drawn.append(name))
    figures.draw_all(smoke)
    said = capsys.readouterr().err
    assert "left out of the figures: 1 measurement of Xeon: the folder holds those of several machines" in said
    assert "left out of the figures: 1 measurement of gone, which is not registered" in said
    assert drawn == list(figures.NAMES)


def test_several_devices_are_drawn_where_they_were_measured_alone(smoke, monkeypatch):
    from benchmarks.figures import style

    one = of("EPYC")
    records.write(one, records.record_path(smoke.root, one.variant, one.p, one.n))
    table.write_summary(smoke.root)
    old = smoke.root / "figures" / "scaling.svg"
    records.write_atomically(old, "of records that are gone")
    drawn = []
    monkeypatch.setattr(style, "save", lambda figure, folder, name: drawn.append(name))
    assert figures.draw_all(smoke) == figures.paths(smoke)
    assert not old.exists()
    two = dataclasses.replace(one, devices=2)
    records.write(two, records.record_path(smoke.root / "devices2", two.variant, two.p, two.n))
    assert set(figures.draw_all(smoke)) - set(figures.paths(smoke)) == {old, old.with_suffix(".png")}
    assert drawn == [*figures.NAMES, *figures.NAMES, "scaling"]


def test_a_summary_of_another_version_is_refused_by_name(smoke):
    records.write(of("EPYC"), records.record_path(smoke.root, "primal", 10, 100))
    frame = table.write_summary(smoke.root)
    frame.drop(columns="median_low_s").to_parquet(smoke.root / "summary.parquet")
    with pytest.raises(ValueError, match="lacks median_low_s: run `python -m benchmarks table` again"):
        table.read_summary(smoke.root)


def test_a_folder_of_strangers_has_no_figure(smoke):
    records.write(of("EPYC", "gone"), records.record_path(smoke.root, "gone", 10, 100))
    table.write_summary(smoke.root)
    with pytest.raises(ValueError, match="holds no record of the study 'smoke'"):
        figures.draw_all(smoke)
