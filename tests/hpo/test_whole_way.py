"""What a person writes arrives as it was written: file, ledger, trial, function, and every export.

The function's own number goes the way back: from its evaluation to the ledger and the tables.
"""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.reading.export import FORMATS, table
from hpo.service.launch import create_study
from hpo.study.load import config_of, load_study
from hpo.training import TrainingRun
from hpo.workers.own_run import OwnRun
from storage import Ledger
from tests.trainer.test_plain import DATA, TEXTS
from trainer.config.plain import dumped
from trainer.engine.distributed import World

ALONE = World(0, 1, 0, torch.device("cpu"))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
CHOICES = st.none() | st.booleans() | st.integers() | FINITE | TEXTS
LISTS = st.lists(CHOICES, min_size=1, max_size=3)

arrived: list[dict[str, Any]] = []


def remembering(config: dict[str, Any], run: TrainingRun) -> Iterator[dict[str, Any]]:
    """It trains nothing, and remembers what it was called with."""
    arrived.append(config)
    yield {"step": config["steps"], "loss": config["loss"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("way")


@pytest.fixture(scope="module")
def ledger(folder: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{folder}/hpo.db", create=True)


numbers = count()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(given=DATA, choice=CHOICES | LISTS, loss=FINITE, low=st.integers(-9, 9))
@example(given={"clip": math.inf, "nest": {2: "a"}}, choice=[0.9, 0.999], loss=5.06e-11, low=-3)
@example(given={"yes": "010", "n": [1e3, "1e3"]}, choice="1:30", loss=1.2e-11, low=-1)
@example(given=None, choice="a\r", loss=0.5, low=0)
@example(given=math.nan, choice=True, loss=1e22, low=0)
def test_what_was_written_arrives(
    folder: Path, ledger: Ledger, given: Any, choice: Any, loss: float, low: int
) -> None:
    name = f"s{next(numbers)}"
    document = {
        "study": name,
        "objectives": [{"metric": "loss"}],
        "budget": {"trials": 1},
        "trainer": f"{__name__}:remembering",
        "train": {"steps": 1, "given": given, "loss": loss},
        "space": {
            "choice": {"type": "categorical", "choices": [choice]},
            "stepped": {"type": "float", "low": low / 10, "high": 1.0, "step": 0.1},
        },
    }
    file = folder / "study.yaml"
    file.write_text(dumped(document), encoding="utf-8")
    record = create_study(ledger, load_study(file), [], [], str(folder / "runs"))
    config = config_of(ledger.study(name))
    controller = Controller(ledger, record, config, ledger.acquire(record), record.runs or "")
    assignment: Any = controller.next()
    sent = pickle.loads(pickle.dumps(assignment.assignment))  # noqa: S301 - as Ray sends it
    run = OwnRun(sent.own_function, sent.document, ALONE, lambda step=None: None, 1, ())
    report = run.advance()
    run.close()
    config_there = arrived.pop()
    assert repr(config_there["given"]) == repr(given)
    assert repr(config_there["choice"]) == repr(choice)
    stepped = config_there["stepped"]
    assert stepped == round(stepped, 1)
    controller.handle(0, 1, Message(report.kind, report.step, report.metrics))

    (trial,) = ledger.trials(record, TrialState.COMPLETE)
    assert (trial.value, trial.params["stepped"]) == (loss, stepped)
    again = config.trial_document(dict(trial.params), sent.document["output_dir"])
    assert repr(again) == repr(sent.document), "the next attempt would get another"
    frame = table(ledger, name)
    [row] = csv.DictReader(io.StringIO(str(FORMATS[".csv"](frame)), newline=""))
    assert (float(row["value.loss"]), float(row["param.stepped"])) == (loss, stepped)
    [row] = json.loads(FORMATS[".json"](frame))
    assert (row["metric.loss"], row["param.stepped"]) == (loss, stepped)
    shown = json.dumps(choice, ensure_ascii=False) if isinstance(choice, list) else choice
    assert repr(row["param.choice"]) == repr(shown)
    parquet = pd.read_parquet(io.BytesIO(FORMATS[".parquet"](frame)))  # type: ignore[arg-type]
    assert (parquet["value.loss"][0], parquet["param.stepped"][0]) == (loss, stepped)
