"""A user's own training function: what it yields, how it ends, what a kill leaves of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hpo.control.messages import Message
from hpo.evaluation.evaluations import plan_evaluation
from hpo.reading import tables
from hpo.reading.views import trial_config, trial_details
from hpo.service.opening import Place
from hpo.service.preflight import check_place
from hpo.study.config import StudyConfig
from hpo.study.functions import OwnFunction
from hpo.study.load import load_study, restore_study
from hpo.training import TrainingRun
from hpo.workers.failures import Failure, typed
from hpo.workers.own_run import OwnRun
from storage import Ledger
from tests.hpo.stage import Stage, play
from tests.trainer.processes import run_ranks
from trainer.config.settings import ConfigError
from trainer.engine.distributed import World
from trainer.runs.checkpoint import CheckpointError

ALONE = World(0, 1, 0, torch.device("cpu"))
STEPS, EVERY = 60, 20

RAISED = {"MemoryError": MemoryError, "SystemExit": SystemExit}

closed: list[str] = []  # by functions that were ended where they stood


def halving(config: dict[str, Any], run: TrainingRun) -> Iterator[dict[str, Any]]:
    """A loss that halves at each step; its state is written for every evaluation."""
    done, loss = 0, config["begin"]
    if run.restored:
        done, folder = run.restored
        loss = float((folder / "loss.txt").read_text())
    try:
        for step in range(done + 1, config["steps"] + 1):
            loss /= 2
            run.tick(step)
            if step % EVERY == 0:
                with run.checkpoint(step) as folder:
                    (folder / "loss.txt").write_text(repr(loss))
                yield {"step": step, "loss": loss}
    finally:
        closed.append(f"at {step}")


def forgetful(config: dict[str, Any], run: TrainingRun) -> Iterator[dict[str, Any]]:
    """It writes no checkpoint."""
    for step in range(EVERY, config["steps"] + 1, EVERY):
        yield {"step": step, "loss": 1 / step}


def late(config: dict[str, Any], run: TrainingRun) -> Iterator[dict[str, Any]]:
    """It writes its checkpoint after it has said what it measured."""
    done = run.restored[0] if run.restored else 0
    for step in range(done + EVERY, config["steps"] + 1, EVERY):
        yield {"step": step, "loss": 1 / step}
        with run.checkpoint(step):
            pass


def saying(config: dict[str, Any], run: TrainingRun) -> Iterator[Any]:
    """What the test wants it to say: values, or exceptions to be raised."""
    for said in config["says"]:
        if isinstance(said, str) and said in RAISED:
            raise RAISED[said]
        yield said


def built(folder: Path, function: Any = halving, **changes: Any) -> OwnRun:
    """An attempt at a run in `folder`."""
    own = OwnFunction(f"{__name__}:{function.__name__}", ("loss",), os.getcwd())
    document = {"steps": STEPS, "seed": 0, "begin": 1.0, "output_dir": str(folder), **changes}
    return OwnRun(own, document, ALONE, lambda step=None: None, 1, ())


def reports(run: OwnRun) -> list[tuple[str, int]]:
    """What it says to its end."""
    said = []
    while not said or said[-1][0] == "evaluated":
        report = run.advance()
        said.append((report.kind, report.step))
    run.close()
    return said


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


WHOLE = [{"step": step, "loss": 0.5**step} for step in range(EVERY, STEPS + 1, EVERY)]


def test_each_evaluation_is_a_report_and_the_last_ends_the_trial(tmp_path: Path) -> None:
    run = built(tmp_path)
    assert (run.step, run.history()) == (0, [])
    assert reports(run) == [("evaluated", 20), ("evaluated", 40), ("finished", 60)]
    assert lines(tmp_path) == WHOLE == [report.metrics for report in run.history()]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["begin"] == 1.0
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000040", "step-00000060"
    ]  # fmt: skip
    again = built(tmp_path)
    assert reports(again) == [("finished", 60)], "killed before it could say so"


def test_a_function_may_end_before_its_last_step(tmp_path: Path) -> None:
    run = built(tmp_path, saying, says=[{"step": 20, "loss": 1.0}])
    assert reports(run) == [("evaluated", 20), ("finished", 20)]


@pytest.mark.parametrize("function", [halving, forgetful, late])
def test_killed_anywhere_it_goes_on_without_gap_or_repeat(tmp_path: Path, function: Any) -> None:
    whole = [("evaluated", 20), ("evaluated", 40), ("finished", 60)]
    reports(built(tmp_path / "whole", function))
    for kill_at in range(1, 100):
        folder = tmp_path / str(kill_at)
        told = killed(folder, function, kill_at)
        if told == whole:
            break
        run = built(folder, function)
        history = [report.step for report in run.history()]
        assert history == [20, 40, 60][: len(history)]
        reported = max((step for _, step in told), default=0)
        # What was checkpointed and not reported comes first, as hpo/workers/trainable.py has it.
        told += [("evaluated", step) for step in history if reported < step < STEPS]
        goes_on = reports(run)
        if function is halving:  # the others say again what the ledger keeps once
            assert told + goes_on == whole
        assert lines(folder) == lines(tmp_path / "whole")
    assert kill_at > 5, "nothing was killed"


def killed(folder: Path, function: Any, at: int) -> list[tuple[str, int]]:
    """What a process told of its attempt before the `at`-th sync of a file killed it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        syncs, sync = iter(range(1, 10**6)), os.fsync

        def dying(handle: int) -> None:
            sync(handle)
            if next(syncs) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = dying
        run = built(folder, function)
        with suppress(BaseException):
            while True:
                report = run.advance()
                os.write(writing, f"{report.kind} {report.step}\n".encode())
                if report.kind != "evaluated":
                    break
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        return [(line.split()[0], int(line.split()[1])) for line in told]


def test_a_stop_comes_after_the_next_evaluation_and_the_trial_goes_on_from_there(
    tmp_path: Path,
) -> None:
    run = built(tmp_path)
    assert run.advance().kind == "evaluated"
    run.request_stop()
    assert (run.advance().kind, run.step) == ("stopped", 20)
    run.close()
    assert closed[-1] == "at 20", "its `finally` was run"
    goes_on = built(tmp_path)
    assert goes_on.step == 20
    assert reports(goes_on) == [("evaluated", 40), ("finished", 60)]
    assert lines(tmp_path) == WHOLE


def test_a_loss_that_is_no_number_is_divergence_and_the_last_finite_one_is_kept(
    tmp_path: Path,
) -> None:
    says = [{"step": 20, "loss": 3.0, "odd": float("nan")}, {"step": 40, "loss": float("inf")}]
    run = built(tmp_path, saying, says=says)
    assert run.advance().metrics == {"step": 20, "loss": 3.0}, "others are left out"
    report = run.advance()
    assert (report.kind, report.step, report.metrics["loss"]) == ("diverged", 40, 3.0)
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("MemoryError", "out_of_memory", "MemoryError"),
        ("SystemExit", "error", "called sys.exit(None)"),
        ("text", "error", "must yield a dict, step and metrics, not 'text'"),
        ({"loss": 1.0}, "error", "yielded no `step`, but loss"),
        ({"step": "one", "loss": 1.0}, "error", "yielded step 'one', no whole number"),
        ({"step": 20, "los": 1.0}, "error", "yielded no loss, which the study file names"),
        ({"step": 20, "loss": "low"}, "error", "yielded loss 'low', no number"),
        ({"step": 10, "loss": 1.0}, "error", "yielded step 10 after 10; steps must rise"),
        ({"step": 61, "loss": 1.0}, "error", "yielded step 61 after 10; steps must rise, from 1"),
    ],
)
def test_what_goes_wrong_has_its_typed_end_and_one_plain_line(
    tmp_path: Path, said: Any, kind: str, words: str
) -> None:
    run = built(tmp_path, saying, says=[{"step": 10, "loss": 1.0}, said])
    run.advance()
    failure = typed(run.advance)
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert words in failure.detail.splitlines()[-1]


def test_a_function_that_never_evaluates_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="saying: ended without an evaluation"):
        built(tmp_path, saying, says=[]).advance()


def test_one_that_goes_on_after_its_last_step_is_told_so(tmp_path: Path) -> None:
    says = [{"step": 60, "loss": 1.0}, {"step": 61, "loss": 1.0}]
    with pytest.raises(ConfigError, match="goes on after its last step, `steps: 60`"):
        built(tmp_path, saying, says=says).advance()


def test_a_damaged_checkpoint_is_passed_over_and_all_damaged_are_no_checkpoint(
    tmp_path: Path,
) -> None:
    reports(built(tmp_path))
    (tmp_path / "checkpoints/step-00000060/files/loss.txt").write_text("0.1")
    run = built(tmp_path)
    assert run.step == 40
    run.close()
    (tmp_path / "checkpoints/step-00000040/progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match="loss.txt is damaged"):
        built(tmp_path)


def test_another_trial_s_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    reports(built(tmp_path))
    with pytest.raises(ConfigError, match=r"begin was 1.0 and is now 2.0"):
        built(tmp_path, begin=2.0)


def two_ranks(world: World, folder: str) -> list[tuple[str, int]]:
    """Rank 1 alone is asked to stop; both do."""
    own = OwnFunction(f"{__name__}:ranked", ("loss",), os.getcwd())
    run = OwnRun(own, {"steps": 60, "output_dir": folder}, world, lambda step=None: None, 1, ())
    said = [(report.kind, report.step) for report in [run.advance()]]
    if world.rank == 1:
        run.request_stop()
    said += [(report.kind, report.step) for report in [run.advance()]]
    run.close()
    again = OwnRun(own, {"steps": 60, "output_dir": folder}, world, lambda step=None: None, 2, ())
    said.append(("restored", again.step))
    again.close()
    return said


def ranked(config: dict[str, Any], run: TrainingRun) -> Iterator[dict[str, Any]]:
    for step in range(20, 61, 20):
        total = torch.tensor(float(run.rank + 1))
        torch.distributed.all_reduce(total)
        if run.rank == 0:
            with run.checkpoint(step):
                pass
            yield {"step": step, "loss": total.item()}
        else:
            yield {"step": step}


@pytest.mark.slow
def test_ranks_stop_together_and_go_on_from_one_checkpoint(tmp_path: Path) -> None:
    told = run_ranks(2, two_ranks, str(tmp_path))
    assert told == [[("evaluated", 20), ("stopped", 20), ("restored", 20)]] * 2
    assert lines(tmp_path) == [{"step": 20, "loss": 3.0}]


MODULE = """
def train(config, run):
    yield {"step": config["steps"], "loss": config["optim"]["lr"]}

def plain(config, run):
    return {}

def narrow(config):
    yield {}
"""

STUDY: dict[str, Any] = {
    "study": "own",
    "trainer": "mine.training:train",
    "objectives": [{"metric": "loss"}],
    "budget": {"trials": 2},
    "train": {"steps": 10, "optim": {"lr": 0.1}, "layers": [1, 2]},
    "space": {"optim.lr": {"type": "float", "low": 0.1, "high": 1.0}},
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a user types, with a module of theirs."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "training.py").write_text(MODULE)
    (tmp_path / "mine" / "broken.py").write_text("import nothing_like_it\n")
    (tmp_path / "mine" / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def written(**changes: Any) -> Path:
    Path("study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
    return Path("study.yaml")


def searched(path: str, **dimension: Any) -> dict[str, Any]:
    return {"space": {path: dimension or {"type": "float", "low": 0.1, "high": 1.0}}}


def test_a_study_of_one_s_own_function_loads_and_is_kept_whole(desk: Path) -> None:
    study = load_study(written(), settings=["steps=20", "seed=3"])
    kept = restore_study(study.to_document(), "own")
    assert kept == study
    assert kept.own_function == OwnFunction("mine.training:train", ("loss",), str(desk))
    assert kept.trial_document({"optim.lr": 0.5}, "/runs/own/trial-0000") == {
        "steps": 20, "seed": 3, "optim": {"lr": 0.5}, "layers": [1, 2],
        "output_dir": "/runs/own/trial-0000",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer": "mine"}, "trainer: must be package.module:function, not 'mine'"),
        ({"trainer": "__main__:train"}, "workers cannot import what is typed or run as a script"),
        ({"trainer": "yours.training:train"}, "there is no module yours in "),
        ({"trainer": "mine.trainin:train"}, "there is no module mine.trainin in "),
        ({"trainer": "mine.broken:train"}, "mine.broken cannot be imported: ModuleNotFoundError"),
        ({"trainer": "mine.leaving:train"}, "mine.leaving cannot be imported: SystemExit: 0"),
        ({"trainer": "mine.training:tran"}, "training.py has no tran"),
        ({"trainer": "mine.training:plain"}, "training.py is no generator function"),
        ({"trainer": "mine.training:narrow"}, "with two arguments: def narrow(config, run)"),
        ({"train": {"optim": {"lr": 0.1}}}, "train: steps: is required and was not given"),
        ({"train": {"steps": 0}}, "train: steps: must be greater than or equal to 1, not 0"),
        ({"train": {"steps": 9, "output_dir": "x"}}, "output_dir: is set by the service itself"),
        ({"objectives": [{"metric": "step"}]}, "objectives.0.metric: 'step' is no metric"),
        (searched("recipe"), "is a comparison's own name"),
        (searched("output_dir"), "is set by the service itself and cannot be searched"),
        (searched("optim..lr"), "must be keys with a dot between each two"),
        (searched("steps.more"), "steps is 10 in `train`, and no section"),
        (searched("optim"), "is a section of `train`; search one of its keys"),
        (searched("steps"), "steps: must be a valid integer"),
        ({"pruner": {"name": "median", "unit": "tokens", "min_tokens": 9}}, "must be steps, not"),
        (
            {"schedule": {"population": 2, "interval_steps": 5}, "budget": {"trials": 9}},
            "schedule: trials",
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(desk: Path, changes: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_study(written(**changes))
    assert str(refused.value).startswith("study.yaml: ")
    assert words in str(refused.value)


def test_an_objective_of_one_s_own_must_be_named(desk: Path) -> None:
    file = written()
    document = yaml.safe_load(file.read_text())
    del document["objectives"]
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=r"study.yaml: objectives: is required with `trainer`"):
        load_study(file)


def test_a_setting_typed_must_be_in_train(desk: Path) -> None:
    with pytest.raises(ConfigError, match="stepss: `train` has no such key; did you mean steps"):
        load_study(written(), settings=["stepss=3"])


def test_resumed_elsewhere_a_study_is_refused_before_anything_is_dispatched(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(written())
    check_place(study, Place(None), "runs")
    with pytest.raises(ConfigError, match=r"--runs s3://b/p: a study with `trainer` keeps"):
        check_place(study, Place(None), "s3://b/p")
    elsewhere = desk / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(desk)])
    for name in ("mine", "mine.training"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError) as refused:
        check_place(study, Place(None), "runs")
    assert str(refused.value) == (
        "study own: trainer: mine.training:train: there is no module mine in "
        f"{elsewhere}, nor is it installed; type the command in the folder that holds it"
    )


def test_what_a_function_did_wrong_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    play(stage.controller(), Message("error", detail="ConfigError: my.t:train: yielded no loss"))
    tables.trial(trial_details(stage.ledger, "played", 0))
    assert "ConfigError: my.t:train: yielded no loss" in capsys.readouterr().out


def test_the_ledger_shows_such_a_study_and_no_evaluation_is_made_of_it(desk: Path) -> None:
    stage = Stage(f"sqlite:///{desk}/hpo.db", **{**STUDY, "study": "played"})
    ledger: Ledger = stage.ledger
    controller = stage.controller()
    assignment = controller.next()
    assert assignment is not None
    assert isinstance(stage.config, StudyConfig)
    shown = trial_config(ledger, "played", 0)
    assert "# For mine.training:train; `python -m trainer` does not train it.\n" in shown
    config = yaml.safe_load(shown)
    assert config["optim"] == assignment.config["optim"]
    with pytest.raises(ConfigError, match="is trained by mine.training:train"):
        plan_evaluation(ledger, "played", 1, 1)
