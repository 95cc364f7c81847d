"""Every way a trial can end, with real faults in real ranks: state and reason in the ledger."""

from __future__ import annotations

from collections import Counter

from optuna.trial import TrialState

from tests.end_to_end.desk import Desk

HUGE = 2**42  # a layer of this width fits in no memory


def test_trials_that_diverge_raise_or_run_out_of_memory_end_typed_and_the_study_goes_on(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = desk.write_study(
        sampler={"name": "random", "seed": 2},  # each ending once, the good one last
        budget={"trials": 4},
        resources={"ranks": 2},
        train={"steps": 12, "eval_every": 4},
        space={
            "optim.lr": {"type": "categorical", "choices": [1e-3, 1e30]},
            "model.d_ff": {"type": "categorical", "choices": [64, HUGE]},
            # DeepSpeed itself raises.
            "deepspeed.communication_data_type": {
                "type": "categorical",
                "choices": ["fp32", "none such"],
            },
        },
    )
    out = desk.hpo("start", str(file), *joined)
    assert "study tiny is done" in out

    endings: Counter[str] = Counter()
    for trial in desk.study().trials:
        reason = trial.user_attrs.get("reason")
        if trial.params["model.d_ff"] == HUGE:
            expected = (TrialState.PRUNED, "out_of_memory")
            assert trial.system_attrs["constraints"] == [1.0]
        elif trial.params["deepspeed.communication_data_type"] == "none such":
            expected = (TrialState.FAIL, "error")
            assert "communication_data_type" in trial.user_attrs["detail"]
            shown = desk.json("show", "tiny", str(trial.number))
            assert "Traceback" in shown["attempts"][0]["detail"]
        elif trial.params["optim.lr"] == 1e30:
            expected = (TrialState.PRUNED, "diverged")
        else:
            expected = (TrialState.COMPLETE, None)
            assert trial.value is not None
        assert (trial.state, reason) == expected
        assert trial.user_attrs["attempts"] == 1, "none of these is tried again"
        endings[str(expected[1])] += 1
    assert set(endings) == {"None", "error", "diverged", "out_of_memory"}
    assert desk.study().trials[-1].state is TrialState.COMPLETE, "by processes made anew"


def test_a_study_whose_trials_keep_raising_stops_with_status_1(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = desk.write_study(
        budget={"trials": 9},
        resources={"ranks": 1},
        train={"deepspeed": {"communication_data_type": "none such"}},
        failures={"max_failures": 2},
    )
    message = desk.hpo("start", str(file), *joined, status=1)
    assert "the last 2 trials failed" in message
    assert [trial.state for trial in desk.study().trials] == [TrialState.FAIL] * 2


def test_a_loss_past_its_limit_keeps_the_last_finite_value(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = desk.write_study(
        budget={"trials": 1},
        resources={"ranks": 1},
        # 400 steps of so large a rate: better than chance at first, then far past the limit.
        train={"steps": 400, "eval_every": 2, "loss_limit": 12.0, "optim": {"warmup_steps": 400}},
        space={"optim.lr": {"type": "float", "low": 9.0, "high": 10.0}},
    )
    desk.hpo("start", str(file), *joined, status=1)
    (trial,) = desk.study().trials
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.PRUNED, "diverged")
    assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]
