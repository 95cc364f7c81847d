"""Spaces in which some settings are searched only when others call for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hpo.control.attempts import TrialAttempt
from hpo.control.messages import Message
from hpo.search.points import point_by_hand
from hpo.search.space import Dimension, suggest
from hpo.service.teachers import with_teachers
from hpo.study.load import load_study, restore_study
from tests.hpo.stage import Stage, finish, ppl
from tests.hpo.study_files import refusal, written
from trainer.config.plain import typed

POLICY = {"type": "categorical", "choices": ["none", "static", "linear"]}
DROP = {"type": "float", "low": 0.1, "high": 0.4}
GENTLE = {"type": "categorical", "choices": {"off": {}, "gentle": {"policy": "linear"}}}


def when(dimension: dict[str, Any], **parents: Any) -> dict[str, Any]:
    """`dimension` on condition of `parents`, whose names have __ for a dot."""
    return {**dimension, "when": {path.replace("__", "."): v for path, v in parents.items()}}


@st.composite
def spaces(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, int]]:
    """A space whose dimensions wait for any of those before, in any order, and a value for each."""
    paths = [f"path{number}" for number in range(draw(st.integers(1, 7)))]
    values = st.lists(st.integers(0, 2), min_size=1, max_size=2)
    document = {
        path: {
            "type": "categorical",
            "choices": [0, 1, 2],
            "when": draw(st.dictionaries(st.sampled_from(paths[:position]), values, max_size=2))
            if position
            else {},
        }
        for position, path in enumerate(paths)
    }
    shuffled = {path: document[path] for path in draw(st.permutations(paths))}
    return shuffled, {path: draw(st.integers(0, 2)) for path in paths}


@given(spaces())
def test_a_trial_has_what_its_own_values_call_for_and_nothing_else(
    drawn: tuple[dict[str, Any], dict[str, int]],
) -> None:
    document, values = drawn

    def called_for(path: str) -> bool:
        conditions = document[path]["when"].items()
        return all(called_for(parent) and values[parent] in wanted for parent, wanted in conditions)

    space = TypeAdapter(dict[str, Dimension]).validate_python(document)
    expected = {path: value for path, value in values.items() if called_for(path)}
    assert suggest(space, optuna.trial.FixedTrial(values)) == expected  # type: ignore[arg-type]


def test_a_condition_on_a_fixed_setting_is_decided_when_the_study_is_loaded(tmp_path: Path) -> None:
    space = {"layerdrop.p_init": when(DROP, layerdrop__policy="static")}
    message = refusal(tmp_path, space=space)
    assert message == (
        "space.layerdrop.p_init.when.layerdrop.policy: can never be met: layerdrop.policy is "
        "'none' in every trial"
    )
    study = load_study(written(tmp_path, space=space), settings=["layerdrop.policy=static"])
    trial = optuna.trial.FixedTrial({"layerdrop.p_init": 0.2})
    assert suggest(study.space, trial) == {"layerdrop.p_init": 0.2}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"layerdrop.p_init": when(DROP, layerdrop__polic="static")},
            "space.layerdrop.p_init.when.layerdrop.polic: no such train setting; did you mean "
            "layerdrop.policy?",
        ),
        (
            {"layerdrop.p_init": when(DROP, layerdrop__policy="stat")},
            "space.layerdrop.p_init.when.layerdrop.policy: 'stat' does not fit layerdrop.policy: ",
        ),
        (
            {"layerdrop.p_init": when(DROP, layerdrop__policy="sbld"), "layerdrop.policy": POLICY},
            "space.layerdrop.p_init.when.layerdrop.policy: space.layerdrop.policy "
            "has no choice 'sbld'",
        ),
        (
            {"layerdrop.p_init": when(DROP, optim__lr=0.1), "optim.lr": DROP},
            "space.layerdrop.p_init.when.optim.lr: space.optim.lr has no choice 0.1",
        ),
        (
            {"layerdrop.p_init": when(DROP, layerdrop__policy=[])},
            "space.layerdrop.p_init.when.layerdrop.policy: Tuple should have at least 1 item",
        ),
        (
            {
                "layerdrop.policy": when(POLICY, model__layers=2),
                "model.layers": when(
                    {"type": "int", "low": 2, "high": 4}, layerdrop__policy="none"
                ),
            },
            "space: conditions go in a circle: layerdrop.policy -> model.layers -> "
            "layerdrop.policy",
        ),
        (
            {
                "layerdrop.policy": POLICY,
                "layerdrop.p_init": when(DROP, layerdrop__policy="static", optim__name="lion"),
                "optim.name": when(
                    {"type": "categorical", "choices": ["adamw", "lion"]}, layerdrop__policy="none"
                ),
            },
            "space.layerdrop.p_init: 0.1: no trial could have it",
        ),
        (
            {"layerdrop": GENTLE, "layerdrop.p_init": DROP},
            "space.layerdrop: overlaps space.layerdrop.p_init: search the one or the other",
        ),
        (
            {"layerdrop": GENTLE, "optim.lr": when(DROP, layerdrop__policy="linear")},
            "space.optim.lr.when.layerdrop.policy: is set by the choices of space.layerdrop",
        ),
        (
            {"layerdrop": {"type": "categorical", "choices": {"a": {"policyy": "none"}}}},
            "space.layerdrop.choices.a.policyy: no such train setting; did you mean "
            "layerdrop.policy?",
        ),
        (
            {"layerdrop": {"type": "categorical", "choices": {"a": {"p_init": 2}}}},
            "space.layerdrop.choices.a.p_init: 2 does not fit layerdrop.p_init: must be ",
        ),
        (
            {"layerdrop": {"type": "categorical", "choices": {"a": 3}}},
            "space.layerdrop.choices.a: must be a valid dictionary, not 3",
        ),
        (
            {"layerdrop": {"type": "categorical", "choices": {}}},
            "space.layerdrop.choices: Dictionary should have at least 1 item",
        ),
        (
            {"layerdrop": POLICY},
            "space.layerdrop: is a section; search one of its settings, or give choices with names",
        ),
        (
            {"layerdrop.policy": GENTLE},
            "space.layerdrop.policy.choices: layerdrop.policy is one setting; give a list",
        ),
        (
            {"model": {"type": "categorical", "choices": {"a": {"heads": 4}, "b": {"heads": 3}}}},
            "space.model: b: model: heads: 3 does not divide d_model 64",
        ),
        (
            {"layerdrop.analysis_steps": {"type": "int", "low": 2, "high": 80},
             "layerdrop.policy": {"type": "categorical", "choices": ["sbld"]}},
            "space.layerdrop.analysis_steps: 80: layerdrop.analysis_steps: 80 steps from ",
        ),
        (
            {"data.batch_size": {"type": "categorical", "choices": [8, 7]},
             "optim.accumulation": {"type": "categorical", "choices": [2, 4]}},
            "space.data.batch_size: 7: data.batch_size: 7 sequences cannot be cut into ",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_space_is_named_with_its_key(
    tmp_path: Path, space: dict[str, Any], words: str
) -> None:
    assert refusal(tmp_path, space=space).startswith(words)


def test_a_combination_that_no_trial_could_train_is_said(tmp_path: Path) -> None:
    momentum = {"type": "float", "low": 0.8, "high": 0.99}
    space = {
        "optim.name": {"type": "categorical", "choices": ["adamw", "muon"]},
        "optim.momentum": when(momentum, optim__name="muon"),
        "deepspeed.zero_stage": {"type": "categorical", "choices": [0, 2]},
        "optim.weight_decay": when(DROP, deepspeed__zero_stage=0),
    }
    message = refusal(tmp_path, space=space)
    assert message.startswith("space: deepspeed.zero_stage=2, optim.name=muon: optim.name: muon ")
    stages = {"type": "categorical", "choices": [1, 2]}
    space["deepspeed.zero_stage"] = when(stages, optim__name="adamw")
    del space["optim.weight_decay"]
    train = {"steps": 20, "deepspeed": {"zero_stage": 0}}
    assert load_study(written(tmp_path, space=space, train=train))


def test_a_named_choice_sets_its_settings_and_leaves_the_others(tmp_path: Path) -> None:
    train = {"layerdrop": {"policy": "cosine", "p_init": 0.3}}
    space = {"layerdrop": GENTLE, "optim.lr": when(DROP, layerdrop="gentle")}
    study = load_study(written(tmp_path, train=train, space=space))
    assert restore_study(study.to_document(), study.study) == study
    for name, policy in (("off", "cosine"), ("gentle", "linear")):
        document = study.trial_document({"layerdrop": name}, "x")
        assert document["layerdrop"] == {**study.train["layerdrop"], "policy": policy}


def test_an_orphan_goes_on_with_what_its_values_called_for(tmp_path: Path) -> None:
    space = {
        "optim.momentum": when({"type": "float", "low": 0.8, "high": 0.99}, layerdrop="gentle"),
        "layerdrop": {"type": "categorical", "choices": {"gentle": {"policy": "linear"}}},
        "optim.lr": when(DROP, layerdrop="hard"),
    }
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db", space=space)
    orphan = stage.controller().next()
    assert isinstance(orphan, TrialAttempt)
    assert orphan.params.keys() == {"layerdrop", "optim.momentum"}
    assert orphan.config["layerdrop"]["policy"] == "linear"
    stage.lapse()
    heir = stage.controller()
    adopted = heir.next()
    assert isinstance(adopted, TrialAttempt)
    assert (adopted.params, adopted.config) == (orphan.params, orphan.config)
    heir.handle(0, 2, Message("finished", 300, ppl(1.0)))
    assert finish(heir) == 1
    assert [t.params.keys() for t in stage.trials] == [orphan.params.keys()] * 2


def test_teachers_named_by_a_choice_are_trained_and_its_conditions_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))
    for steps in (7, 8):
        (tmp_path / f"{steps}.yaml").write_text(f"steps: {steps}")
    named = {"off": {}, "kd": {"enabled": True, "teacher": "7.yaml"}}
    file = written(tmp_path, space={"distillation": {"type": "categorical", "choices": named}})
    study, (teacher,) = with_teachers(load_study(file), str(file))
    assert study.trial_document({"distillation": "kd"}, "x")["distillation"]["teacher"] == (
        teacher.folder
    )
    teachers = {"type": "categorical", "choices": ["7.yaml", "8.yaml"]}
    space = {
        "distillation.enabled": {"type": "categorical", "choices": [True, False]},
        "distillation.teacher": when(teachers, distillation__enabled=True),
        "distillation.beta": when(DROP, distillation__teacher="8.yaml"),
    }
    file = written(tmp_path, space=space)
    study, trained = with_teachers(load_study(file), str(file))
    assert study.space["distillation.beta"].when["distillation.teacher"] == (trained[1].folder,)


def test_the_guide_s_examples_of_conditions_and_constraints_load(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "docs/searching.md").read_text()
    blocks = re.findall(r"^```yaml\n((?:space|objectives|repeats):.*?)^```", readme, re.M | re.S)
    shown = {key: value for block in blocks for key, value in typed(block).items()}
    study = load_study(written(tmp_path, **shown))
    assert study.space["optim.warmup_steps"].when == {"model": ("large",)}
    assert (study.repeats, study.budget.device_hours) == (3, 20)
    assert [str(constraint) for constraint in study.constraints] == [
        "peak_memory_bytes <= 4e+10",
        "tokens_per_second >= 100",
    ]


def test_a_choice_may_be_a_list_which_trials_know_by_its_text(tmp_path: Path) -> None:
    betas = {"type": "categorical", "choices": [[0.9, 0.95], [0.9, 0.999]]}
    study = load_study(written(tmp_path, space={"optim.betas": betas}))
    assert restore_study(study.to_document(), study.study) == study
    resources = {"concurrent_trials": 2}
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db", space={"optim.betas": betas}, resources=resources)
    stage.ledger.enqueue(
        stage.record, [point_by_hand(study.space, ["optim.betas=[0.9, 0.999]"], "tiny")]
    )
    controller = stage.controller()
    trained = []
    for _ in range(2):
        assignment: Any = controller.next()
        trained.append(assignment.assignment.document["optim"]["betas"])
    assert trained == [[0.9, 0.999], [0.9, 0.95]]
    assert [trial.params for trial in stage.trials] == [
        {"optim.betas": "[0.9, 0.999]"}, {"optim.betas": "[0.9, 0.95]"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ([[0.9]], "space.optim.betas: [0.9] does not fit optim.betas: "),
        ([[0.9, 0.99], [0.9, 0.99]], "choices: '[0.9, 0.99]' is listed twice"),
        ([{"a": 1}], "choices.0: give choices that are sections names, {type: categorical, "),
    ],
)
def test_a_choice_that_could_not_be_trained_is_refused(
    tmp_path: Path, choices: list[Any], said: str
) -> None:
    space = {"optim.betas": {"type": "categorical", "choices": choices}}
    assert said in refusal(tmp_path, space=space)
