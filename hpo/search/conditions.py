"""Conditional dimensions: `when` the trial's other values are these, and only then.

A parent is another searched path, or a fixed train setting, which decides when the study is
loaded. Nothing here draws a value or knows what a train setting means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from trainer.config.settings import ConfigError, Section, get_path
from trainer.config.train import check_path, check_setting

Scalar = bool | int | float | str | None


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


class Conditional(Section):
    """What is searched only `when` each of these paths has one of its values."""

    # other searched paths, or fixed ones, each with the value or values that it must have
    when: dict[
        str, Annotated[tuple[Scalar, ...], Field(min_length=1), BeforeValidator(_listed)]
    ] = Field(default_factory=dict)

    def can_be(self, value: Scalar) -> bool:
        """Whether a trial may have this value; none may be waited for unless a subclass says so."""
        return False


def same(one: object, other: object) -> bool:
    """Equal as settings: 1 is 1.0, and not true."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def is_active(space: Mapping[str, Conditional], path: str, params: Mapping[str, Any]) -> bool:
    """Whether a trial with `params`, those before `path` `in_order`, searches `path` too."""
    return all(
        parent not in space
        or (parent in params and any(same(params[parent], value) for value in values))
        for parent, values in space[path].when.items()
    )


def in_order(space: Mapping[str, Conditional]) -> Iterator[str]:
    """The paths of the space, parents first; otherwise as the file has them. Raises CycleError."""
    waits = {path: [p for p in dimension.when if p in space] for path, dimension in space.items()}
    return iter(TopologicalSorter(waits).static_order())


def _check_train_setting(path: str, value: Scalar, what: str) -> None:
    check_path(path, what)
    check_setting(path, value, what)


def check_conditions(
    space: Mapping[str, Conditional],
    train: Mapping[str, Any],
    source: str,
    check: Callable[[str, Scalar, str], None] = _check_train_setting,
) -> None:
    """Raise ConfigError unless every condition can be met, by the space or by the fixed `train`.

    `check` raises it, beginning with a given text, for a path or a value that `train` cannot have.
    """
    for path, dimension in space.items():
        for parent, values in dimension.when.items():
            what = f"{source}: space.{path}.when.{parent}"
            if parent in space:
                _check_searched(space[parent], values, what, parent)
            else:
                for value in values:
                    check(parent, value, what)
                _check_fixed(space, train, values, what, parent)
    try:
        list(in_order(space))
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"{source}: space: conditions go in a circle: {circle}") from None


def _check_searched(
    dimension: Conditional, values: tuple[Scalar, ...], what: str, parent: str
) -> None:
    for value in values:
        if not dimension.can_be(value):
            raise ConfigError(f"{what}: space.{parent} has no choice {value!r}")


def _check_fixed(
    space: Mapping[str, Conditional],
    train: Mapping[str, Any],
    values: tuple[Scalar, ...],
    what: str,
    parent: str,
) -> None:
    section = parent.rpartition(".")[0]
    if section in space:
        raise ConfigError(f"{what}: is set by the choices of space.{section}: name those instead")
    fixed = get_path(train, parent)
    if not any(same(fixed, value) for value in values):
        raise ConfigError(f"{what}: can never be met: {parent} is {fixed!r} in every trial")
