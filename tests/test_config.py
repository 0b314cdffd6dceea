"""A typo in a key or a value is refused with its name and the allowed ones, before anything runs."""

import copy
import dataclasses
import shlex
import subprocess

import numpy as np
import pytest
import yaml
from conftest import ROOT, own_config

import mmdma_core
from benchmarks import __main__ as commands
from benchmarks import config as configuration
from benchmarks import study
from benchmarks.config import ConfigError
from benchmarks.experiments import gpu_check
from benchmarks.experiments.gpu_check import FULL
from mmdma_core import Settings

CONFIG = own_config()


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *parents, key = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("studdy", "smoke", "unknown key 'studdy'; did you mean 'study'"),
        ("studies.laptop.epcohs", 5, "studies.laptop: unknown key 'epcohs'; did you mean 'epochs'"),
        ("settings.sigmas", 5, "settings: unknown key 'sigmas'; did you mean 'sigma'"),
        ("study", "laptp", "unknown study 'laptp'; did you mean 'laptop'"),
        ("device", "cudda", "device: 'cudda' is not allowed; did you mean 'cuda'"),
        ("device", "cuda:1", "allowed: auto, cpu, cuda; CUDA_VISIBLE_DEVICES says which GPU"),
        ("device", "mps", "device: 'mps' is not allowed; allowed: auto, cpu, cuda"),
        ("device", 1, "device: 1 is not allowed"),
        ("device", None, "device: None is not allowed"),
        ("cpu_threads", 0, "cpu_threads: 0 is not allowed; allowed: 'auto' or an integer"),
        ("studies.laptop.variants", ["primal", "duall"], "unknown variant 'duall'; did you mean 'dual'"),
        ("studies.laptop.n", [2], "studies.laptop.n.0: 2 is not allowed; input should be greater than or equal to 4"),
        ("studies.laptop.n", [], "studies.laptop.n"),
        ("studies.laptop.cell_budget_s", -1, "studies.laptop.cell_budget_s: -1"),
        ("gpu_memory_gib", "16", "gpu_memory_gib: '16' is not allowed; input should be a valid number"),
        ("machine", "../elsewhere", "machine: '../elsewhere' is not allowed; allowed: a name of"),
        ("plugins", ["no_such_module"], "plugins: 'no_such_module' cannot be imported"),
        ("settings", {"init": 5}, "settings: init must start with one of uniform"),
        ("settings", {"init": [[1]]}, "settings: init must start with one of uniform"),
        ("settings", {"sigma": 0}, "settings: sigma must be a positive number, got 0"),
        ("settings", None, "settings: a mapping of keys to values is expected, got None"),
        ("studies.laptop", {"n": [9], "p": [9]}, "studies.laptop: the key 'variants' is missing"),
        ("studies.laptop.p", [9, 9], "studies.laptop.p: [9, 9] has an entry twice"),
        ("studies.laptop.further", [{"n": [9.5], "p": [9], "variants": ["dual"]}], "studies.laptop.further.0.n.0: 9.5"),
        ("scale.settings", {"sigma": 0}, "scale.settings: sigma must be a positive number, got 0"),
        ("citeseq.density", 1, "citeseq.density: 1 is not allowed; input should be less than 1"),
        ("stop_after_failure", 1, "stop_after_failure: 1 is not allowed; input should be a valid boolean"),
    ],
)
def test_typos_are_named(path, value, message):
    config = changed(path, value) | {"device": "cpu"} if path != "device" else changed(path, value)
    if path.startswith("studies.laptop"):
        config["study"] = "laptop"
    with pytest.raises(ConfigError) as error:
        study.load(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_hyper_parameter_may_be_set():
    changed = Settings(8, 2.0, 0.1, 0.2, 0.3, False, ("normal", 0.0, 1.0), True, 99)
    held = dataclasses.asdict(changed) | {"init": [*changed.init]}
    assert study.load(CONFIG | {"settings": held, "device": "cpu"}).settings == changed


def test_a_whole_number_may_have_an_exponent():
    grid = CONFIG["studies"]["smoke"] | {"n": (1.0e3, np.int64(2000)), "p": np.array([10, 20])}
    loaded = study.load(CONFIG | {"study": "smoke", "studies": {"smoke": grid}, "device": "cpu"})
    assert repr((loaded.n, loaded.p)) == "((1000, 2000), (10, 20))"


def test_the_command_line_says_it_in_one_line(command, project):
    for arguments, words in (
        (("plan", "--set", "studdy=smoke"), "error: config: unknown key 'studdy'"),
        (("plan", "--set", "study"), "error: --set study: KEY=VALUE is expected"),
        (("plan", "--set", "settings={sigma: 2"), "'{sigma: 2' is not YAML"),
        (("plan", "--config", "none.yaml"), "error: none.yaml: No such file"),
        (("sweep", "--set", "device=cpu", "--variant", "duall"), "error: unknown variant 'duall'; did you mean 'dual'"),
        (("sweep", "--set", "device=cpu", "--n", "1"), "error: --p must be at least 1 and --n at least 4"),
        (("figures", "--set", "device=cpu"), "run `python -m benchmarks table` first"),
        (("table", "--set", "device=cpu"), "holds no readable record: run a sweep first"),
    ):
        output = command(*arguments, status=2)
        assert words in output
        assert output.count("\n") == 1
    assert not list((project / "results").glob("*/records"))


@pytest.mark.parametrize("name", CONFIG["studies"])
def test_every_study_of_config_yaml_loads(name):
    loaded = study.load(CONFIG | {"study": name, "device": "cpu"})
    assert set(loaded.variants) >= {"primal", "primal-keops", "dual", "dual-keops"}


def test_the_paper_study_is_the_published_grid():
    paper = study.load(CONFIG | {"study": "paper", "device": "cpu"})
    assert (len(paper.n), len(paper.p), paper.epochs) == (26, 12, 500)
    assert (paper.n[0], paper.n[-1], paper.p[0], paper.p[-1]) == (1000, 1_000_000, 10, 10_000)


def test_a_pattern_takes_variants_out_again():
    survey = study.load(CONFIG | {"study": "survey", "device": "cpu"})
    out = ("published", "original", "linear-time", "dual-fourier")
    assert set(survey.variants) == {name for name in mmdma_core.variants() if not name.startswith(out)}
    assert len(list(survey.sweeps())) * survey.sweep_budget_s < 600
    for names, words in ((["all", "!nothing-*"], "no variant matches 'nothing-\\*'"), (["dual", "!d*"], "no variant")):
        changed = CONFIG | {"study": "survey", "studies": {"survey": CONFIG["studies"]["survey"] | {"variants": names}}}
        with pytest.raises(configuration.ConfigError, match=words):
            study.load(changed)


def test_auto_is_the_laptop_study_on_a_cpu():
    assert study.load(CONFIG | {"device": "cpu"}).name == "laptop"


def test_overrides_travel_from_snakemake_to_our_commands(config_file):
    config = CONFIG | {"study": "smoke", "gpu_memory_gib": 16, "machine": "it's"}
    options = configuration.overrides(config, config_file)
    import shlex

    words = shlex.split(options)
    assert words[::2] == ["--set"] * 3
    assert configuration.read(config_file, words[1::2]) == config


def test_what_make_gpu_would_run_is_understood():
    """It needs a GPU; here its options are read, and the cells that its steps name are in their studies."""
    said = subprocess.run(["make", "-n", "gpu"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in said.replace("\\\n", "").splitlines() if "python -m benchmarks" in line]
    options = commands._parser().parse_args(shlex.split(line)[4:])  # after PATH=... python -m benchmarks
    assert (options.run, options.device, options.small) == (commands._gpu_check, "cuda", False)
    assert len(gpu_check.STEPS) >= 5
    studies = configuration.read(options.config, options.set)["studies"]
    assert FULL.overview in studies
    for variants, ns in FULL.rows:
        for key, asked in (("n", ns), ("p", FULL.p), ("variants", variants)):
            assert set(asked) <= set(studies["table"][key])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study: a\nseed: 4\nstudy: b\n", ", line 3, column 1: the key 'study' stands twice, first in line 1"),
        ("studies:\n  a: {n: [1], p: [2], n: [3]}\n", ", line 2, column 23: the key 'n' stands twice, first in line 2"),
        ("a: [{b: {c: 1,\n  'c': 2}}]\n", ", line 2, column 3: the key 'c' stands twice, first in line 1"),
        ("1: 2\n0x1: 3\n", ", line 2, column 1: the key 1 stands twice, first in line 1"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x\n", ", line 4, column 3: the key '<<' stands twice, first in line 3"),
        ("study: a\n\tseed: 4\n", ", line 2, column 1: "),
        ("study:\n\t a\n", "indent with blanks"),
        ("study: !mine a\n", ", line 1, column 8: could not determine a constructor for the tag '!mine'"),
        ("study: !!python/object/apply:os.getcwd []\n", ", line 1, column 8: could not determine a constructor"),
        ("a: 1\nseed: 2020-13-45\n", ", line 2, column 7: '2020-13-45' is no timestamp"),
        ("a: !!int x\n", ", line 1, column 4: 'x' is no int"),
        ("a: !!bool x\n", ", line 1, column 4: 'x' is no bool"),
        ("study: *none\n", ", line 1, column 8: found undefined alias 'none'"),
        ("study: a\n---\nstudy: b\n", ", line 2, column 1: "),
        ("study: 'a\n", ", line 2, column 1: while scanning a quoted scalar found unexpected end of stream"),
        ("[" * 3000, ": it is nested too deeply"),
        ("", ": a mapping of keys to values is expected, it holds nothing"),
        ("# a comment\n", ": a mapping of keys to values is expected, it holds nothing"),
        ("- study\n", ": a mapping of keys to values is expected, it holds a list"),
        ("a\x0bb: 1\n", ", line 1: the character U+000B is not allowed"),
        ("# für alle\nstudy: a\n".encode("latin-1"), ", line 1: it is not encoded in UTF-8"),
        (b"study: a\n# \xff\n", ", line 2: it is not encoded in UTF-8"),
        ("study: a\n".encode("utf-16"), ", line 1: it is not encoded in UTF-8"),
        ("study: a\n".encode("utf-16-le"), ", line 1: the character U+0000 is not allowed: save it in UTF-8"),
        ("study: a\n".encode("utf-16-be"), ", line 1: the character U+0000 is not allowed: save it in UTF-8"),
        ("study: a\n".encode("utf-32"), ", line 1: it is not encoded in UTF-8"),
    ],
)
@pytest.mark.parametrize("in_profile", [False, True])
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path, text, words, in_profile):
    plain = tmp_path / "config.yaml"
    plain.write_text("study: a\n")
    path = tmp_path / "machine.yaml" if in_profile else plain
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        configuration.read(plain, profile=tmp_path if in_profile else None)
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_anchors_and_a_mark_of_utf_8_are_read_as_they_are(tmp_path):
    path = tmp_path / "config.yaml"
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: [*a, *b]\ne: {<<: [*b, *a]}\n"
    path.write_text(text, encoding="utf-8-sig")
    first, second = {"x": 1, "y": 2}, {"x": 3, "y": 2}
    held = {"a": first, "b": second, "c": {"x": 3, "y": 4}, "d": [first, second], "e": second}
    assert configuration.read(path) == held == yaml.safe_load(text)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1.0e+400"])
@pytest.mark.parametrize(
    "key",
    [
        "studies.smoke.cell_budget_s",
        "studies.smoke.cell_timeout_s",
        "studies.smoke.sweep_budget_s",
        "studies.smoke.host_memory_gib",
        "studies.smoke.epochs",
        "host_memory_gib",
        "gpu_memory_gib",
        "exact_data_below",
        "seed",
        "settings.sigma",
        "settings.lambda1",
        "quality.fit_timeout_s",
        "scale.fit_timeout_s",
        "citeseq.density",
    ],
)
def test_numbers_are_finite(key, value, config_file):
    held = configuration.read(config_file, [f"{key}={value}", "study=smoke", "device=cpu"])
    with pytest.raises(ConfigError, match=rf"{key.split('.')[-1]}.*(inf|nan)") as error:
        study.load(held)
    assert "\n" not in str(error.value)


def test_set_and_the_command_line_take_finite_numbers_and_no_key_twice(capsys, config_file):
    for override, words in (
        ("settings={sigma: 1, sigma: 2}", "the key 'sigma' stands twice"),
        ("seed=2020-13-45", "is no timestamp"),
    ):
        with pytest.raises(ConfigError, match=words):
            configuration.read(config_file, [override])
    for arguments in (["sweep", "--budget-s", "nan"], ["advise", "--n", "9", "--p", "9", "--gpu-memory-gib", "inf"]):
        with pytest.raises(SystemExit):
            commands.main(arguments)
        assert f"{arguments[-1]} is not a finite number" in capsys.readouterr().err
