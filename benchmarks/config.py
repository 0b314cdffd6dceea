"""config.yaml: read, merged with overrides, and checked against a model of its keys.

A new key goes into config.yaml with its comment, and into the model of its mapping below. What is not allowed is a
ConfigError of one line, with the place, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

DEFAULT_CONFIG = Path("config.yaml")
Entries = TypeVar("Entries", bound=Collection)


class ConfigError(ValueError):
    """The configuration asks for something that is not allowed; the message names it and what is."""


class _Loader(yaml.SafeLoader):
    """YAML in which no key of a mapping stands twice; whatever is wrong is a YAMLError that knows where."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = key.value if key.tag.endswith(":merge") else self.construct_object(key)
                if name in first:
                    problem = f"the key {name!r} stands twice, first in line {first[name]}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                first[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # of PyYAML's own constructors: a date in a 13th month
            problem = f"{node.value!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def read(path: Path = DEFAULT_CONFIG, overrides: Iterable[str] = (), profile: Path | None = None) -> dict[str, Any]:
    """Read the configuration in a file. It is not checked yet.

    overrides  'key=value' or 'key.of.a.mapping=value' in YAML
    profile    a folder with a machine.yaml, whose keys come before those of the file, and after the overrides
    """
    config = mapping(path)
    if profile is not None:
        config |= mapping(profile / "machine.yaml")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override}: KEY=VALUE is expected")
        *outer, last = key.split(".")
        place: Any = config
        for name in outer:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override}: {'.'.join(outer)} is no mapping in {path}")
        try:
            place[last] = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: {value!r} is not YAML{_where_and_what(error, value)}") from None
    return config


def mapping(path: Path) -> dict[str, Any]:
    """Read a mapping from a file of YAML. Raises ConfigError with the line of what is wrong."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
        held = yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: it is not encoded in UTF-8: save it so") from None
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_where_and_what(error, text)}") from None
    if not isinstance(held, dict):
        found = "nothing" if held is None else f"a {type(held).__name__}"
        raise ConfigError(f"{path}: a mapping of keys to values is expected, it holds {found}")
    return held


def _where_and_what(error: yaml.YAMLError, text: str) -> str:
    """', line 3, column 1: ...'."""
    if isinstance(error, yaml.reader.ReaderError):  # it has no mark
        line = text.count("\n", 0, error.position) + 1
        return f", line {line}: the character U+{error.character:04X} is not allowed: save it in UTF-8, without it"
    mark = error.problem_mark or error.context_mark
    words = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
    hint = ": indent with blanks" if "'\\t'" in words else ""
    return f", line {mark.line + 1}, column {mark.column + 1}: {words}{hint}"


def overrides(config: dict[str, Any], path: Path = DEFAULT_CONFIG) -> str:
    """Give what differs from the file as command line options: from `snakemake --config` to our own commands."""
    base = mapping(path)
    changed = {key: value for key, value in config.items() if base.get(key) != value}
    return " ".join(f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in changed.items())


def closest(word: str, allowed: Iterable[str]) -> str:
    """'did you mean ...?' if an allowed word is near, and the allowed words."""
    allowed = list(allowed)
    near = difflib.get_close_matches(word, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def _refused(words: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{words}", {"words": words})


def _only(is_allowed: Callable[[Any], object], allowed: Callable[[Any], str]) -> BeforeValidator:
    """Refuse a value, with what is allowed in the place of it."""

    def check(value: Any) -> Any:
        if not is_allowed(value):
            raise _refused(f"{value!r} is not allowed; {allowed(value)}")
        return value

    return BeforeValidator(check)


def _one_of(*words: str, more: str = "") -> BeforeValidator:
    return _only(lambda value: value in words, lambda value: closest(str(value), words) + more)


def _matching(pattern: str, words: str) -> BeforeValidator:
    is_allowed = re.compile(pattern).fullmatch
    return _only(lambda value: isinstance(value, str) and is_allowed(value), lambda _: f"allowed: {words}")


def _whole(value: Any) -> Any:
    """1.0e+6 as YAML has it is a whole number, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _distinct(entries: Entries) -> Entries:
    if len(set(entries)) < len(entries):
        raise _refused(f"{entries!r} has an entry twice")
    return entries


def _settings(changed: Any) -> Any:
    """mmdma_core.Settings with the hyper-parameters that a mapping changes."""
    from mmdma_core.settings import Settings  # imports PyTorch, before which the threads are set

    _refuse_unknown(changed, Settings.__dataclass_fields__)
    try:
        return Settings(**changed)
    except ValueError as error:
        raise _refused(str(error)) from None


def _refuse_unknown(keys: Any, known: Iterable[str]) -> None:
    if not isinstance(keys, dict):
        raise _refused(f"a mapping of keys to values is expected, got {keys!r}")
    for key in keys:
        if key not in known:
            raise _refused(f"unknown key {key!r}; {closest(str(key), known)}")


Whole = Annotated[int, BeforeValidator(_whole)]
Natural = Annotated[Whole, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[list[str], AfterValidator(_distinct)]
Variants = Annotated[Names, Field(min_length=1)]
Cells = Annotated[list[Annotated[Whole, Field(ge=4)]], Field(min_length=1), AfterValidator(_distinct)]
Features = Annotated[list[Count], Field(min_length=1), AfterValidator(_distinct)]
Peers = Annotated[list[Annotated[str, _one_of("quantised-gw", "low-rank-gw")]], AfterValidator(_distinct)]
Hyperparameters = Annotated[Any, BeforeValidator(_settings)]
Threads = _only(
    lambda value: value == "auto" or (type(value) is int and value >= 1),
    lambda _: "allowed: 'auto' or an integer of at least 1",
)
Device = _one_of("auto", "cpu", "cuda", more="; CUDA_VISIBLE_DEVICES says which GPU")
Folder = _matching(r"[^{}\n]+", "a path, without braces, which are wildcards to Snakemake")
Machine = _matching(
    "[A-Za-z0-9][A-Za-z0-9._-]*", "a name of letters, digits, '.', '_' and '-', the first a letter or digit"
)
Module = _matching("[A-Za-z_][A-Za-z0-9_.]*", "the name of a module, without .py")


class _Keys(BaseModel):
    """The keys of a mapping. Their values are of the type that is named, and numbers are finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _know_all_keys(cls, keys: Any) -> Any:
        _refuse_unknown(keys, cls.model_fields)
        return keys


class Further(_Keys):
    """n beyond the grid of a study for some variants, at some p."""

    variants: Variants
    n: Cells
    p: Features
    host_memory_gib: Positive | None = None


class Grid(_Keys):
    """A study: its grid, how long a measurement may take, and how much memory."""

    n: Cells
    p: Features
    variants: Variants
    epochs: Annotated[Whole, Field(ge=2)]
    cell_budget_s: Positive
    cell_timeout_s: Positive
    sweep_budget_s: Positive
    gpu_memory_gib: Positive | None = None
    host_memory_gib: Positive | None = None
    devices: Count = 1
    further: list[Further] = []


class Figures(_Keys):
    """What the figures show; without figure_1b_p Figure 1B has every p of the study."""

    figure_1b_p: Annotated[list[Count], Field(min_length=1)] | None = None
    published: bool = True


class HyperparameterGrid(_Keys):
    """The values of which `quality` fits every combination."""

    n_components: Annotated[list[Count], Field(min_length=1)]
    lambda1: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    lambda2: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    sigma: Annotated[list[Positive], Field(min_length=1)]


class Quality(_Keys):
    """The experiment on SNARE-seq and scGEM."""

    data: Text
    datasets: Annotated[
        list[Annotated[str, _one_of("snareseq", "scgem")]], Field(min_length=1), AfterValidator(_distinct)
    ]
    grid_variant: str
    variants: Names
    grid: HyperparameterGrid
    learning_rate: Positive
    n_epochs: Count
    n_starts: Count
    unbiased: bool
    seed: Natural
    peers: Peers
    fit_timeout_s: Positive
    refined: bool = True


class RefinedSeeds(_Keys):
    """Refined matches over seeds of the simulated data."""

    n: Cells
    shapes: Annotated[
        list[Annotated[str, _one_of("branch", "triangle")]], Field(min_length=1), AfterValidator(_distinct)
    ]
    data_seeds: Annotated[list[Natural], Field(min_length=1), AfterValidator(_distinct)]


class Scale(_Keys):
    """The experiment of whole fits, quality against time."""

    n: Cells
    p: Count
    variants: Names
    batch_size: Annotated[Whole, Field(ge=100)] | None
    peers: Peers
    settings: Hyperparameters
    n_epochs: Count
    n_starts: Count
    seed: Natural
    fit_timeout_s: Positive
    refined: RefinedSeeds | None = None


class Citeseq(_Keys):
    """The experiment of genes against proteins."""

    path: Text | None
    layer: Text | None
    cells: Annotated[Whole, Field(ge=4)]
    genes: Count
    proteins: Count
    density: Annotated[float, Field(gt=0, lt=1)]
    cpu_fraction: Annotated[float, Field(gt=0, le=1)]
    variants: Variants
    epochs: Annotated[Whole, Field(ge=2)]
    cell_budget_s: Positive
    cell_timeout_s: Positive


class Config(_Keys):
    """All keys of config.yaml, which says what each of them means."""

    study: str
    studies: Annotated[dict[str, Grid], Field(min_length=1)]
    device: Annotated[str, Device] = "auto"
    cpu_threads: Annotated[int | str, Threads] = "auto"
    gpu_memory_gib: Positive | None = None
    host_memory_gib: Positive | None = None
    stop_after_failure: bool = True
    results: Annotated[str, Folder] = "results"
    machine: Annotated[str, Machine] = "auto"
    plugins: list[Annotated[str, Module]] = []
    shape: Annotated[str, _one_of("branch", "triangle")] = "branch"
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 2)] = 4
    exact_data_below: Annotated[float, Field(ge=0)] = 2e7
    settings: Hyperparameters = Field({}, validate_default=True)
    figures: Figures = Figures()
    quality: Quality | None = None
    scale: Scale | None = None
    citeseq: Citeseq | None = None


def check(config: dict[str, Any]) -> Config:
    """Check a configuration. Raises ConfigError for the first key or value that is not allowed."""
    try:
        return Config.model_validate(_of_yaml(config))
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        raise ConfigError(_sentence(first)) from None


def experiment(config: dict[str, Any], name: str) -> Any:
    """Return the keys of an experiment as its model above, checked. Raises ConfigError, also where there are none."""
    asked = getattr(check(config), name)
    if asked is None:
        raise ConfigError(f"{name}: the configuration has no such key; the project's config.yaml shows it")
    return asked


def _of_yaml(value: Any) -> Any:
    """Mappings, lists and Python's own numbers, in the place of tuples and of what NumPy has."""
    if isinstance(value, dict):
        return {key: _of_yaml(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [*map(_of_yaml, value)]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _sentence(error: Any) -> str:
    """Put what pydantic has found into one line."""
    *outer, last = error["loc"] or ("config",)
    if error["type"] == "missing":
        return f"{'.'.join(map(str, outer)) or 'config'}: the key {last!r} is missing"
    where, words = ".".join(map(str, (*outer, last))), error["msg"]
    if error["type"] == "refused":
        return f"{where}: {words}"
    return f"{where}: {error['input']!r} is not allowed; {words[0].lower()}{words[1:]}"
