"""config.yaml: read, merged with overrides, and checked against its schema."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_SCHEMA = Path(__file__).with_name("config.schema.json")
DEFAULT_CONFIG = Path("config.yaml")


class ConfigError(ValueError):
    """The configuration asks for something that is not allowed; the message names it and what is."""


def read(path: Path = DEFAULT_CONFIG, overrides: Iterable[str] = (), profile: Path | None = None) -> dict[str, Any]:
    """The configuration of a file. Not checked yet.

    overrides  'key=value' or 'key.of.a.mapping=value' in YAML
    profile    a folder with a machine.yaml, whose keys come before those of the file, and after the overrides
    """
    config = _mapping(path)
    if profile is not None:
        config |= _mapping(profile / "machine.yaml")
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
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: {value!r} is not YAML") from None
    return config


def _mapping(path: Path) -> dict[str, Any]:
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(held, dict):
        raise ConfigError(f"{path}: a mapping of keys to values is expected")
    return held


def overrides(config: dict[str, Any], path: Path = DEFAULT_CONFIG) -> str:
    """What differs from the file, as command line options: the way from `snakemake --config` to our own commands."""
    base = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = {key: value for key, value in config.items() if base.get(key) != value}
    return " ".join(f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in changed.items())


def check(config: dict[str, Any]) -> None:
    """Raises ConfigError for the first key or value that the schema does not allow."""
    schema = json.loads(_SCHEMA.read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(config)
    first = min(errors, key=lambda error: (len(error.absolute_path), str(error.message)), default=None)
    if first is not None:
        raise ConfigError(_sentence(first))


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
    if error.validator == "enum":
        return f"{where}: {error.instance!r} is not allowed; {closest(str(error.instance), error.validator_value)}"
    if error.validator == "pattern":
        return f"{where}: {error.instance!r} is not allowed; allowed: {error.schema['description']}"
    if error.validator == "oneOf":
        return f"{where}: {error.instance!r} is not allowed; allowed: 'auto' or an integer of at least 1"
    return f"{where}: {error.message}"
