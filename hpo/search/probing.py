"""Checks that a space's trials could be trained: some are drawn and resolved as a study is loaded.

A setting may fit alone and not beside the others: heads that do not divide the width, an analysis
longer than the run. A value is refused if none of `DRAWS` random trials with it can be resolved,
and so is a combination of values that other dimensions wait for. Nothing is trained or written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any

from hpo.search.conditions import in_order, is_active
from hpo.search.space import CategoricalDimension, Space
from trainer.config.settings import ConfigError

DRAWS = 64
MOST_COMBINATIONS = 500  # only so many are checked

Params = dict[str, Any]


def check_trainable(space: Space, check: Callable[[Params], None], source: str) -> None:
    """Raise ConfigError for what no trial could have. `check` raises it for one trial's params."""
    for path, dimension in space.items():
        for value in dimension.probes():
            force = partial(_active_with, space, path, value)
            _check(space, force, check, f"{source}: space.{path}: {value}")
    for chosen in (*_combinations(space), _largest(space)):
        named = ", ".join(f"{path}={value}" for path, value in chosen.items())
        _check(space, partial(_as_given, chosen), check, f"{source}: space: {named}")


def _check(
    space: Space, force: Callable[[Random], Params], check: Callable[[Params], None], what: str
) -> None:
    random, refusal = Random(0), "no trial could have it: what it waits for never comes together"
    for _ in range(DRAWS):
        forced = force(random)
        params = _drawn(space, forced, random)
        if not forced.keys() <= params.keys():
            continue
        try:
            return check(params)
        except ConfigError as error:
            refusal = str(error)
    raise ConfigError(f"{what}: {refusal}")


def _drawn(space: Space, forced: Mapping[str, Any], random: Random) -> Params:
    params: Params = {}
    for path in in_order(space):
        if is_active(space, path, params):
            params[path] = forced[path] if path in forced else space[path].example(random)
    return params


def _active_with(space: Space, path: str, value: Any, random: Random) -> Params:
    """Return `value` for `path`, and random values of its parents with which it is active."""
    forced, waiting = {path: value}, [path]
    while waiting:
        for parent, values in space[waiting.pop()].when.items():
            if parent in space and parent not in forced:
                forced[parent] = random.choice(values)
                waiting.append(parent)
    return forced


def _as_given(chosen: Params, random: Random) -> Params:
    return chosen


def _largest(space: Space) -> Params:
    """Return the values that together need the longest text."""
    paths = [path for path in ("data.context", "data.batch_size") if path in space]
    if len(paths) < 2 or any(space[path].when for path in paths):
        return {}
    return {path: max(space[path].probes()) for path in paths}  # type: ignore[type-var]


def _combinations(space: Space) -> list[Params]:
    """Return the combinations of named choices, and of the categoricals that others wait for."""
    parents = {parent for dimension in space.values() for parent in dimension.when}
    found: list[Params] = [{}]
    for path in in_order(space):
        dimension = space[path]
        if isinstance(dimension, CategoricalDimension) and (path in parents or dimension.named):
            found = [
                more
                for chosen in found
                for more in (
                    [{**chosen, path: value} for value in dimension.probes()]
                    if is_active(space, path, chosen)
                    else [chosen]
                )
            ][:MOST_COMBINATIONS]
    return found
