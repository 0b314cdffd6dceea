"""config.yaml: read, merged with overrides, and checked against its schema."""

from __future__ import annotations

import difflib
import json
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import yaml

_SCHEMA = Path(__file__).with_name("config.schema.json")
DEFAULT_CONFIG = Path("config.yaml")


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
    """The configuration of a file. Not checked yet.

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
    """What a file of YAML holds. Raises ConfigError with the line of what is wrong."""
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
    """What differs from the file, as command line options: the way from `snakemake --config` to our own commands."""
    base = mapping(path)
    changed = {key: value for key, value in config.items() if base.get(key) != value}
    return " ".join(f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in changed.items())


def _is_number(_: Any, value: Any) -> bool:
    """A number as JSON has it, so that it can stand in a record: neither infinite nor NaN."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (isinstance(value, float) and math.isfinite(value))


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number),
)


def check(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as YAML would have it. Raises ConfigError for the first key or value that is not allowed."""
    config = _of_yaml(config)
    schema = json.loads(_SCHEMA.read_text())
    errors = _Validator(schema).iter_errors(config)
    first = min(errors, key=lambda error: (len(error.absolute_path), str(error.message)), default=None)
    if first is not None:
        raise ConfigError(_sentence(first))
    return config


def _of_yaml(value: Any) -> Any:
    """Mappings, lists and Python's own numbers, in the place of tuples and of what NumPy has."""
    if isinstance(value, dict):
        return {key: _of_yaml(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [*map(_of_yaml, value)]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def closest(word: str, allowed: Iterable[str]) -> str:
    """'; did you mean ...?' if an allowed word is near, and the allowed words."""
    allowed = list(allowed)
    near = difflib.get_close_matches(word, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def _sentence(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "config"
    if error.validator == "additionalProperties":
        allowed = error.schema["properties"]
        unknown = next(key for key in error.instance if key not in allowed)
        return f"{where}: unknown key {unknown!r}; {closest(str(unknown), allowed)}"
    if error.validator == "type" and isinstance(error.instance, float) and not math.isfinite(error.instance):
        null = ", or null" if "null" in error.validator_value else ""
        return f"{where}: {error.instance} is not allowed; allowed: a finite number{null}"
    if error.validator == "enum":
        more = f"; {error.schema['description']}" if "description" in error.schema else ""
        return (
            f"{where}: {error.instance!r} is not allowed; {closest(str(error.instance), error.validator_value)}{more}"
        )
    if error.validator == "pattern":
        return f"{where}: {error.instance!r} is not allowed; allowed: {error.schema['description']}"
    if error.validator == "oneOf":
        return f"{where}: {error.instance!r} is not allowed; allowed: 'auto' or an integer of at least 1"
    return f"{where}: {error.message}"
