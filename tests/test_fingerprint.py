"""The fingerprint of a variant: what counts and what does not, on small plugins and on the project's own variants."""

import importlib
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import mmdma_core
from benchmarks.measuring import fingerprint
from mmdma_core import Unsupported, kernels, objective, registry

CORE = Path(mmdma_core.__file__).parent
CPU = torch.device("cpu")
OWN = [name for name in mmdma_core.variants() if mmdma_core.variant(name).module.startswith("mmdma_core.")]

PLUGIN = '''
"""A variant."""
import math

from lab_helper import scaled
from mmdma_core import Primal, TorchRun, register

FACTOR = 2.0
TABLE = {"a": 1}
OTHER = 1.0


def sums(e_x, e_y, sigma):
    """Add."""
    if sigma < 0:
        raise ValueError(f"sigma is {sigma}")
    return scaled(math.exp(FACTOR), TABLE)


def unused(x):
    return OTHER


@register("mine", label="mine", reference="here")
def start(x, y, settings, device, seed, parameters):
    return TorchRun((Primal(x), Primal(y)), sums, settings, x, seed, parameters)
'''
HELPER = """
POWER = 2


def scaled(value, table):
    return value**POWER + table["a"]


def of_nobody(value):
    return value
"""


@pytest.fixture
def forget():
    """Forget what has been read, before and after."""

    def forget():
        fingerprint._known.clear()
        for cached in (
            fingerprint._home,
            fingerprint._is_ours,
            fingerprint._exists,
            fingerprint._module,
            fingerprint._definition,
        ):
            cached.cache_clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def of_plugin(tmp_path, monkeypatch, forget):
    """The fingerprint of the variant `mine` that modules register."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of_plugin(plugin=PLUGIN, **modules):
        forget()
        modules = {"lab_helper": HELPER, "lab_plugin": plugin} | modules
        for name, text in modules.items():
            path = tmp_path / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        try:
            importlib.import_module("lab_plugin")
            return fingerprint.variant_fingerprint(mmdma_core.variant("mine"))
        finally:
            for name in modules:
                sys.modules.pop(name.removesuffix(".__init__"), None)
                (tmp_path / f"{name.replace('.', '/')}.py").unlink()
            if "mine" in mmdma_core.variants():
                registry.remove("mine")

    return of_plugin


def edited(text, old, new):
    assert text.count(old) == 1, old
    return text.replace(old, new)


WORDS = {
    "a comment": ("FACTOR = 2.0", "FACTOR = 2.0  # twice"),
    "a docstring": ('"""Add."""', '"""Add all."""'),
    "no docstring": ('    """Add."""\n', ""),
    "layout": ("scaled(math.exp(FACTOR), TABLE)", "scaled(\n        math.exp(FACTOR), TABLE,\n    )"),
    "an annotated argument": ("def sums(e_x,", "def sums(e_x: float,"),
    "an annotated result": ("e_y, sigma):", "e_y, sigma) -> float:"),
    "an annotated constant": ("FACTOR = 2.0", "FACTOR: float = 2.0"),
    "the text of an error": ("sigma is {sigma}", "sigma must not be {sigma}, see {OTHER}"),
    "an import that nothing takes": ("import math\n", "import math\nimport os\nfrom lab_helper import of_nobody\n"),
    "the way of an import": ("from lab_helper import scaled", "from lab_helper import scaled as scaled"),
    "an import inside": ('    """Add."""\n', "    from lab_helper import scaled\n"),
    "what nobody uses": ("return OTHER", "return OTHER + 1"),
    "a constant that nobody uses": ("OTHER = 1.0", "OTHER = 3.0"),
    "a label": ('label="mine"', 'label="my own"'),
    "a reference": ('reference="here"', 'reference="there"'),
    "a model of cost": ('reference="here"', 'reference="here", cost_model=lambda n, p, d: OTHER'),
    "how it runs as a program": ("OTHER = 1.0\n", 'OTHER = 1.0\nif __name__ == "__main__":\n    print(1)\n'),
}


@pytest.mark.parametrize("change", WORDS)
def test_what_computes_nothing_does_not_count(of_plugin, change):
    assert of_plugin(edited(PLUGIN, *WORDS[change])) == of_plugin()


COMPUTES = {
    "a formula": ("math.exp(FACTOR)", "math.exp(FACTOR) + 1"),
    "a constant": ("FACTOR = 2.0", "FACTOR = 2.5"),
    "a table": ('{"a": 1}', '{"a": 2}'),
    "a table that is changed": ("OTHER = 1.0\n", 'OTHER = 1.0\nTABLE["a"] = 3\n'),
    "a table that is changed in a loop": ("OTHER = 1.0\n", "OTHER = 1.0\nfor k in range(3):\n    TABLE[k] = k\n"),
    "a constant that a branch binds": ("OTHER = 1.0\n", "OTHER = 1.0\nif OTHER:\n    FACTOR = 3.0\n"),
    "another package under the same name": ("import math\n", "import cmath as math\n"),
    "another function under the same name": ("import scaled", "import of_nobody as scaled"),
    "a call": ("OTHER = 1.0\n", "OTHER = 1.0\nmath.sqrt(2)\n"),
    "what a call runs": ("\n\n@register(", "\n\nunused(3)\n\n\n@register("),
    "a patch": ("OTHER = 1.0\n", "OTHER = 1.0\nimport lab_helper\nlab_helper.POWER = 3\n"),
    "all of a module": ("from lab_helper import scaled", "from lab_helper import *"),
    "a default": ("e_y, sigma):", "e_y, sigma, more=OTHER):"),
    "a decorator": ("def sums(e_x", "@staticmethod\ndef sums(e_x"),
    "the error's kind": ("raise ValueError(", "raise TypeError("),
    "when there is an error": ("if sigma < 0:", "if sigma <= 0:"),
    "one MMD2 alone": ('label="mine"', 'label="mine", estimator="biased"'),
    "sparse views": ('label="mine"', 'label="mine", accepts=["dense", "sparse"]'),
    "what it requires": ('label="mine"', 'label="mine", requires=[lambda device: None]'),
    "the core's own": ("Primal(y)", "Dual(y)"),
}


@pytest.mark.parametrize("change", COMPUTES)
def test_what_computes_counts(of_plugin, change):
    plugin = edited(PLUGIN, *COMPUTES[change]).replace("import Primal,", "import Dual, Primal,")
    assert of_plugin(plugin) != of_plugin()


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("POWER = 2", "POWER = 3", True),
        ("value**POWER", "value**POWER / 2", True),
        ("    return value\n", "    return -value\n", False),
        ("POWER = 2", "POWER = 2\nprint()", True),
    ],
)
def test_a_module_beside_counts_by_definition(of_plugin, old, new, counts):
    assert (of_plugin(lab_helper=edited(HELPER, old, new)) != of_plugin()) == counts


def test_a_function_counts_alike_wherever_it_stands(of_plugin):
    """By another way to it, in another module, all in one, in another order."""
    first = of_plugin()
    dotted = edited(PLUGIN, "from lab_helper import scaled", "import lab_helper").replace(
        "scaled(m", "lab_helper.scaled(m"
    )
    assert of_plugin(dotted) == first
    assert (
        of_plugin(dotted.replace("import lab_helper", "import lab_helper as h").replace("lab_helper.", "h.")) == first
    )
    moved = edited(PLUGIN, "from lab_helper", "from lab_other")
    assert of_plugin(moved, lab_other=HELPER, lab_helper="") == first
    split = edited(HELPER, "POWER = 2\n", "from lab_other import POWER\n")
    assert of_plugin(lab_helper=split, lab_other="POWER = 2\n") == first
    assert of_plugin(edited(PLUGIN, "from lab_helper import scaled\n", HELPER)) == first
    assert of_plugin(edited(PLUGIN, "FACTOR = 2.0\n", "").replace("def unused", "FACTOR = 2.0\ndef unused")) == first
    again = edited(PLUGIN, "from lab_helper", "from lab_other")
    assert of_plugin(again, lab_other="from lab_helper import scaled\n") == first


def test_two_definitions_of_one_name_are_told_apart(of_plugin):
    """Also where both have one text, and only what they refer to differs."""
    plugin = edited(PLUGIN, "from lab_helper import scaled", "import lab_one, lab_two")
    plugin = edited(plugin, "scaled(math.exp(FACTOR), TABLE)", "lab_one.f(1) - lab_two.f(1)")
    text = "def f(x):\n    return g(x)\n\n\ndef g(x):\n    return x + {}\n"
    modules = {"lab_one": text.format(1), "lab_two": text.format(2)}
    swapped = edited(plugin, "lab_one.f(1) - lab_two.f(1)", "lab_two.f(1) - lab_one.f(1)")
    assert of_plugin(plugin, **modules) != of_plugin(swapped, **modules)


@pytest.mark.parametrize("way", ["@functools.singledispatch.register", "@added(TABLE)", "@TABLE.setdefault"])
def test_what_a_decorator_adds_to_what_is_reached_counts(of_plugin, way):
    """As numba.extending.overload does, and functools.singledispatch."""
    added = "def added(table):\n    return lambda f: table.setdefault(f.__name__, f)\n\n\n"
    added += f"{way.replace('functools.singledispatch', 'spread')}\ndef more(x):\n    return 5\n\n\ndef unused"
    plugin = edited(
        PLUGIN,
        "def unused",
        "import functools\n\n\n@functools.singledispatch\ndef spread(x):\n    return 1\n\n\n" + added,
    )
    plugin = edited(plugin, "math.exp(FACTOR)", "spread(FACTOR)").replace("def more(x)", "def more(x: int)")
    assert of_plugin(plugin) != of_plugin(edited(plugin, "return 5", "return 6"))


def test_what_lies_behind_a_star_counts(of_plugin):
    plugin = edited(PLUGIN, "from lab_helper", "from lab_other")
    star = {"lab_other": "from lab_helper import *\n"}
    assert of_plugin(plugin, **star) != of_plugin(plugin, **star, lab_helper=edited(HELPER, "POWER = 2", "POWER = 3"))


@pytest.mark.parametrize("way", ["from lab.helper import scaled", "from .helper import scaled"])
def test_a_package_counts_with_what_it_does_when_it_is_imported(of_plugin, way):
    plugin = edited(PLUGIN, "from lab_helper import scaled", "from lab.plugin import scaled")

    def fingerprint(helper=HELPER, init=""):
        return of_plugin(plugin, **{"lab.__init__": init, "lab.plugin": f"{way}\n", "lab.helper": helper})

    assert fingerprint() == of_plugin()
    assert fingerprint(edited(HELPER, "POWER = 2", "POWER = 3")) != fingerprint()
    assert fingerprint(init="print(end='')\n") != fingerprint()


TWO = """
from mmdma_core import Primal, compose
from mmdma_core import registry


def mine(e_x, e_y, sigma):
    return 1


def others(e_x, e_y, sigma):
    return 2


def add(name, sums):
    registry.register(name, label=name, reference="here")(compose(Primal, sums))


for _name, _sums in (("mine", mine), ("other", others)):
    {how}
"""


@pytest.mark.parametrize(
    "how", ["add(_name, _sums)", 'registry.register(_name, label="b", reference="c")(compose(Primal, _sums))']
)
def test_variants_of_one_file_count_apart(of_plugin, how):
    """As long as `register` is called there; what a function of the file does is not known before it runs."""
    text = TWO.format(how=how)
    fingerprints = []
    for changed in (text, edited(text, "return 1", "return 3"), edited(text, "return 2", "return 3")):
        fingerprints.append(of_plugin(changed))
        registry.remove("other")
    assert fingerprints[0] != fingerprints[1]
    assert (fingerprints[0] == fingerprints[2]) == how.startswith("registry")


MADE = """
import functools

import lab_helper
from mmdma_core import compose, register, Primal

FACTOR = 2


def make(k, helper=None):
    def start(x, y, settings, device, seed, parameters):
        return k, helper

    return start


def sums(e_x, e_y, sigma):
    return FACTOR


class Run:
    def step(self):
        return FACTOR


describe = register("mine", label="mine", reference="here")
describe(WHAT)
"""
HELD = {
    "a closure": ("make(1)", "make(2)"),
    "a function in a closure": ("make(lab_helper.scaled)", "make(lab_helper.of_nobody)"),
    "a table in a closure": ("make({'a': [1]})", "make({'a': [2]})"),
    "a module in a closure": ("make(1)", "make(1, lab_helper)"),
    "a partial": ("functools.partial(make, 1)", "functools.partial(make, 2)"),
    "a named part of a partial": ("functools.partial(make, k=1)", "functools.partial(make, k=2)"),
    "a class": ("Run", "make(1)"),
    "a method": ("Run().step", "Run().run"),
    "a lambda": ("lambda *given: FACTOR", "lambda *given: FACTOR + 1"),
    "a composition": ("compose(Primal, sums)", "compose(Primal, lab_helper.of_nobody)"),
}


@pytest.mark.parametrize("kind", HELD)
def test_what_a_start_is_made_of_counts(of_plugin, kind):
    text = MADE.replace("def step", "def run(self):\n        return 1\n\n    def step")
    fingerprints = [of_plugin(text.replace("WHAT", what)) for what in HELD[kind]]
    assert fingerprints[0] != fingerprints[1]
    assert of_plugin(text.replace("WHAT", HELD[kind][0])) == fingerprints[0]


@pytest.mark.parametrize("what", ["compose(Primal, sums)", "Run", "Run().step", "lambda *given: FACTOR", "make(sums)"])
def test_what_a_start_reaches_counts(of_plugin, what):
    text = MADE.replace("WHAT", what)
    assert of_plugin(text) != of_plugin(edited(text, "FACTOR = 2", "FACTOR = 3"))


def test_of_a_module_that_is_passed_on_all_counts(of_plugin):
    text = MADE.replace("WHAT", "make(1, lab_helper)")
    changed = edited(HELPER, "    return value\n", "    return -value\n")
    assert of_plugin(text) != of_plugin(text, lab_helper=changed)
    handed = edited(PLUGIN, "from lab_helper import scaled", "import lab_helper as scaled")
    assert of_plugin(handed.replace("scaled(math", "sorted(scaled, math")) != of_plugin(
        handed.replace("scaled(math", "sorted(scaled, math"), lab_helper=changed
    )
    assert of_plugin(text, lab_helper="from lab_other import POWER\n", lab_other="POWER = 2\n") != of_plugin(
        text, lab_helper="from lab_other import POWER\n", lab_other="POWER = 3\n"
    )


def test_what_nobody_can_look_into_counts_with_all_of_its_module(of_plugin):
    text = edited(MADE, "FACTOR = 2\n", "FACTOR = 2\nimport numpy\n").replace("WHAT", "make(numpy.full(3, 1))")
    assert of_plugin(text) != of_plugin(edited(text, "full(3, 1)", "full(3, 2)"))


@pytest.fixture
def changed_by(monkeypatch, forget):
    """The variants of the project whose fingerprints an edit of mmdma_core's texts changes."""
    read = fingerprint._read

    def fingerprints():
        forget()
        return {name: fingerprint.variant_fingerprint(mmdma_core.variant(name)) for name in OWN}

    before = fingerprints()

    def changed_by(*edits):
        for old, _ in edits:
            assert sum(path.read_text().count(old) for path in CORE.rglob("*.py")) == 1, old

        def text(module):
            found = read(module)
            for old, new in edits:
                found = found.replace(old, new)
            return found

        monkeypatch.setattr(fingerprint, "_read", text)
        return {name for name, value in fingerprints().items() if value != before[name]}

    return changed_by


FUSED = {"primal-fused", "dual-fused", "primal-fourier", "dual-fourier"}  # the last two report the exact loss
KEOPS = {
    "primal-keops",
    "dual-keops",
    "published-primal-keops",
    "published-dual-keops",
}  # the last two ask whether it works
PUBLISHED = {name for name in OWN if name.startswith("published-")}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("scale = (0.5 / sigma) ** 0.5", "scale = (0.25 / sigma) ** 0.5", KEOPS),
        ("sum_yy = _keops_sum(e_y, e_y, sigma) - len(e_y)", "sum_yy = 0", {"primal-keops", "dual-keops"}),
        ("_MEAN_OF_DOTS, _MOST_OF_DOTS = 16.0,", "_MEAN_OF_DOTS, _MOST_OF_DOTS = 8.0,", FUSED),
        ("centre = e_y.detach().mean(0)", "centre = e_x.detach().mean(0)", {"primal", "dual"}),
        ("N_FIXED = 4096", "N_FIXED = 8192", {"primal-fourier", "dual-fourier"}),
        ("_FIRST_RATE = 3.0", "_FIRST_RATE = 4.0", {"primal-fourier"}),
        ("    amsgrad = True\n", "    amsgrad = False\n", {"original-2020", "original-2020-stream"}),
        ("self._ended = True\n", "self._ended = False\n", PUBLISHED),
        ("this project, mmdma_core.fused", "this project", set()),
        ("the fused variants compute in float32: give", "these compute in float32: give", set()),
        ("def _off_diagonal_sum(kernel: torch.Tensor)", "def _off_diagonal_sum(kernel: Kernel)", set()),
        ("Autograd keeps two n x n matrices of", "It keeps two matrices of", set()),
    ],
)
def test_a_change_in_the_core_changes_those_that_compute_with_it(changed_by, old, new, changed):
    assert changed_by((old, new)) == changed


def test_starting_values_count_for_every_variant(changed_by):
    old = "torch.Generator().manual_seed(plain(seed))"
    assert changed_by((old, old.replace("(seed)", "(seed + 1)"))) == set(OWN)


def test_a_moved_function_of_the_core_counts_as_before(changed_by):
    whole, there = fingerprint._read(kernels.__name__), fingerprint._read(objective.__name__)
    moved = whole[whole.index("def _total(") : whole.index("def gaussian_kernel_of_differences(")]
    back = f"from {objective.__name__} import _off_diagonal_sum, _total\n"
    left = (whole, edited(edited(whole, moved, ""), "import torch\n", f"import torch\n{back}"))
    assert changed_by(left, (there, f"{there}\n\n{moved}")) == set()
    changed = edited(moved, "- kernel.diagonal()", "+ kernel.diagonal()")
    assert changed_by(left, (there, f"{there}\n\n{changed}")) == {"primal", "dual", "original-2020"}


KERNELS = {
    "primal": {"gaussian_kernel", "Primal"},
    "primal-keops": {"_keops_sum", "Primal"},
    "dual": {"gaussian_kernel", "Dual"},
    "dual-keops": {"_keops_sum", "Dual"},
    "primal-fused": {"FusedMMD", "all_pairs", "compact_blocks", "wide_blocks", "CpuView", "CudaView"},
    "dual-fused": {"FusedMMD", "all_pairs", "compact_blocks", "wide_blocks", "CpuDualView", "CudaDualView"},
    "primal-fourier": {"CpuFrequencies", "CudaFrequencies", "_orthogonal", "_add_pulls", "all_pairs"},
    "dual-fourier": {"CpuFrequencies", "CudaFrequencies", "_orthogonal", "_add_pulls", "all_pairs"},
    "published-primal": {"PublishedRun"},
    "published-primal-keops": {"PublishedRun"},
    "published-dual": {"PublishedRun"},
    "published-dual-keops": {"PublishedRun"},
    "original-2019": {"GraphRun", "_squared_mmd"},
    "original-2020": {"OriginalRun", "Dual", "gaussian_kernel_of_differences"},
    "original-2020-stream": {"OriginalRun", "Dual", "split_sums"},
    "linear-time": {"linear_sums", "Primal", "_random_order"},
}


def test_each_variant_reaches_its_kernels_and_no_model():
    assert set(KERNELS) == set(OWN)
    for name, needed in KERNELS.items():
        reached = fingerprint.variant_reaches(mmdma_core.variant(name))
        assert needed <= {definition for _, definition in reached}, name
        assert not [module for module, _ in reached if module.startswith("mmdma_core.models")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.tensorflow if name == "original-2019" else ()) for name in OWN]
)
def test_whatever_runs_is_reached(name):
    """Every function of the core that a run on the CPU calls, as Python itself sees it."""
    variant = mmdma_core.variant(name)
    try:
        missing = variant.missing(CPU)
    except Unsupported as error:
        missing = str(error)
    if missing:
        pytest.skip(missing)
    ran = set()

    def note(frame, event, _):
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("mmdma_core."):
            ran.add((module, frame.f_code.co_qualname.partition(".")[0]))

    x, y, _ = mmdma_core.simulate("branch", n=40, p=12)
    settings = variant.taken(mmdma_core.Settings(n_components=3))
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run = variant.start(x, y, settings, CPU, 1, None)
        run.step()
        run.loss(), run.gradients(), run.embeddings()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    reached = fingerprint.variant_reaches(variant)
    assert len(ran) > 5
    assert {key for key in ran if not key[1].startswith("<")} - reached == set()


def test_all_fingerprints_take_under_a_second(forget):
    begin = time.process_time()
    for name in OWN:
        fingerprint.variant_fingerprint(mmdma_core.variant(name))
    assert time.process_time() - begin < 5  # 0.5 s on a quiet core
