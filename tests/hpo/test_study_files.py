"""Study files: what ships loads, and every mistake is one line that says what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hpo.search.space import Dimension, check_space
from hpo.study.load import find_study_file, load_study, restore_study, shipped
from tests.hpo.study_files import STUDY, refusal, written
from trainer.config.settings import ConfigError
from trainer.config.train import load, train_paths

# A billion values in a hundred characters.
BOMB = "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 10}]\n" for n in range(9))


def dimension(**changes: Any) -> dict[str, Any]:
    return {"space": {"optim.lr": {"type": "float", "low": 0.1, "high": 0.2, **changes}}}


def depth_objective(metric: str, **changes: Any) -> dict[str, Any]:
    train = {**STUDY["train"], "evaluation": {"depths": [2, 3]}}
    return {"objectives": [{"metric": metric, **changes}], "train": train}


@pytest.mark.parametrize("file", sorted(shipped("studies").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_study_that_ships_loads(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # PTB is not in the package.
    for check in ("check_data", "check_length"):
        monkeypatch.setattr(f"hpo.study.checks.{check}", lambda config: None)
    study = load_study(find_study_file(file.stem))
    assert restore_study(study.to_document(), study.study) == study


@pytest.mark.parametrize("file", sorted(shipped("train").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_train_config_that_ships_loads(file: Path) -> None:
    assert load(file).steps > 0


def test_the_default_study_is_the_quickstart() -> None:
    study = load_study(find_study_file(None))
    assert (study.study, study.budget.trials) == ("quickstart", 12)
    assert study.resources.concurrent_trials == 2


def test_a_study_in_the_ledger_holds_no_storage_url(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, storage="postgresql://me:hunter2@host/db"))
    assert "hunter2" not in study.to_document()
    assert study.storage is not None


def test_settings_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    study = load_study(
        written(tmp_path), settings=["steps=7", "optim.grad_clip=0.5"], trials=5, name="n"
    )
    assert (study.train["steps"], study.train["optim"]["grad_clip"]) == (7, 0.5)
    assert (study.budget.trials, study.study) == (5, "n")


def test_a_setting_that_no_trial_would_see_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_study(file, settings=["optim.lr=2e-4"])
    assert str(refused.value).startswith(f"--set optim.lr: {file} searches it in every trial")
    sometimes = {"layerdrop.policy": {"type": "categorical", "choices": ["static", "none"]}}
    sometimes["layerdrop.p_init"] = {
        "type": "float", "low": 0.1, "high": 0.3, "when": {"layerdrop.policy": "static"},
    }  # fmt: skip
    study = load_study(written(tmp_path, space=sometimes), settings=["layerdrop.p_init=0.2"])
    assert study.train["layerdrop"]["p_init"] == 0.2


def test_a_trials_config_is_the_studys_with_its_parameters(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    document = study.trial_document({"optim.lr": 0.5}, "runs/tiny/trial-0003")
    assert (document["optim"]["lr"], document["threads"]) == (0.5, 1)
    assert document["output_dir"] == "runs/tiny/trial-0003"
    assert study.train["optim"]["lr"] != 0.5


def test_a_searched_path_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    space = {"optim.lrr": {"type": "float", "low": 0.1, "high": 0.2}}
    message = refusal(tmp_path, space=space)
    assert message == "space.optim.lrr: no such train setting; did you mean optim.lr?"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgett": {}}, "budgett: no such setting; did you mean budget?"),
        ({"budget": {"trial": 3}}, "budget.trial: no such setting; did you mean trials?"),
        ({"budget": {"trials": 0}}, "budget.trials: must be greater than or equal to 1, not 0"),
        ({"budget": {"trials": "many"}}, "budget.trials: must be a valid integer"),
        ({"budget": 3}, "budget: must be a valid dictionary"),
        ({"sampler": {"name": "tpee"}}, "sampler.name: there is no 'tpee'; did you mean tpe?"),
        ({"sampler": {"name": "gp", "startup": 3}}, "sampler.startup: no such setting; did you"),
        ({"sampler": {"name": "nsga2", "population": 1}}, "sampler.population: must be greater"),
        ({"sampler": {"name": "grid"}}, "sampler.name: grid cannot enumerate the floats of space"),
        ({"pruner": {"name": "asha", "unit": "tokens"}}, "pruner: unit: tokens needs min_tokens"),
        ({"pruner": {"name": "median", "min_tokens": 9}}, "pruner: min_tokens: needs unit: tokens"),
        ({"pruner": {"name": "threshold"}}, "pruner: needs lower, upper or both"),
        (
            {"pruner": {"name": "median", "metric": "valid_pl"}},
            "pruner.metric: there is no 'valid_pl'; did you mean valid_ppl?",
        ),
        (
            {"pruner": {"name": "patient", "pruner": {"name": "ashaa"}}},
            "pruner.pruner.name: there is no 'ashaa'; did you mean asha?",
        ),
        ({"pruner": {"name": "ashaa"}}, "pruner.name: there is no 'ashaa'; did you mean asha?"),
        ({"pruner": {"min_steps": 3}}, "pruner.name: is required and was not given"),
        (
            {"pruner": {"name": "asha", "min_stepss": 3}},
            "pruner.min_stepss: no such setting; did you mean min_steps?",
        ),
        ({"pruner": {"name": "asha", "reduction_factor": 1}}, "pruner.reduction_factor: must be"),
        (dimension(step=1e-30), "space.optim.lr: step 1e-30 is too fine from 0.1 to 0.2"),
        (dimension(step=float("inf")), "space.optim.lr.step: must be a finite number, not inf"),
        (dimension(low=-1e308, high=1e308), "space.optim.lr: low -1e+308 and high 1e+308 are too"),
        ({"budget": {"trials": 10**30}}, "budget.trials: must be less than or equal to 1000000000"),
        ({"budget\x1b[2J\n": 3}, "budget\\x1b[2J\\n: no such setting"),
        (dimension(low=0.3), "space.optim.lr: low 0.3 is above high 0.2"),
        (dimension(low=0.2), "space.optim.lr: low and high are both 0.2"),
        (dimension(low=0.0, log=True), "space.optim.lr: low 0 has no logarithm"),
        (dimension(low=float("nan")), "space.optim.lr.low: must be a finite number"),
        (dimension(low=-0.5), "space.optim.lr: -0.5 does not fit optim.lr: must be greater than 0"),
        (dimension(lowest=1), "space.optim.lr.lowest: no such setting; did you mean low?"),
        (dimension(type="flot"), "space.optim.lr.type: there is no 'flot'; did you mean float?"),
        (dimension(log=True, step=0.1), "space.optim.lr: log and step cannot go together"),
        (
            {"space": {"steps": {"type": "float", "low": 1, "high": 9}}},
            "space.steps: 4.31370848 does not fit steps: must be a valid integer",
        ),
        (
            {"space": {"layerdrop.policy": {"type": "categorical", "choices": ["none", "lin"]}}},
            "space.layerdrop.policy: 'lin' does not fit layerdrop.policy: must be 'none', ",
        ),
        (
            {"space": {"layerdrop.policy": {"type": "categorical", "choices": []}}},
            "space.layerdrop.policy.choices: List should have at least 1 item",
        ),
        (
            {"space": {"output_dir": {"type": "categorical", "choices": ["a"]}}},
            "space.output_dir: is set by the service itself",
        ),
        ({"space": {}}, "space: Dictionary should have at least 1 item"),
        ({"study": "../x"}, "study: '../x' is no name for a study: use up to 100 letters"),
        ({"study": "x" * 300}, f"study: '{'x' * 40}'... is no name for a study"),
        ({"train": {"optim": {"lrr": 1}}}, "train: optim.lrr: no such setting; did you mean lr?"),
        ({"train": {"model": {"heads": 3}}}, "train: model: heads: 3 does not divide d_model 64"),
        (
            {"objectives": [{"metric": "valid_pplx"}]},
            "objectives.0.metric: there is no 'valid_pplx'; did you mean valid_ppl?",
        ),
        (
            {"objectives": [{"metric": "valid_ppl_depth_0"}]},
            "objectives.0.metric: there is no 'valid_ppl_depth_0'; did you mean valid_ppl_depth_N?",
        ),
        (
            depth_objective("valid_ppl_depth_4"),
            "objectives.0.metric: valid_ppl_depth_4 needs 4 in evaluation.depths of the train "
            "config, which is [2, 3]",
        ),
        (
            depth_objective("depth_front_hypervolume", direction="maximize"),
            "objectives.0.metric: depth_front_hypervolume needs evaluation.depths and ",
        ),
        (
            depth_objective("depth_front_hypervolume"),
            "objectives.0: direction: a larger depth_front_hypervolume is better; use maximize",
        ),
        (
            {**depth_objective("valid_ppl_depth_2"), "pruner": {"name": "asha"}},
            "pruner.name: asha compares valid_ppl_depth_2 while trials run; set "
            "evaluation.depths_at: each in the train config, or use none",
        ),
        (
            {
                **depth_objective("valid_ppl_depth_2"),
                "space": {"model.layers": {"type": "int", "low": 2, "high": 6}},
            },
            "space.model.layers: 2: evaluation.depths: 3 is more than the model's 2 layers",
        ),
        (
            {"space": {"evaluation.depths_at": {"type": "categorical", "choices": ["end"]}}},
            "space.evaluation.depths_at: is how trials are compared",
        ),
        (
            {"objectives": [{}, {"metric": "step_seconds"}], "pruner": {"name": "asha"}},
            "pruner.name: asha needs one objective, and there are 2; name a pruner.metric",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert refusal(tmp_path, **changes).startswith(words)


def test_what_a_depth_front_measures_may_be_an_objective(tmp_path: Path) -> None:
    evaluation = {"depths": [2], "depths_at": "each", "reference": {"depth": 5, "ppl": 900}}
    study = load_study(
        written(
            tmp_path,
            pruner={"name": "asha"},
            train={**STUDY["train"], "evaluation": evaluation},
            objectives=[{"metric": "depth_front_hypervolume", "direction": "maximize"}],
        )
    )
    assert restore_study(study.to_document(), study.study) == study
    assert load_study(written(tmp_path, **depth_objective("valid_ppl_depth_3"))).objectives


def test_ranks_that_cannot_share_the_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.batch_size: 16 sequences cannot be shared by 3"):
        load_study(written(tmp_path, resources={"ranks": 3}))


def test_data_that_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPO_DATA_DIR", raising=False)
    with pytest.raises(ConfigError, match="HPO_DATA_DIR"):
        load_study(written(tmp_path, train={"data": {"name": "ptb"}}))


def test_a_train_config_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: no such file"):
        load_study(written(tmp_path, train="nowhere.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study: [", "not valid YAML"),
        ("- 1\n- 2\n", "must hold settings"),
        ("", "must hold settings"),
        ("study: a\nstudy: b\n", "line 2: not valid YAML: key 'study' is given twice"),
        ("study: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("[a, b]: 1\n", "not valid YAML"),
        ("study: !!binary aGk=\n", "could not determine a constructor for the tag"),
        (BOMB, "line 6: not valid YAML: more than 100,000 values, or 32 levels"),
        ("a: &a [*a]\n", "or 32 levels, with its aliases written out"),
        ("[" * 5000, "not valid YAML"),
        ('study: "\\ud800"', "a character that no text has"),
        ('study: "\\0"', "a character that no text has"),
        ("#" * 300_000, "no settings are longer than 200,000 characters"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_one_line(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        load_study(file)
    assert "\n" not in str(refused.value)


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    choices = "{type: categorical, choices: [1e-3, 5E-4]}"
    file.write_text(f"study: s\ntrain: {{}}\nspace: {{optim.lr: {choices}}}\n")
    assert load_study(file).space["optim.lr"].probes() == [1e-3, 5e-4]


@settings(deadline=None)
@given(st.sampled_from(train_paths()), st.data())
def test_a_misspelt_path_never_passes(path: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(path) - 1))
    wrong = path[:position] + path[position + 1 :]
    space = TypeAdapter(dict[str, Dimension]).validate_python(
        {wrong: {"type": "float", "low": 0.1, "high": 0.2}}
    )
    if wrong not in train_paths() and not wrong.startswith("deepspeed."):
        with pytest.raises(ConfigError, match="no such train setting"):
            check_space(space, "study.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constraints": [{"metric": "valid_ppl", "max": 9}] * 2}, "valid_ppl <= 9 is there twice"),
        ({"objectives": [{"metric": "valid_ppl"}] * 2}, "objectives: valid_ppl is there twice"),
    ],
)
def test_what_is_said_twice_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, **changes)


def test_a_range_may_end_between_two_steps() -> None:
    space = TypeAdapter(dict[str, Dimension]).validate_python(
        {
            "optim.warmup_steps": {"type": "int", "low": 10, "high": 95, "step": 20},
            "model.dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.2},
        }
    )
    assert [d.probes()[-1] for d in space.values()] == [90, 0.4]
