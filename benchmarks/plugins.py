"""Plugins: a user's modules that register variants, imported in a process of their own, and in their measurements.

What a plugin computes, prints, sets or ends while it is imported then touches no other variant. Here each of its
variants has a placeholder in the registry, which knows what the plugin says of it, asks the plugin's process for models
of memory and cost, and imports the plugin where the variant is to run: in the child that measures it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from multiprocessing import Pipe
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.config import ConfigError
from benchmarks.measuring import guard
from benchmarks.measuring.fingerprint import tell, variant_fingerprint
from mmdma_core import registry
from mmdma_core.compositions import Variant

LIMIT_S = 120.0  # that an import may take
_MODELS = ("memory_model", "cost_model")
_plugins: dict[str, _Plugin] = {}  # of this process, by module


def take(modules: list[str]) -> None:
    """Register the variants of plugins, as placeholders. Raises ConfigError, with its name, for one that cannot be."""
    for module in modules:
        if module not in _plugins:
            _plugins[module] = _Plugin(module)


def notes() -> list[str]:
    """Say what the plugins do beside registering variants while they are imported, a line each."""
    return [plugin.note for plugin in _plugins.values() if plugin.note]


def close() -> None:
    """End the processes of the plugins."""
    for plugin in _plugins.values():
        plugin.end()
    _plugins.clear()


class _Told(NamedTuple):
    """What a plugin says of a variant: its plain fields, the models that there are, what is absent, the fingerprint."""

    plain: dict[str, Any]
    models: list[str]
    absent: tuple[str, ...]
    fingerprint: str


class _Plugin:
    """A plugin, and the process that has imported it and answers for it; that is stopped while nobody asks."""

    def __init__(self, module: str) -> None:
        self.module, self.note = module, ""
        self._connection, at_child = Pipe()
        self._is_here = False  # imported in this process, too
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            self._process = os.fork()
            if self._process == 0:
                guard.leave_parent(output.fileno())
                _serve(module, at_child)
            at_child.close()
            told, does = self._first_words(output)
        self.note = f"plugin {module!r} {does} while it is imported: only its own measurements see that" if does else ""
        self.variants = [registry.add(self._placeholder(own)) for own in told]

    def _first_words(self, output: Any) -> Any:
        """Return what the process says once it has imported the plugin. Raises ConfigError if it does not."""
        why = f"it did not end within {LIMIT_S:g} s"
        try:
            if self._connection.poll(LIMIT_S):
                said = self._connection.recv()
                if not isinstance(said, str):
                    os.kill(self._process, signal.SIGSTOP)
                    return said
                why = said
        except (EOFError, ConnectionResetError):
            code = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
            why = f"it ends Python, by {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"
        else:
            self.end()
        output.seek(0)
        lines = output.read().strip().splitlines()
        raise ConfigError(
            f"plugins: {self.module!r} cannot be imported: {why}{f'; it said: {lines[-1][:200]}' if lines else ''}"
        )

    def end(self) -> None:
        """End its process, be it stopped."""
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def _placeholder(self, told: _Told) -> Variant:
        name = told.plain["name"]
        made = Variant(
            **told.plain,
            requires=(*told.absent, lambda device: self._real(name).missing(device)),
            start=lambda *arguments, **options: self._real(name).start(*arguments, **options),
            **{model: partial(self._ask, name, model) for model in told.models},
        )
        tell(made, told.fingerprint)
        return made

    @cache  # noqa: B019  (a plugin lives as long as its process)
    def _ask(self, name: str, model: str, *sizes: int) -> Any:
        """Ask a model of the plugin's. Raises what it raises there."""
        os.kill(self._process, signal.SIGCONT)
        try:
            self._connection.send((name, model, sizes))
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"plugin {self.module!r}: {model} of {name!r} has ended Python") from None
        finally:
            os.kill(self._process, signal.SIGSTOP)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _real(self, name: str) -> Variant:
        """Return the variant itself; the plugin is imported here for that."""
        if not self._is_here:
            self._is_here = True
            others = [variant for variant in _withdrawn() if variant not in self.variants]
            _import(self.module)
            for variant in others:
                if variant.name not in registry.variants():
                    registry.add(variant)
        return registry.variant(name)


def _withdrawn() -> list[Variant]:
    """Take the placeholders of all plugins out of the registry, and return them: a plugin may import another one."""
    placeholders = [variant for plugin in _plugins.values() for variant in plugin.variants]
    found = [own for own in placeholders if own.name in registry.variants() and registry.variant(own.name) is own]
    for variant in found:
        registry.remove(variant.name)
    return found


def _serve(module: str, connection: Any) -> None:
    """Import the plugin in its process, say what it has registered and does beside, and answer for its models."""
    others = {variant.name: variant.module for variant in _withdrawn()}
    known, before = set(registry.variants()), _state()
    try:
        _import(module)
        new = [registry.variant(name) for name in registry.variants() if name not in known]
        variants = [variant for variant in new if others.get(variant.name) != variant.module]
        does = [what for (what, now), was in zip(_state().items(), before.values(), strict=True) if now != was]
        connection.send(([_told(variant) for variant in variants], ", ".join(does)))
        while True:
            name, model, sizes = connection.recv()
            connection.send(_answer(partial(getattr(registry.variant(name), model), *sizes)))
    except EOFError:
        pass
    except BaseException as error:  # a plugin is anybody's code: whatever it raises is told, with its name
        ends = isinstance(error, SystemExit)
        connection.send(
            f"it ends Python, by sys.exit({error.code!r}): a module that is imported must not"
            if ends
            else f"{type(error).__name__}: {error}"
        )
    finally:
        sys.stdout.flush()
        os._exit(0)


def _import(module: str) -> None:
    """Import a plugin, which is not to read this command's arguments."""
    before, sys.argv = sys.argv, [module]
    try:
        importlib.import_module(module)
    finally:
        sys.argv = before


def _answer(model: Callable[[], Any]) -> Any:
    try:
        return model()
    except Exception as error:  # is raised again where the model was asked for
        return RuntimeError(f"{type(error).__name__}: {error}")


def _told(variant: Variant) -> _Told:
    """Return what a placeholder takes."""
    values = {field.name: getattr(variant, field.name) for field in fields(Variant) if field.name != "requires"}
    plain = {name: value for name, value in values.items() if not callable(value)}
    models = [name for name in _MODELS if name not in plain]
    return _Told(plain, models, variant.absent(), variant_fingerprint(variant))


def _state() -> dict[str, Any]:
    """Return what a plugin may change for the whole process, by the words for changing it."""
    sys.stdout.flush()
    return {
        "sets PyTorch's default dtype": torch.get_default_dtype(),
        "sets PyTorch's threads": torch.get_num_threads(),
        "seeds PyTorch": torch.initial_seed(),
        "draws from or seeds NumPy's random numbers": np.random.get_state()[1].tobytes(),
        "changes the environment": dict(os.environ),
        "starts threads": threading.active_count(),
        "prints": os.fstat(1).st_size,
    }
