"""The search space: dimensions over dotted train settings, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import optuna
from pydantic import Field, FiniteFloat, model_validator

from trainer.config import check_path, check_setting
from trainer.settings import ConfigError, Section

# The service sets these itself for every trial.
RESERVED = ("output_dir", "threads")

Scalar = bool | int | float | str | None


class FloatDimension(Section):
    """A real number in [low, high], uniform or log-uniform, or on a grid of `step`."""

    type: Literal["float"]
    low: FiniteFloat
    high: FiniteFloat
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _bounds(self) -> FloatDimension:
        _check_bounds(self.low, self.high, self.log, stepped=self.step is not None)
        return self

    def suggest(self, trial: optuna.Trial, path: str) -> float:
        """The trial's value of `path`."""
        return trial.suggest_float(path, self.low, self.high, log=self.log, step=self.step)

    def probes(self) -> list[Scalar]:
        """Values that the train setting must accept: both ends, and one that is no integer."""
        inside = self.low + (self.high - self.low) * 0.41421356
        return [self.low, self.high, *([inside] if self.step is None else [])]


class IntDimension(Section):
    """An integer in [low, high], uniform or log-uniform, or every `step`-th."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _bounds(self) -> IntDimension:
        _check_bounds(self.low, self.high, self.log, stepped=self.step != 1)
        return self

    def suggest(self, trial: optuna.Trial, path: str) -> int:
        """The trial's value of `path`."""
        return trial.suggest_int(path, self.low, self.high, log=self.log, step=self.step)

    def probes(self) -> list[Scalar]:
        """Values that the train setting must accept: both ends."""
        return [self.low, self.high]


class CategoricalDimension(Section):
    """One of a list of values."""

    type: Literal["categorical"]
    choices: Annotated[list[Scalar], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalDimension:
        for position, choice in enumerate(self.choices):
            if choice in self.choices[:position]:
                raise ValueError(f"choices: {choice!r} is listed twice")
        return self

    def suggest(self, trial: optuna.Trial, path: str) -> Scalar:
        """The trial's value of `path`."""
        return trial.suggest_categorical(path, self.choices)

    def probes(self) -> list[Scalar]:
        """Values that the train setting must accept: all of them."""
        return self.choices


Dimension = Annotated[
    FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")
]


def check_space(space: Mapping[str, Dimension], source: str) -> None:
    """Raise ConfigError unless every dimension's path is a train setting that takes its values."""
    for path, dimension in space.items():
        what = f"{source}: space.{path}"
        check_path(path, what)
        if path in RESERVED:
            raise ConfigError(f"{what}: is set by the service itself and cannot be searched")
        if path.startswith("evaluation."):
            raise ConfigError(f"{what}: is how trials are compared: set it in `train` for them all")
        for value in dimension.probes():
            check_setting(path, value, what)


def suggest(space: Mapping[str, Dimension], trial: optuna.Trial) -> dict[str, Any]:
    """The trial's value for every path of the space, drawn now or read back from the ledger."""
    return {path: dimension.suggest(trial, path) for path, dimension in space.items()}


def _check_bounds(low: float, high: float, log: bool, *, stepped: bool) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}: swap them")
    if low == high:
        raise ValueError(f"low and high are both {low:g}: set it in `train` instead of searching")
    if log and low <= 0:
        raise ValueError(f"low {low:g} has no logarithm: use a low above 0, or log: false")
    if log and stepped:
        raise ValueError("log and step cannot go together: drop one")
