"""A study as a table, one row a trial, for pandas, R or a spreadsheet. Only reads the ledger.

Columns of the same name never meet: values, parameters and metrics have prefixes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import TrialState

from hpo.reading import views
from storage import Ledger
from trainer.config.settings import ConfigError

FIXED = ("number", "state", "reason", "feasible", "attempts", "device_seconds", "started", "ended")


def exported(ledger: Ledger, name: str, file: Path) -> str | bytes:
    """The study's trials as the suffix of `file` says. Raises ConfigError for another suffix."""
    formats: dict[str, Callable[[pd.DataFrame], str | bytes]] = {
        ".csv": lambda frame: frame.to_csv(index=False),
        ".parquet": _parquet,
        ".json": lambda frame: frame.to_json(
            orient="records", date_format="iso", date_unit="us", indent=2
        ),
    }
    written = formats.get(file.suffix)
    if written is None:
        raise ConfigError(f"{file}: the name must end in {', '.join(formats)}")
    return written(table(ledger, name))


def table(ledger: Ledger, name: str) -> pd.DataFrame:
    """One row a trial. Times are UTC, costs device-seconds, `metric.*` its last evaluation's."""
    record, found = ledger.study(name), views.trial_list(ledger, name)
    trials = {trial.number: trial for trial in ledger.trials(record, *TrialState)}
    attempts, metrics = ledger.attempts(record), ledger.last_metrics(record)
    rows: list[dict[str, Any]] = []
    for view in found:
        trial_id = trials[view["trial"]]._trial_id
        had = attempts.get(trial_id, [])
        ended = had[-1].ended_at if had and TrialState[view["state"]].is_finished() else None
        rows.append(
            {
                "number": view["trial"],
                **{key: view[key] for key in FIXED[1:6]},
                "started": had[0].started_at if had else None,
                "ended": ended,
                **{f"value.{metric}": value for metric, value in view["values"].items()},
                **{f"param.{path}": value for path, value in view["params"].items()},
                **{f"metric.{k}": v for k, v in metrics.get(trial_id, {}).items()},
            }
        )
    frame = pd.DataFrame(rows, columns=None if rows else list(FIXED))
    for column in ("started", "ended"):
        frame[column] = pd.to_datetime(frame[column].astype(float), unit="s", utc=True).dt.round(
            "us"
        )
    return frame


def _parquet(frame: pd.DataFrame) -> bytes:
    """A column of Parquet has one type: choices of several are written as text."""
    for column in frame.columns:
        if pd.api.types.infer_dtype(frame[column], skipna=True).startswith("mixed"):
            frame[column] = frame[column].map(str, na_action="ignore")
    content: bytes = frame.to_parquet(index=False, engine="pyarrow")
    return content
