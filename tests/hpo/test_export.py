"""A study as a table: what was written is what pandas reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpo.commands.writing import export
from hpo.reading.export import FORMATS, table
from storage import Point
from tests.hpo.long_studies import MARKUP, START, written
from tests.hpo.stage import Stage, finish
from trainer.config.settings import ConfigError

READERS: dict[str, Any] = {
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
    ".json": pd.read_json,
}


@pytest.mark.parametrize("suffix", READERS)
def test_a_table_is_read_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    kept = table(written(url, 8, ("valid_ppl", "step_seconds")).ledger, "played")
    export("played", tmp_path / f"table{suffix}", url)
    read = READERS[suffix](tmp_path / f"table{suffix}")
    for column in ("started", "ended"):
        read[column] = pd.to_datetime(read[column], utc=True, format="ISO8601")
    kept["feasible"] = read["feasible"] = None  # the study has nothing to keep
    # What pandas takes for no text depends on what was imported before it.
    read["reason"] = [None if pd.isna(reason) else reason for reason in read["reason"]]
    pd.testing.assert_frame_equal(read, kept, check_dtype=False, rtol=1e-6)


@pytest.mark.parametrize("suffix", READERS)
@given(number=st.floats(allow_nan=False, allow_infinity=False))
@example(number=5.06e-11)
@example(number=1.2e-11)
def test_a_number_arrives_to_its_last_digit(suffix: str, number: float) -> None:
    content: Any = FORMATS[suffix](pd.DataFrame({"param.x": [number, None]}))
    read: dict[str, Any] = {
        ".csv": lambda: content.splitlines()[1],
        ".parquet": lambda: pd.read_parquet(io.BytesIO(content))["param.x"][0],
        ".json": lambda: json.loads(content)[0]["param.x"],
    }
    assert float(read[suffix]()) == number


def test_a_row_says_what_became_of_a_trial(tmp_path: Path) -> None:
    rows = table(written(f"sqlite:///{tmp_path}/hpo.db", 8).ledger, "played").set_index("number")
    lost = rows.loc[4]
    assert (lost["state"], lost["attempts"], lost["device_seconds"]) == ("COMPLETE", 2, 7.6)
    assert lost["started"].timestamp() == START + 4
    assert lost["ended"].timestamp() == pytest.approx(START + 7.9)
    assert lost["metric.valid_ppl"] == pytest.approx(lost["value.valid_ppl"] * (1 + 200 / 300))
    assert rows.loc[1, "param.layerdrop.policy"] == MARKUP
    assert rows["state"].tolist().count("PRUNED") == 4


@pytest.mark.parametrize("suffix", READERS)
def test_a_study_without_trials_is_a_table_without_rows(tmp_path: Path, suffix: str) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    Stage(url)
    export("played", tmp_path / f"table{suffix}", url)
    assert len(READERS[suffix](tmp_path / f"table{suffix}")) == 0


def test_choices_of_several_types_fit_into_parquet() -> None:
    from hpo.reading.export import _parquet

    assert _parquet(pd.DataFrame({"param.x": ["auto", 8, None, True]}))


def test_integers_stay_integers_where_a_trial_has_none(tmp_path: Path) -> None:
    large, larger = 2**53 + 1, 10**30
    when = {"layers": 3}
    space = {
        "layers": {"type": "int", "low": 3, "high": 4},
        "a": {"type": "categorical", "choices": [large], "when": when},
        "b": {"type": "categorical", "choices": [larger], "when": when},
    }
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db", space=space, trainer="a:b", train={"steps": 3})
    controller = stage.controller()
    for layers in (3, 4):
        stage.ledger.enqueue(stage.record, [Point({"layers": layers}, {})])
        finish(controller)
    frame = table(stage.ledger, "played")
    first, second = json.loads(str(FORMATS[".json"](frame)))
    assert (first["param.a"], first["param.b"]) == (large, larger)
    assert second["param.a"] is second["param.b"] is None
    [_, row, _] = str(FORMATS[".csv"](frame)).splitlines()
    assert f",{large},{larger}," in row
    read = pd.read_parquet(io.BytesIO(FORMATS[".parquet"](frame)))  # type: ignore[arg-type]
    assert (read["param.a"][0], read["param.b"][0]) == (large, str(larger))


def test_another_suffix_is_refused_by_the_names_of_the_three(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    Stage(url)
    with pytest.raises(ConfigError, match=r"table\.xlsx: the name must end in \.csv, \.parquet, "):
        export("played", tmp_path / "table.xlsx", url)
    assert not (tmp_path / "table.xlsx").exists()
