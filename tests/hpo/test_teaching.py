"""Teachers in a study, without Ray: how they are named, and trained before the first trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.service.teachers import with_teachers
from hpo.study.load import load_study
from storage import Reason, TeacherRecord, TeacherState
from tests.hpo.stage import Stage, Watcher, finish
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig
from trainer.runs.lock import folder_lock

KEY = "0a1b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run folder of the teacher `KEY`."""
    return tmp_path / "teachers" / KEY


def planned(folder: Path) -> TeacherRecord:
    return TeacherRecord(KEY, str(folder), TrainConfig(steps=30).to_yaml(), 30)


def train(folder: Path) -> None:
    """Leave what a trained run leaves."""
    (folder / "checkpoints" / "step-00000030").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"kind": "finished"}))


def teach(controller: Controller, *messages: Message) -> int:
    """Run one attempt at the teacher that says `messages`; the attempt's number."""
    lesson = controller.next()
    assert lesson is not None
    assert lesson.assignment.job == KEY
    assert controller.next() is None, "one is trained at a time, and no trial beside it"
    assert not controller.look_for_end()
    for message in messages:
        controller.handle(KEY, lesson.assignment.attempt, message)
    return lesson.assignment.attempt


def test_no_trial_starts_before_the_teacher_is_trained(url: str, folder: Path) -> None:
    watcher = Watcher()
    stage = Stage(url, [planned(folder)], resources={"cpus_per_rank": 2, "concurrent_trials": 2})
    controller = stage.controller(watcher)
    lesson = controller.next()
    assert lesson is not None
    assert (lesson.assignment.document["output_dir"], lesson.assignment.document["threads"]) == (
        str(folder),
        2,
    )
    assert controller.next() is None
    assert controller.handle(KEY, 1, Message("evaluated", 20)) is True
    assert stage.trials == []
    assert controller.handle(KEY, 1, Message("finished", 30)) is False
    finish(controller)
    told = [("teacher", "training", 0, None), ("teacher", "training", 20, None),
            ("teacher", "trained", 30, None), ("begin", 0, 1)]  # fmt: skip
    assert watcher.seen[:4] == told
    assert stage.ledger.study("played").reserved_trials == 1
    assert stage.trials[0].user_attrs["attempts"] == 1
    assert controller.handle(KEY, 1, Message("finished", 30)) is False, "said again"


def test_a_teacher_trained_by_somebody_is_reused(url: str, folder: Path) -> None:
    train(folder)
    stage = Stage(url, [planned(folder)])
    finish(stage.controller())
    (teacher,) = stage.ledger.teachers(stage.record)
    assert (teacher.state, teacher.attempts, teacher.step) == (TeacherState.REUSED, 0, 30)


def test_a_teacher_that_another_process_trains_is_waited_for_and_then_reused(
    url: str, folder: Path
) -> None:
    watcher = Watcher()
    stage = Stage(url, [planned(folder)])
    controller = stage.controller(watcher)
    # The other process is a moment faster: it has the lock when our attempt asks for it.
    teach(controller, Message("busy"))
    folder.mkdir(parents=True)
    with folder_lock(folder, 0):
        assert controller.next() is None
        assert controller.next() is None
        assert not controller.look_for_end()
        train(folder)
    finish(controller)
    states = [seen[1] for seen in watcher.seen if seen[0] == "teacher"]
    assert states == ["training", "waiting", "waiting", "reused"], "it says once that it waits"


def test_a_teacher_goes_on_after_a_stop_and_after_a_kill(url: str, folder: Path) -> None:
    stage = Stage(url, [planned(folder)])
    stopped = stage.controller()
    assert stopped.next() is not None
    stopped.stopping = True
    assert not stopped.look_for_end(), "its attempt has not ended yet"
    stopped.handle(KEY, 1, Message("stopped", 7))
    assert stopped.look_for_end()
    (teacher,) = stage.ledger.teachers(stage.record)
    assert (teacher.state, teacher.reason, teacher.step) == ("waiting", Reason.STOPPED, 7)
    stage.ledger.release(stopped.leased.lease)
    killed = stage.controller()
    assert killed.next() is not None
    stage.lapse()
    heir = stage.controller()
    assert killed.handle(KEY, 2, Message("finished", 30)) is False
    assert teach(heir, Message("finished", 30)) == 3
    finish(heir)


def test_a_lost_worker_is_tried_again_and_then_ends_the_study(url: str, folder: Path) -> None:
    stage = Stage(url, [planned(folder)], failures={"max_retries": 1})
    controller = stage.controller()
    teach(controller, Message("worker_lost", detail="rank 1 died"))
    teach(controller, Message("worker_lost", detail="Traceback\nrank 1 died"))
    assert controller.next() is None
    assert controller.look_for_end()
    assert controller.failing
    assert controller.gave_up == f"its teacher {KEY} failed (worker_lost): rank 1 died"
    assert stage.trials == []
    stage.lapse()
    mended = stage.controller()
    teach(mended, Message("finished", 30))
    finish(mended)


@pytest.mark.parametrize("kind", ["diverged", "out_of_memory", "error"])
def test_a_teacher_that_fails_ends_the_study_with_a_typed_reason(
    url: str, folder: Path, kind: Any
) -> None:
    stage = Stage(url, [planned(folder)])
    controller = stage.controller()
    teach(controller, Message(kind, 12))
    assert controller.look_for_end()
    assert controller.gave_up == f"its teacher {KEY} failed ({kind})"
    (teacher,) = stage.ledger.teachers(stage.record)
    assert (teacher.state, teacher.reason, teacher.step) == ("failed", Reason(kind), 12)


def test_a_study_whose_budget_is_spent_trains_no_teacher(url: str, folder: Path) -> None:
    stage = Stage(url, [planned(folder)], budget={"trials": 1})
    train(folder)
    controller = stage.controller()
    finish(controller)
    stage.ledger.release(controller.leased.lease)
    (folder / "result.json").unlink()
    stage.record = stage.ledger.study("played")
    again = stage.controller()
    assert again.next() is None
    assert again.look_for_end()


def write(file: Path, document: dict[str, Any]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(document))
    return file


def study_file(tmp_path: Path, train: dict[str, Any], **space: Any) -> Path:
    lr = {"type": "float", "low": 1e-4, "high": 1e-2}
    document = {"study": "taught", "train": train, "space": {"optim.lr": lr, **space}}
    return write(tmp_path / "study.yaml", document)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_study_keeps_the_folder_that_its_teacher_s_content_names(
    tmp_path: Path, cache: Path
) -> None:
    teacher = write(tmp_path / "train" / "teacher.yaml", {"steps": 7})
    student = {"distillation": {"enabled": True, "teacher": "teacher.yaml"}}
    write(tmp_path / "train" / "student.yaml", student)
    file = study_file(tmp_path, {})
    file.write_text(file.read_text().replace("train: {}", "train: train/student.yaml"))
    study, teachers = with_teachers(load_study(file), str(file))
    (planned,) = teachers
    assert Path(planned.folder) == cache / "teachers" / planned.key
    assert study.trial_document({}, "x")["distillation"]["teacher"] == planned.folder
    assert yaml.safe_load(planned.config)["steps"] == planned.steps == 7
    write(teacher, {"steps": 8})
    assert with_teachers(load_study(file), str(file))[1][0].key != planned.key
    typed = load_study(file, settings=["distillation.enabled=false"])
    assert with_teachers(typed, str(file))[1] == []


def test_every_teacher_that_a_study_searches_is_to_be_trained(tmp_path: Path, cache: Path) -> None:
    for steps in (7, 8):
        write(tmp_path / f"{steps}.yaml", {"steps": steps})
    choices = {"type": "categorical", "choices": ["7.yaml", "8.yaml"]}
    enabled = {"type": "categorical", "choices": [True, False]}
    space = {"distillation.teacher": choices, "distillation.enabled": enabled}
    study, teachers = with_teachers(load_study(study_file(tmp_path, {}, **space)), "study.yaml")
    assert study.space["distillation.teacher"].probes() == [t.folder for t in teachers]
    assert [t.steps for t in teachers] == [7, 8]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("gone.yaml", "study.yaml: distillation.teacher: .*gone.yaml: no such file or folder"),
        ("odd.yaml", "study.yaml: distillation.teacher: data.batch_size: 3 sequences cannot be"),
        ("short.yaml", "its data.context 32 is shorter than the student's 48"),
        ("same.yaml", "study.yaml: space.distillation.teacher: choices: two of them are the same"),
        (None, "study.yaml: .*teacher: enabled needs one"),
    ],
)
def test_a_teacher_that_cannot_teach_every_trial_is_refused(
    tmp_path: Path, cache: Path, teacher: str | None, message: str
) -> None:
    write(tmp_path / "good.yaml", {"data": {"context": 64}})
    write(tmp_path / "same.yaml", {"data": {"context": 64}, "threads": 3})
    write(tmp_path / "odd.yaml", {"data": {"batch_size": 3}})
    write(tmp_path / "short.yaml", {"data": {"context": 32}})
    file = study_file(
        tmp_path,
        {"data": {"context": 16}, "distillation": {"enabled": True, "teacher": "good.yaml"}},
        **{
            "distillation.teacher": {"type": "categorical", "choices": ["good.yaml", teacher]},
            "data.context": {"type": "int", "low": 16, "high": 48},
        },
    )
    with pytest.raises(ConfigError, match=message) as refused:
        study = load_study(file)
        two = study.resources.model_copy(update={"ranks": 2})
        with_teachers(study.model_copy(update={"resources": two}), "study.yaml")
    assert "\n" not in str(refused.value)


def test_a_teacher_that_takes_its_controller_down_each_time_ends_the_study(
    url: str, folder: Path
) -> None:
    stage = Stage(url, [planned(folder)])
    for _ in range(4):
        assert stage.controller().next() is not None
        stage.lapse()
    controller = stage.controller()
    assert controller.next() is None
    assert controller.look_for_end()
    assert "lost with its controller 4 times" in (controller.gave_up or "")
    assert stage.ledger.teachers(stage.record)[0].state is TeacherState.FAILED
    stage.ledger.release(controller.leased.lease)
    assert stage.controller().next() is not None, "a resume tries once more"
