"""Conditional dimensions, which a trial searches only `when` other settings have given values.

A parent, which `when` names, is another searched path or a fixed train setting; a fixed one
decides when the study is loaded. No value is drawn here.
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
    """What a trial searches only `when` each of these paths has one of its values."""

    # other searched paths, or fixed ones, each with the value or values that it must have
    when: dict[
        str, Annotated[tuple[Scalar, ...], Field(min_length=1), BeforeValidator(_listed)]
    ] = Field(default_factory=dict)

    def can_be(self, value: Scalar) -> bool:
        """Return whether a trial may have this value, so that a condition may wait for it."""
        return False

    def value(self, param: Scalar) -> Any:
        """Return the value that the setting has in a trial with this parameter."""
        return param

    def plain(self, value: Any) -> Any:
        """Return the value that a sampler drew as a person would write it."""
        return value


def same(one: object, other: object) -> bool:
    """Return whether two settings are equal: 1 equals 1.0, but not true."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def is_active(space: Mapping[str, Conditional], path: str, params: Mapping[str, Any]) -> bool:
    """Return whether a trial searches `path`; `params` has the paths before it `in_order`."""
    return all(
        parent not in space
        or (parent in params and any(same(params[parent], value) for value in values))
        for parent, values in space[path].when.items()
    )


def in_order(space: Mapping[str, Conditional]) -> Iterator[str]:
    """Yield the space's paths, parents first, else in the file's order. Raises CycleError."""
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

    `check(path, value, what)` raises it too, beginning with `what`, if `train` cannot have them.
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
