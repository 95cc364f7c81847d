"""Wrong input to the command itself: one line on standard error, nothing written, status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.study.load import load_study
from storage import Ledger
from tests.end_to_end.desk import Desk


def refused(desk: Desk, *arguments: str, status: int = 2) -> str:
    """The one line that `hpo` refuses with, having written nothing."""
    before = files(desk.folder)
    message = desk.hpo(*arguments, status=status)
    assert message.count("\n") == 1, message
    assert message.startswith("hpo: ")
    assert files(desk.folder) == before
    return message


def files(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def with_a_study(desk: Desk) -> Desk:
    """A desk whose ledger holds the study `tiny`, with no trial yet."""
    config = load_study(desk.write_study())
    ledger = Ledger.open(f"sqlite:///{desk.folder}/hpo.db", create=True)
    directions = [objective.optuna_direction for objective in config.objectives]
    ledger.create_study("tiny", directions, ["valid_ppl"], config.to_document(), 2)
    ledger.engine.dispose()
    return desk


def test_a_misspelt_setting_leaves_no_database_and_no_folder(desk: Desk) -> None:
    file = desk.write_study(space={"optim.lrr": {"type": "float", "low": 0.1, "high": 0.2}})
    message = refused(desk, "start", str(file))
    assert message.endswith("space.optim.lrr: no such train setting; did you mean optim.lr?\n")


def test_a_study_that_does_not_ship_is_refused_with_those_that_do(desk: Desk) -> None:
    assert "ptb, quickstart" in refused(desk, "start", "quickstrat")


def test_a_setting_on_the_command_line_is_checked(desk: Desk) -> None:
    assert "did you mean" in refused(desk, "start", "--set", "stepss=3")
    assert "must be path=value" in refused(desk, "start", "--set", "steps")


def test_more_ranks_than_the_machine_has_cores_are_refused(desk: Desk) -> None:
    file = desk.write_study(resources={"ranks": 512}, train={"data": {"batch_size": 512}})
    assert "512 ranks x 1 cpus_per_rank need 512 CPUS, and this machine has" in refused(
        desk, "start", str(file)
    )


def test_gpus_that_the_machine_does_not_have_are_refused(desk: Desk) -> None:
    file = desk.write_study(resources={"ranks": 1, "gpus_per_rank": 64})
    assert "need 64 GPUS, and this machine has" in refused(desk, "start", str(file))


def test_missing_and_altered_data_are_refused(desk: Desk) -> None:
    file = desk.write_study(train={"data": {"name": "ptb"}})
    assert "HPO_DATA_DIR" in refused(desk, "start", str(file))
    (desk.folder / "data" / "ptb").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (desk.folder / "data" / "ptb" / f"ptb.{split}.txt").write_text("not these words\n")
    desk.environment["HPO_DATA_DIR"] = str(desk.folder / "data")
    assert "sha256" in refused(desk, "start", str(file))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hpo.db", "not a storage URL"),
        ("sqlite:///no/such/folder/hpo.db", "the folder no/such/folder does not exist"),
        ("sqlite:///study.yaml", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused(desk: Desk, url: str, words: str) -> None:
    assert words in refused(desk, "start", str(desk.write_study()), "--storage", url)


def test_a_server_that_does_not_answer_is_no_wrong_input(desk: Desk) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:9/db"
    message = refused(desk, "start", str(desk.write_study()), "--storage", url, status=75)
    assert "postgresql+psycopg://me:***@127.0.0.1:9/db" in message
    assert "hunter2" not in message


def test_a_name_that_exists_says_how_many_trials_it_has_and_how_to_go_on(
    with_a_study: Desk,
) -> None:
    message = refused(with_a_study, "start", str(with_a_study.folder / "study.yaml"))
    assert "study tiny exists with 0 trials: `hpo resume tiny` goes on with it" in message


@pytest.mark.parametrize("command", ["status", "trials", "best", "resume", "stop"])
def test_a_study_that_does_not_exist_is_refused_with_the_nearest(
    with_a_study: Desk, command: str
) -> None:
    message = refused(with_a_study, command, "tinny")
    assert "no study called tinny; did you mean tiny?" in message


def test_a_trial_that_does_not_exist_is_refused(with_a_study: Desk) -> None:
    assert "no trial 3; it has none yet" in refused(with_a_study, "show", "tiny", "3")


def test_a_ledger_that_does_not_exist_is_refused_and_not_made(desk: Desk) -> None:
    assert "hpo.db: no such database; `hpo start` makes one" in refused(desk, "list")


def test_a_port_that_is_taken_is_refused(with_a_study: Desk) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port {port}: address already in use" in refused(
            with_a_study, "dashboard", "--port", port
        )


def test_a_folder_for_runs_that_cannot_be_one_is_refused(desk: Desk) -> None:
    file = desk.write_study()
    message = refused(desk, "start", str(file), "--runs", "study.yaml")
    assert "is not a folder that can be written to" in message


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ("s3://me:planted@bucket/prefix", "come from the environment"),
        ("nowhere://bucket", "Protocol not known: nowhere"),
    ],
)
def test_a_url_for_runs_that_cannot_be_one_is_refused(desk: Desk, runs: str, why: str) -> None:
    message = refused(desk, "start", str(desk.write_study()), "--runs", runs)
    assert "--runs" in message
    assert why in message
    assert "planted" not in message
