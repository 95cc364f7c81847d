"""The search space: dimensions over dotted train settings, checked before anything is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from random import Random
from typing import Annotated, Any, Literal

import optuna
from pydantic import BeforeValidator, Discriminator, Field, FiniteFloat, Tag, model_validator

from hpo.search.conditions import Conditional, Scalar, in_order, is_active, same
from trainer.config.sections import Count, Positive
from trainer.config.settings import ConfigError, get_path
from trainer.config.train import check_path, check_setting, is_section

# The service sets these itself for every trial.
RESERVED = ("output_dir", "threads")

# A comparison's dimension, whose named choices set train settings of any section.
RECIPE = "recipe"

MOST_EXACT = 2**53  # the database keeps all integers up to this one exactly
Exact = Annotated[int, Field(ge=-MOST_EXACT, le=MOST_EXACT)]

_FEW = 64  # an integer dimension with no more values has all of them tried at the start


class FloatDimension(Conditional):
    """A real number in [low, high], uniform or log-uniform, or on a grid of `step`."""

    type: Literal["float"]
    low: FiniteFloat  # the smallest value
    high: FiniteFloat  # the largest
    log: bool = False  # as likely from 0.001 to 0.01 as from 0.01 to 0.1
    step: Positive | None = None  # between values, from low on; null: any value

    @model_validator(mode="after")
    def _bounds(self) -> FloatDimension:
        _check_bounds(self.low, self.high, self.log, self.step)
        return self

    def suggest(self, trial: optuna.Trial, path: str) -> float:
        """Return the trial's value of `path`."""
        return trial.suggest_float(path, self.low, self._top, log=self.log, step=self.step)

    def probes(self) -> list[Scalar]:
        """Return values that the setting must accept: both ends, and one that is no integer."""
        inside = self.low + (self.high - self.low) * 0.41421356
        return [self.low, self._top, *([inside] if self.step is None else [])]

    @property
    def _top(self) -> float:
        # The largest value: of the grid, if there is a step.
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return float(low + (high - low) // step * step)

    def example(self, random: Random) -> float:
        return random.uniform(self.low, self.high)

    def plain(self, value: Any) -> float:
        """Return the float, of a grid the decimal number: sums of steps give 5.6e-17 for 0."""
        if self.step is None:
            return float(value)
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        return float(low + round((Decimal(float(value)) - low) / step) * step)


class IntDimension(Conditional):
    """An integer in [low, high], uniform or log-uniform, or every `step`-th."""

    type: Literal["int"]
    low: Exact  # the smallest value
    high: Exact  # the largest
    log: bool = False  # as likely from 1 to 10 as from 10 to 100
    step: Count = 1  # between values, from low on

    @model_validator(mode="after")
    def _bounds(self) -> IntDimension:
        _check_bounds(self.low, self.high, self.log, None if self.step == 1 else self.step)
        return self

    def suggest(self, trial: optuna.Trial, path: str) -> int:
        """Return the trial's value of `path`."""
        return trial.suggest_int(path, self.low, self._values[-1], log=self.log, step=self.step)

    def probes(self) -> list[Scalar]:
        """Return values that the setting must accept: all if they are few, else both ends."""
        values = self._values
        return [*values] if len(values) <= _FEW else [values[0], values[-1]]

    def example(self, random: Random) -> int:
        return random.choice(self._values)

    def can_be(self, value: Scalar) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value in self._values

    def plain(self, value: Any) -> int:
        """Return the integer, which a sampler may have drawn as one of numpy's."""
        return int(value)

    @property
    def _values(self) -> range:
        return range(self.low, self.high + 1, self.step)


def _choices_kind(choices: object) -> str:
    return "named" if isinstance(choices, Mapping) else "listed"


def _no_section(choice: object) -> object:
    if isinstance(choice, Mapping):
        raise ValueError(
            "give choices that are sections names, {type: categorical, choices: {name: {setting: "
            "value}}}"
        )
    return choice


Choice = Annotated[Scalar | list[Any], BeforeValidator(_no_section)]
Choices = Annotated[
    Annotated[list[Choice], Field(min_length=1), Tag("listed")]
    | Annotated[dict[str, dict[str, Any]], Field(min_length=1), Tag("named")],
    Discriminator(_choices_kind),
]


class CategoricalDimension(Conditional):
    """One of a list of values; or, for a whole section, one of several named sets of settings.

    The trial's parameter is then the name. What its set leaves out is as in the train config. The
    parameter for a value that is a list itself is its text, `[0.9, 0.999]`, as databases want it.
    """

    type: Literal["categorical"]
    choices: Choices  # a list of values; of a section, sets of settings by name

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalDimension:
        values = self.probes()
        for position, choice in enumerate(values):
            if choice in values[:position]:
                raise ValueError(f"choices: {choice!r} is listed twice")
        return self

    @property
    def named(self) -> dict[str, dict[str, Any]]:
        """The settings of each named choice; empty for a list of values."""
        return self.choices if isinstance(self.choices, dict) else {}

    def value(self, param: Scalar) -> Any:
        """Return the value of the setting for a trial's parameter."""
        lists = {param_of(choice): choice for choice in self.choices if isinstance(choice, list)}
        return lists.get(param, param)

    def suggest(self, trial: optuna.Trial, path: str) -> Scalar:
        """Return the trial's value of `path`, or the name of its choice."""
        return trial.suggest_categorical(path, self.probes())

    def probes(self) -> list[Scalar]:
        """Return all parameters that a trial may have: values, texts of lists, or names."""
        return [param_of(choice) for choice in self.choices]

    def example(self, random: Random) -> Scalar:
        return random.choice(self.probes())

    def can_be(self, value: Scalar) -> bool:
        return any(same(value, choice) for choice in self.choices)

    def plain(self, value: Any) -> Any:
        """Return the parameter for a value, which may be a list."""
        return param_of(value)


def param_of(choice: Any) -> Scalar:
    """Return the choice, of a list its text."""
    return json.dumps(choice, ensure_ascii=False) if isinstance(choice, (list, tuple)) else choice


Dimension = Annotated[
    FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")
]
Space = Mapping[str, Dimension]


def check_space(space: Space, source: str) -> None:
    """Raise ConfigError unless every dimension's path is a train setting that takes its values."""
    for path in space:
        if not is_section(path):
            check_path(path, f"{source}: space.{path}")
    check_overlap(space, source)
    for path, dimension in space.items():
        what = f"{source}: space.{path}"
        if path in RESERVED:
            raise ConfigError(f"{what}: is set by the service itself and cannot be searched")
        if path.split(".")[0] == "evaluation":
            raise ConfigError(f"{what}: is how trials are compared: set it in `train` for them all")
        if is_section(path):
            _check_section(path, dimension, what)
        else:
            _check_values(path, dimension, what)


def check_overlap(space: Space, source: str) -> None:
    """Raise ConfigError if the path of one dimension lies inside that of another."""
    for path in space:
        inside = next((other for other in space if other.startswith(f"{path}.")), None)
        if inside is not None:
            raise ConfigError(
                f"{source}: space.{path}: overlaps space.{inside}: search the one or the other"
            )


def _check_values(path: str, dimension: Dimension, what: str) -> None:
    if isinstance(dimension, CategoricalDimension) and dimension.named:
        raise ConfigError(f"{what}.choices: {path} is one setting; give a list of its values")
    for value in dimension.probes():
        check_setting(path, dimension.value(value), what)


def _check_section(path: str, dimension: Dimension, what: str) -> None:
    if not isinstance(dimension, CategoricalDimension) or not dimension.named:
        raise ConfigError(
            f"{what}: is a section; search one of its settings, or give choices with names: "
            "{type: categorical, choices: {name: {setting: value}}}"
        )
    for name, settings in dimension.named.items():
        for key, value in settings.items():
            where = f"{what}.choices.{name}.{key}"
            check_path(f"{path}.{key}", where)
            check_setting(f"{path}.{key}", value, where)


def suggest(space: Space, trial: optuna.Trial) -> dict[str, Any]:
    """Return the trial's value for every active path, drawn now or read back from the ledger."""
    params: dict[str, Any] = {}
    for path in in_order(space):
        if is_active(space, path, params):
            params[path] = space[path].suggest(trial, path)
    return params


def is_complete(space: Space, params: Mapping[str, Any]) -> bool:
    """Return whether `params` has every active path, so that nothing is left to draw."""
    return all(path in params or not is_active(space, path, params) for path in in_order(space))


def assignments(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the train settings that a trial's `params` stand for, by dotted path."""
    found: dict[str, Any] = {}
    for path, value in params.items():
        dimension = space.get(path)
        if isinstance(dimension, CategoricalDimension) and dimension.named:
            prefix = "" if path == RECIPE else f"{path}."
            found |= {f"{prefix}{key}": each for key, each in dimension.named[value].items()}
        else:
            found[path] = value if dimension is None else dimension.value(value)
    return found


def values_of(space: Space, train: Mapping[str, Any], path: str) -> list[Any]:
    """Return the values that trials may have for the train setting `path`; of a range, its ends.

    If a condition keeps some trials from searching it, the value in `train` is one of them.
    """
    section, _, key = path.rpartition(".")
    searched = space.get(path) or space.get(section)
    fixed = get_path(train, path)
    if searched is None:
        return [fixed]
    named = searched.named if isinstance(searched, CategoricalDimension) else {}
    values = [each.get(key, fixed) for each in named.values()] or map(
        searched.value, searched.probes()
    )
    return [*values, *([fixed] if searched.when else [])]


def with_values(space: Space, path: str, change: Callable[[Any], Any]) -> dict[str, Dimension]:
    """Return the space with `change` made to each value that it has for the setting `path`."""
    section, _, key = path.rpartition(".")
    changed = {**space}
    for other, dimension in space.items():
        update: dict[str, Any] = {}
        if path in dimension.when:
            update["when"] = {**dimension.when, path: tuple(map(change, dimension.when[path]))}
        if isinstance(dimension, CategoricalDimension):
            if other == path:
                update["choices"] = [change(dimension.value(each)) for each in dimension.probes()]
            elif other == section:
                update["choices"] = {
                    name: {**each, key: change(each[key])} if key in each else each
                    for name, each in dimension.named.items()
                }
        changed[other] = dimension.model_copy(update=update)
    return changed


def _check_bounds(low: float, high: float, log: bool, step: float | None) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}: swap them")
    if low == high:
        raise ValueError(f"low and high are both {low:g}: set it in `train` instead of searching")
    if log and low <= 0:
        raise ValueError(f"low {low:g} has no logarithm: use a low above 0, or log: false")
    if log and step is not None:
        raise ValueError("log and step cannot go together: drop one")
    if not math.isfinite(high - low):
        raise ValueError(f"low {low:g} and high {high:g} are too far apart")
    if step is not None and (high - low) / step > MOST_EXACT:
        raise ValueError(f"step {step:g} is too fine from {low:g} to {high:g}")
