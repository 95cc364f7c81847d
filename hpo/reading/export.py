"""A study as a table with one row per trial, for pandas, R or a spreadsheet.

Values, parameters and metrics have prefixes of their own, so that no two columns share a name.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import TrialState

from hpo.reading import views
from storage import Ledger
from trainer.config.settings import ConfigError

FIXED = ("number", "state", "reason", "feasible", "attempts", "device_seconds", "started", "ended")


def content_for(file: Path, ledger: Ledger, name: str) -> str | bytes:
    """Return the trials in the format that `file`'s suffix names. Raises ConfigError for others."""
    if file.suffix not in FORMATS:
        raise ConfigError(f"{file}: the name must end in {', '.join(FORMATS)}")
    return FORMATS[file.suffix](table(ledger, name))


def table(ledger: Ledger, name: str) -> pd.DataFrame:
    """Return a row per trial: times are UTC, costs device-seconds, metrics as last evaluated."""
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
    for column in frame.columns[len(FIXED) :]:
        _keep_integers(frame, column, [row.get(column) for row in rows])
    for column in ("started", "ended"):
        frame[column] = pd.to_datetime(frame[column].astype(float), unit="s", utc=True).dt.round(
            "us"
        )
    return frame


def _keep_integers(frame: pd.DataFrame, column: str, values: list[Any]) -> None:
    """Keep integers as they are where some trials have none; pandas makes floats of them."""
    there = [value for value in values if value is not None]
    if len(there) < len(values) and all(type(value) is int for value in there):
        fit = all(-(2**63) <= value < 2**63 for value in there)
        frame[column] = pd.Series(values, dtype="Int64" if fit else object)


def _parquet(frame: pd.DataFrame) -> bytes:
    """Return the table as Parquet, whose columns have one type: text, if nothing else fits."""
    for column in frame.columns:
        kind = pd.api.types.infer_dtype(frame[column], skipna=True)
        if kind.startswith("mixed") or (kind == "integer" and frame[column].dtype == object):
            frame[column] = frame[column].map(str, na_action="ignore")
    content: bytes = frame.to_parquet(index=False, engine="pyarrow")
    return content


def _json(frame: pd.DataFrame) -> str:
    """Return the table as JSON, each number to its last digit; infinity and no value are null."""
    rows = [{key: _json_value(v) for key, v in row.items()} for row in frame.to_dict("records")]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _json_value(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if value is pd.NaT or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


FORMATS: dict[str, Callable[[pd.DataFrame], str | bytes]] = {
    # Quoted, because a text may have any of the characters that readers take for a line's end.
    ".csv": lambda frame: frame.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC),
    ".parquet": _parquet,
    ".json": _json,
}
