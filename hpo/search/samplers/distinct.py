"""A sampler that proposes no point twice: a new point takes the place of each copy.

All trials of a study train under one seed, so a copy would train the same again, to the last digit.
What replaces it follows from the earlier trials' parameters and the trial's number alone, so that a
restart proposes the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from random import Random
from typing import Any, cast

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FixedTrial, FrozenTrial, Trial

from hpo.search.conditions import in_order, is_active
from hpo.search.samplers.config import MOST_LISTED, dimension_size, dimension_values
from hpo.search.samplers.rebuilt import Delegate, SpaceExhausted
from hpo.search.space import CategoricalDimension, Space, suggest

_DRAWS = 1_000  # random points, until one is new, in a space that is too large to be listed

Point = dict[str, Any]


class Distinct(Delegate):
    """Lets `other` propose points of `space`, and proposes none that an earlier trial has.

    Once every point was proposed it raises SpaceExhausted. An enqueued trial may be a copy: where
    it lacks values, they are chosen so that it is none, if they can be.
    """

    def __init__(self, other: BaseSampler, space: Space) -> None:
        self._other, self._space = other, space
        self._given: Point = {}
        self._known: dict[int, tuple[Point, int]] = {}  # points of trials by id, and their keys

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Choose the whole point; return its distributions. Raises SpaceExhausted."""
        fixed: Point = trial.system_attrs.get("fixed_params", {})
        # Not `study.get_trials`: a pruner may have made it show some of them only.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        earlier = {self._key_of(other) for other in trials if other.number < trial.number}
        self._given = self._drawn(self._other, study, trial, fixed)
        if self._key(self._given) in earlier:
            self._given = self._new(study, trial, fixed, earlier)
        shown = FixedTrial(self._given)
        suggest(self._space, cast(Trial, shown))
        return shown.distributions

    def sample_relative(self, study: Study, trial: FrozenTrial, *space: Any) -> Point:
        """Return the point that was chosen."""
        return self._given

    def _sampler(self, trial: FrozenTrial) -> BaseSampler:
        return self._other

    def _drawn(self, sampler: BaseSampler, study: Study, trial: FrozenTrial, fixed: Point) -> Point:
        draft = _Draft(sampler, study, trial, fixed)
        return self._plain(suggest(self._space, cast(Trial, draft)))

    def _new(self, study: Study, trial: FrozenTrial, fixed: Point, earlier: set[int]) -> Point:
        """Return a new point, near to the drawn one where all are listed. Raises SpaceExhausted."""
        random = Random(trial.number)
        if math.prod(sizes := [*map(dimension_size, self._space.values())]) > MOST_LISTED or (
            0 in sizes  # which has no end
        ):
            sampler = RandomSampler(seed=random.randrange(2**32))
            draws = (self._drawn(sampler, study, trial, fixed) for _ in range(_DRAWS))
            return next((point for point in draws if self._key(point) not in earlier), self._given)
        new = [
            point
            for point in self._points({}, [*in_order(self._space)])
            if self._key(point) not in earlier and self._parts(fixed) <= self._parts(point)
        ]
        if not new and not fixed:
            raise SpaceExhausted
        random.shuffle(new)  # of several at the same distance, any
        return min(new, key=self._distance, default=self._given)

    def _points(self, point: Point, paths: list[str]) -> Iterator[Point]:
        """Yield every point that begins with `point` and goes on with `paths`."""
        if not paths:
            yield point
        elif not is_active(self._space, paths[0], point):
            yield from self._points(point, paths[1:])
        else:
            for value in dimension_values(self._space[paths[0]]):
                yield from self._points({**point, paths[0]: value}, paths[1:])

    def _distance(self, point: Point) -> float:
        """Return how far `point` is from the one that was drawn: 1 at most for each dimension."""
        return sum(self._apart(path, point) for path in point.keys() | self._given.keys())

    def _apart(self, path: str, point: Point) -> float:
        if path not in point or path not in self._given:
            return 1.0
        dimension, values = self._space[path], (point[path], self._given[path])
        if isinstance(dimension, CategoricalDimension):
            return float(values[0] != values[1])
        scale = math.log if dimension.log else float
        low, high, one, other = map(scale, (dimension.low, dimension.high, *values))
        return abs(one - other) / (high - low)

    def _plain(self, params: Mapping[str, Any]) -> Point:
        return {path: self._plain_value(path, value) for path, value in params.items()}

    def _plain_value(self, path: str, value: Any) -> Any:
        # Another program's trial may have a path of its own, or what is no value of ours.
        with suppress(TypeError, ValueError, ArithmeticError):
            return self._space[path].plain(value) if path in self._space else value
        return value

    def _key_of(self, trial: FrozenTrial) -> int:
        # A study may have 100,000 trials, whose points do not change.
        point = trial.params or trial.system_attrs.get("fixed_params", {})
        known = self._known.get(trial._trial_id)
        if known is None or (known[0] is not point and known[0] != point):
            known = self._known[trial._trial_id] = point, self._key(point)
        return known[1]

    def _key(self, params: Mapping[str, Any]) -> int:
        return hash(self._parts(params))

    def _parts(self, params: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
        # A choice may be True, and another 1.
        return frozenset((path, repr(value)) for path, value in self._plain(params).items())


class _Draft(FixedTrial):
    """A trial that nobody writes. Its parameters are drawn as Optuna draws those of any trial."""

    def __init__(
        self, sampler: BaseSampler, study: Study, trial: FrozenTrial, fixed: Point
    ) -> None:
        super().__init__(dict(fixed), trial.number)
        self._sampler, self._study, self._trial = sampler, study, trial
        space = sampler.infer_relative_search_space(study, trial)
        self._relative = sampler.sample_relative(study, trial, space)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self._params:
            self._params[name] = self._draw(name, distribution)
        return super()._suggest(name, distribution)

    def _draw(self, name: str, distribution: Any) -> Any:
        if distribution.single():
            several = isinstance(distribution, CategoricalDistribution)
            return distribution.choices[0] if several else distribution.low
        if name in self._relative:
            return self._relative[name]
        return self._sampler.sample_independent(self._study, self._trial, name, distribution)
