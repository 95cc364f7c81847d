"""Users' own training functions, found by their names: `package.module:function`.

Workers import this module, so it imports nothing heavy. The ledger has a function's name and never
a folder: the function comes from where the command was typed, or from an installed package.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from trainer.config.settings import ConfigError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class OwnFunction:
    """A training function, and the metrics that each of its evaluations must have."""

    name: str
    metrics: tuple[str, ...]


def function_name(name: str) -> str:
    """Return `name`. Raises ValueError, for pydantic, unless it could name a function."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"must be package.module:function, not {name!r}")
    return name


def check_function(name: str, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless this process can import the function."""
    if name.startswith("__main__:"):
        raise ConfigError(
            f"{what}: {name}: workers cannot import what is typed or run as a script; put the "
            "function into a module of its own"
        )
    here = os.getcwd()
    if here not in sys.path:  # `python -m` and Ray's workers have it there
        sys.path.insert(0, here)
    try:
        find_function(name)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def find_function(name: str) -> Any:
    """Return the function of that name. Raises ConfigError, in one line, if there is none."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{name}: there is no module {missing} in {os.getcwd()}, nor is it installed; type "
                "the command in the folder that holds it"
            ) from error
        raise ConfigError(
            f"{name}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    file = getattr(module, "__file__", module_name)
    if function is None:
        raise ConfigError(f"{name}: {file} has no {function_name}")
    if not inspect.isgeneratorfunction(function):
        raise ConfigError(
            f"{name}: {function_name} in {file} is no generator function; it must `yield` a dict, "
            "step and metrics, at each evaluation"
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise ConfigError(
            f"{name}: must be called with two arguments: def {function_name}(config, run)"
        ) from None
    return function
