"""Samplers rebuilt for every trial: what a restart proposes, what is never proposed twice."""

from __future__ import annotations

import math
import statistics
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from pydantic import TypeAdapter

from hpo.search.samplers.config import SamplerConfig, check_sampler, dimension_values, make_sampler
from hpo.search.samplers.rebuilt import SpaceExhausted, check_new, trial_seed
from hpo.search.space import Dimension, suggest
from trainer.config.settings import ConfigError

CONFIG: TypeAdapter[Any] = TypeAdapter(SamplerConfig)
SPACE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Dimension])

LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
DROPOUT = {"type": "float", "low": 0.0, "high": 0.5}
LAYERS = {"type": "int", "low": 2, "high": 4}
POLICY = {"type": "categorical", "choices": ["none", "static"]}
STEPPED = {"type": "float", "low": 0.1, "high": 0.4, "step": 0.1}

ENDLESS = {"optim.lr": LR, "model.dropout": DROPOUT}
MIXED = {**ENDLESS, "model.layers": LAYERS, "layerdrop.policy": POLICY}
FINITE = {"model.dropout": STEPPED, "model.layers": LAYERS, "layerdrop.policy": POLICY}
CONDITIONAL = {
    **FINITE,
    "model.dropout": {**STEPPED, "when": {"layerdrop.policy": "static"}},
}

FINE = {"type": "float", "low": 0.0, "high": 1.0, "step": 0.001}
HUGE = {"model.dropout": FINE, "optim.weight_decay": FINE}
ENDLESS_STEPS = {"optim.weight_decay": {**FINE, "high": 2.0, "step": 1e-9}}

CASES: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"name": "random"}, MIXED, 1),
    ({"name": "tpe", "startup_trials": 3}, MIXED, 1),
    ({"name": "tpe", "startup_trials": 3}, {**MIXED, **CONDITIONAL}, 2),
    ({"name": "tpe", "startup_trials": 3, "cost_aware": True}, MIXED, 1),
    ({"name": "gp", "startup_trials": 3}, MIXED, 1),
    ({"name": "botorch", "startup_trials": 3}, ENDLESS, 1),
    ({"name": "cmaes", "population": 3}, {**ENDLESS, "model.layers": LAYERS}, 1),
    ({"name": "cmaes", "population": 3, "margin": True}, {**ENDLESS, "model.layers": LAYERS}, 1),
    ({"name": "qmc"}, MIXED, 1),
    ({"name": "qmc", "sequence": "halton", "scramble": False}, MIXED, 1),
    ({"name": "nsga2", "population": 3}, MIXED, 2),
    ({"name": "nsga3", "population": 3}, MIXED, 2),
    ({"name": "grid"}, FINITE, 1),
    ({"name": "brute_force"}, CONDITIONAL, 1),
]
SLOW = ("gp", "botorch")  # some seconds for every few proposals


def marked(names: list[str]) -> list[Any]:
    """Return samplers' names as a test's parameters; those of slow ones are marked."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in names]


def sampler(config: dict[str, Any], space: dict[str, Any]) -> BaseSampler:
    return make_sampler(CONFIG.validate_python({"seed": 5, **config}), SPACE.validate_python(space))


def step(study: optuna.Study, space: dict[str, Any], objectives: int) -> dict[str, Any]:
    """Ask, and tell what a made-up training comes to: now and then it is pruned, or fails."""
    trial = study.ask()
    params = suggest(SPACE.validate_python(space), trial)
    ppl = (math.log10(params.get("optim.lr", 1e-3)) + 3) ** 2 + params.get("model.dropout", 0.3)
    trial.set_user_attr("device_seconds", 1.0 + params.get("model.layers", 1))
    if trial.number % 5 == 3:
        study._storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
    if trial.number % 5 == 4:
        study.tell(trial, state=TrialState.FAIL if trial.number == 4 else TrialState.PRUNED)
    else:
        study._storage.set_trial_system_attr(trial._trial_id, "constraints", [-1.0 + ppl])
        study.tell(trial, [ppl, params.get("model.layers", 2)][:objectives])
    return params


def opened(
    storage: Any, config: dict[str, Any], space: dict[str, Any], number: int, name: str = "s"
) -> Any:
    return optuna.create_study(
        study_name=name, storage=storage, sampler=sampler(config, space),
        directions=["minimize"] * number, load_if_exists=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> optuna.storages.RDBStorage:
    file = tmp_path_factory.mktemp("ledger") / "hpo.db"
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    sa.event.listen(storage.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
    return storage


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "space", "objectives"),
    [
        pytest.param(
            *case,
            id=f"{case[0]['name']}-{position}",
            marks=[pytest.mark.slow] * (case[0]["name"] in SLOW),
        )
        for position, case in enumerate(CASES)
    ],
)
def test_a_restart_before_every_trial_changes_no_proposal(
    config: dict[str, Any],
    space: dict[str, Any],
    objectives: int,
    database: optuna.storages.RDBStorage,
    request: pytest.FixtureRequest,
) -> None:
    trials = 6 if config["name"] in SLOW else 10
    study = opened(optuna.storages.InMemoryStorage(), config, space, objectives, "s")
    uninterrupted = [step(study, space, objectives) for _ in range(trials)]
    resumed = [
        step(opened(database, config, space, objectives, request.node.name), space, objectives)
        for _ in range(trials)
    ]
    assert resumed == uninterrupted
    assert len({tuple(sorted(p.items(), key=str)) for p in uninterrupted}) == trials, "twice"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", marked(["random", "tpe", "gp", "botorch", "cmaes", "qmc", "nsga2"])
)
def test_pending_trials_are_different_points(name: str) -> None:
    config = {"name": name, **({"startup_trials": 3} if name in ("tpe", *SLOW) else {})}
    study = opened(optuna.storages.InMemoryStorage(), config, ENDLESS, 1)
    for _ in range(4):
        step(study, ENDLESS, 1)
    pending = 2 if name in SLOW else 4
    space = SPACE.validate_python(ENDLESS)
    assert len({tuple(suggest(space, study.ask()).values()) for _ in range(pending)}) == pending


@pytest.mark.parametrize(
    ("name", "space", "points"), [("grid", FINITE, 24), ("brute_force", CONDITIONAL, 15)]
)
def test_a_finite_space_is_tried_once_each_and_then_no_more(
    name: str, space: dict[str, Any], points: int
) -> None:
    study = opened(optuna.storages.InMemoryStorage(), {"name": name}, space, 1)
    study.enqueue_trial({"layerdrop.policy": "none"})
    seen = []
    for _ in range(points + 1):
        trial = study.ask()
        seen.append(suggest(SPACE.validate_python(space), trial))
        check_new(study, trial)
        study.tell(trial, state=TrialState.PRUNED)
        if len({str(params) for params in seen}) == points:
            break
    assert len({str(params) for params in seen}) == points
    trial = study.ask()
    suggest(SPACE.validate_python(space), trial)
    with pytest.raises(SpaceExhausted):
        check_new(study, trial)


def test_a_rebuilt_sampler_is_optunas_own_seeded_by_trial() -> None:
    study = opened(optuna.storages.InMemoryStorage(), {"name": "tpe"}, ENDLESS, 1)
    direct = optuna.create_study()
    for number in range(15):
        direct.sampler = optuna.samplers.TPESampler(
            seed=trial_seed(5, number), multivariate=True, constant_liar=True
        )
        assert step(study, ENDLESS, 1) == step(direct, ENDLESS, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", marked(["tpe", "gp", "nsga2"]))
def test_samplers_that_know_constraints_keep_to_the_feasible_side(name: str) -> None:
    """The objective falls towards 1, and all above 0.5 breaks a constraint: read from the trial."""
    options = {"population": 6} if name == "nsga2" else {"startup_trials": 6}
    space = {"model.dropout": {**DROPOUT, "high": 1.0}, "layerdrop.p_init": {**DROPOUT}}
    study = opened(optuna.storages.InMemoryStorage(), {"name": name, **options}, space, 1)
    points = []
    for _ in range(12 if name in SLOW else 48):
        trial = study.ask()
        points.append(suggest(SPACE.validate_python(space), trial)["model.dropout"])
        broken = [points[-1] - 0.5, 0.0]
        study._storage.set_trial_system_attr(trial._trial_id, "constraints", broken)
        study.tell(trial, -points[-1])
    assert sum(point <= 0.55 for point in points[6:]) > 0.6 * len(points[6:])


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        ({"name": "cmaes"}, {"objectives": 2}, "cmaes needs one objective, and there are 2"),
        ({"name": "cmaes"}, {"constrained": True}, "cmaes ignores constraints; use tpe"),
        ({"name": "cmaes"}, {"space": MIXED}, "would draw the categorical space.layerdrop.policy"),
        ({"name": "grid"}, {"space": ENDLESS}, "cannot enumerate the floats of space.optim.lr"),
        ({"name": "brute_force"}, {"space": ENDLESS}, "give it a step, or list its values"),
        ({"name": "gp"}, {"space": CONDITIONAL}, "cannot search space.model.dropout under a"),
        (
            {"name": "grid"},
            {"space": {"optim.warmup_steps": {**LAYERS, "high": 10**9}}},
            "would list 999,999,999 points for every trial, and 100,000 are the most",
        ),
        ({"name": "grid"}, {"space": CONDITIONAL}, "use tpe, brute_force or random"),
        ({"name": "grid"}, {"space": HUGE}, "would list 1,002,001 points for every trial"),
        ({"name": "brute_force"}, {"space": ENDLESS_STEPS}, "2,000,000,001 values"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(
    config: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    given = {"objectives": 1, "constrained": False, "space": FINITE, **changes}
    space = SPACE.validate_python(given.pop("space"))
    with pytest.raises(ConfigError) as refused:
        check_sampler(CONFIG.validate_python(config), space, source="study.yaml", **given)
    assert str(refused.value).startswith(f"study.yaml: sampler.name: {config['name']} ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stepped_float_has_the_values_that_optuna_draws() -> None:
    dimension = SPACE.validate_python({"model.dropout": {**STEPPED, "low": 0.0, "high": 0.35}})
    assert dimension_values(dimension["model.dropout"]) == [0.0, 0.1, 0.2, 0.3]


def test_cost_awareness_finds_better_points_in_the_same_seconds() -> None:
    """The batch size does nothing but cost up to 32 times as much."""
    space = {**ENDLESS, "data.batch_size": {"type": "int", "low": 8, "high": 256, "log": True}}

    def search(seed: int, aware: bool) -> tuple[float, int]:
        config = {"name": "tpe", "seed": seed, "cost_aware": aware}
        study = opened(optuna.storages.InMemoryStorage(), config, space, 1)
        seconds = 0.0
        while seconds < 1500:
            trial = study.ask()
            params = suggest(SPACE.validate_python(space), trial)
            seconds += params["data.batch_size"]
            trial.set_user_attr("device_seconds", float(params["data.batch_size"]))
            distance = (math.log10(params["optim.lr"]) + 3) ** 2
            study.tell(trial, distance + (params["model.dropout"] - 0.2) ** 2)
        return study.best_value, len(study.trials)

    aware, plain = ([search(seed, flag) for seed in range(6)] for flag in (True, False))
    assert sum(n for _, n in aware) > 1.5 * sum(n for _, n in plain), "it spends less on each"
    assert statistics.median(v for v, _ in aware) < statistics.median(v for v, _ in plain)
