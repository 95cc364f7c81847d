"""Users' own training functions, found by their names: `package.module:function`.

Workers import this module, so it imports nothing heavy. The ledger has a function's name and never
a folder: the function comes from where the command was typed, or from an installed package. That
folder may have files of the names of our packages, and of any library's: it comes first on the path
only while the function's module is imported, and last from then on.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from hpo.ours import OURS, ROOT
from trainer.config.settings import ConfigError

_OWN = "_own_"  # begins the name under which a user's module of our name is imported
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class OwnFunction:
    """A training function, and the metrics that each of its evaluations must have."""

    name: str
    metrics: tuple[str, ...]
    folder: str  # where the command was typed


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
    try:
        find_function(name, os.getcwd())
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def find_function(name: str, folder: str) -> Any:
    """Return the function of that name, whose module may be in `folder`.

    Raises ConfigError, in one line, if there is none.
    """
    module_name, _, function_name = name.partition(":")
    try:
        with _first_on_path(folder):
            module = _imported(module_name, folder)
    except (Exception, SystemExit) as error:
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        missing = missing.removeprefix(_OWN)
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{name}: there is no module {missing} in {folder}, nor is it installed; type "
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


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _imported(name: str, folder: str) -> ModuleType:
    """Import a module; one that is called as a package of ours gets another name."""
    top, dot, rest = name.partition(".")
    spec = PathFinder.find_spec(top, [folder]) if top in OURS else None
    if spec is None or ROOT.samefile(folder):
        return importlib.import_module(name)
    alias = f"{_OWN}{top}"
    if alias not in sys.modules:
        _import_as(alias, spec)
    return importlib.import_module(f"{alias}{dot}{rest}")


def _import_as(alias: str, spec: ModuleSpec) -> None:
    places = spec.submodule_search_locations
    if spec.origin is None:  # a folder without __init__.py
        renamed: ModuleSpec | None = ModuleSpec(alias, None, is_package=True)
    else:
        renamed = spec_from_file_location(alias, spec.origin, submodule_search_locations=places)
    assert renamed is not None
    if places is not None:
        renamed.submodule_search_locations = [*places]
    module = sys.modules[alias] = module_from_spec(renamed)
    try:
        if renamed.loader is not None:
            renamed.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise


@cache
def source_digest(function: Any) -> str | None:
    """Return the sha256 of the function's source file, as it was when first asked for.

    None if it has no such file.
    """
    try:
        file = inspect.getsourcefile(function)
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None
