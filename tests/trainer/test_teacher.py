"""Which run a config's teacher is, and that the command line trains it first, once."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.forked import Forked
from tests.trainer.commands import TIMEOUT_SECONDS, newest_step, trainer
from trainer.config.cache import cache_dir
from trainer.config.settings import ConfigError
from trainer.config.train import load, resolve
from trainer.runs.lock import folder_lock
from trainer.teaching.teacher import Teacher, find_teacher

Tiny = Callable[..., dict[str, Any]]


def write(file: Path, document: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(document))
    return file


def taught_by(tiny: Tiny, teacher: Path | str, **changes: Any) -> Teacher:
    """The teacher of a student of `tiny` with `changes`."""
    distillation = {"enabled": True, "teacher": str(teacher)}
    student = resolve(tiny(Path("student"), distillation=distillation, **changes), "student")
    found = find_teacher(student)
    assert found is not None
    return found


def test_a_run_that_does_not_distil_has_no_teacher(tiny: Tiny) -> None:
    assert (
        find_teacher(resolve(tiny(Path("x"), distillation={"teacher": "gone.yaml"}), "x")) is None
    )


def test_a_teacher_is_known_by_the_content_of_its_config_and_data(
    tiny: Tiny, texts: dict[str, str], tmp_path: Path
) -> None:
    copies = {split: shutil.copy(path, f"{tmp_path}/{split}.copy") for split, path in texts.items()}
    first = taught_by(tiny, write(tmp_path / "a.yaml", tiny(tmp_path / "one")))
    same = tiny(tmp_path / "two", threads=2, keep_checkpoints=5, data=copies)
    assert taught_by(tiny, write(tmp_path / "b.yaml", same)).folder == first.folder
    other = write(tmp_path / "c.yaml", tiny(tmp_path / "one", optim={"lr": 2e-2}))
    assert taught_by(tiny, other).key != first.key
    Path(copies["train"]).write_text("w1 w2 w3\n" * 500, encoding="utf-8")
    data = {"data": copies}
    another_text = write(tmp_path / "d.yaml", tiny(tmp_path / "one", **data))
    assert taught_by(tiny, another_text, **data).key != first.key
    assert first.folder == cache_dir() / "teachers" / first.key
    assert first.config.output_dir == str(first.folder)
    assert not first.trained()


def test_a_trained_run_s_folder_is_a_teacher_as_it_is(
    tiny: Tiny, uninterrupted: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = uninterrupted(1)
    teacher = taught_by(tiny, folder)
    assert teacher.trained()
    assert teacher.folder == folder
    assert teacher.key == taught_by(tiny, write(tmp_path / "a.yaml", tiny(tmp_path))).key


def test_a_teacher_s_path_is_relative_to_the_file_that_names_it_or_to_where_it_is_typed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distillation = {"enabled": True, "teacher": "../teacher.yaml"}
    (tmp_path / "configs").mkdir()
    file = write(tmp_path / "configs" / "s.yaml", tiny(tmp_path, distillation=distillation))
    monkeypatch.chdir(tmp_path / "configs")
    assert load("s.yaml").distillation.teacher == str(tmp_path / "teacher.yaml")
    monkeypatch.chdir(tmp_path)
    assert load(file).distillation.teacher == str(tmp_path / "teacher.yaml")
    typed = load(file, ["distillation.teacher=./typed.yaml"])
    assert typed.distillation.teacher == str(tmp_path / "typed.yaml")


@pytest.mark.parametrize(
    ("teacher", "changes", "message"),
    [
        ("gone.yaml", {}, "gone.yaml: no such file or folder; name a run folder, or a train"),
        ("empty", {}, "empty: holds no config.yaml; name the folder of a run"),
        ("stopped", {}, "stopped: its run is not trained to the end; first let `python -m trainer"),
        ("diverged", {}, "diverged: its run diverged; name another"),
        ("run", {"data": {"context": 16}}, "its data.context 8 is shorter than the student's 16"),
        ("pydocs.yaml", {}, r"another text \(data.name: pydocs\) than its student \(text\)"),
        ("taught.yaml", {}, "taught.yaml: distillation.enabled: a teacher that has one itself"),
        ("wrong.yaml", {}, "wrong.yaml: stepss: no such setting; did you mean steps?"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_line(
    tiny: Tiny,
    uninterrupted: Callable[[int], Path],
    tmp_path: Path,
    teacher: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    for name, result in (("run", "finished"), ("stopped", None), ("diverged", "diverged")):
        shutil.copytree(uninterrupted(1), tmp_path / name)
        (tmp_path / name / "result.json").write_text(json.dumps({"kind": result}))
    write(tmp_path / "pydocs.yaml", {"data": {"name": "pydocs"}})
    write(tmp_path / "taught.yaml", {"distillation": {"enabled": True, "teacher": "run"}})
    write(tmp_path / "wrong.yaml", {"stepss": 1})
    with pytest.raises(ConfigError, match=message) as refused:
        taught_by(tiny, tmp_path / teacher, **changes)
    assert "\n" not in str(refused.value)


def test_a_run_without_its_last_checkpoint_is_not_trained(
    tiny: Tiny, uninterrupted: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(uninterrupted(1), tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    with pytest.raises(ConfigError, match="not trained to the end"):
        taught_by(tiny, folder)


def student(tiny: Tiny, folder: Path, name: str, **teacher: Any) -> Path:
    """The config file of a student whose teacher is trained first."""
    write(folder / "teacher.yaml", tiny(folder / "unused", **teacher))
    distillation = {"enabled": True, "teacher": "teacher.yaml"}
    return write(folder / f"{name}.yaml", tiny(folder / name, distillation=distillation))


@pytest.mark.slow
def test_a_teacher_is_trained_first_by_one_process_at_a_time_and_goes_on_after_a_signal(
    tiny: Tiny, tmp_path: Path
) -> None:
    config = student(tiny, tmp_path, "a", steps=200, eval_every=20, seed=71)
    folder = Path(str(find_teacher(load(config)).folder))  # type: ignore[union-attr]
    folder.mkdir(parents=True)
    with (
        folder_lock(folder, 0) as other_process,
        Forked("trainer", str(config)) as process,
    ):
        waiting = process.stdout.readline()
        assert waiting == f"teacher: waiting for the process that trains it in {folder}\n"
        other_process.release()
        assert process.stdout.readline().startswith("teacher: step 20/200  valid_ppl ")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    stopped = newest_step(folder)
    told = f"teacher: stopped at step {stopped}; the same command goes on from there"
    assert (process.returncode, output.splitlines()[-1]) == (143, told)
    assert not (tmp_path / "a").exists()

    lines = trainer(config).stdout.splitlines()
    assert lines[0] == f"teacher: going on from step {stopped}"
    assert [line.split()[1] for line in lines[-3:]] == ["4/12", "8/12", "12/12"]
    # What repeats the run names its teacher's folder, whatever becomes of the teacher's config.
    student(tiny, tmp_path, "b", steps=4)
    teacher = find_teacher(load(tmp_path / "a" / "config.yaml"))
    assert teacher is not None
    assert (teacher.folder, teacher.trained()) == (folder, True)
