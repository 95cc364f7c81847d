"""A table of real tiny trainings with their whole curves: every point of a grid, trained once.

    python -m benchmarks.search_table [TABLE.jsonl]

Trains each configuration of GRID with `trainer.run.Run`, one after another in this process, and
appends a line when one is done; started again it goes on with those that are missing. The table
is kept beside this file, so that `benchmarks.search_replay` trains nothing.

Seconds are CPU seconds of this process, on one thread: others on the machine slow the wall clock.
They are those of the steps to an evaluation, of the evaluation and of its checkpoint.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.settings import set_path
from trainer.config.train import TrainConfig, resolve

if TYPE_CHECKING:
    from trainer.engine.distributed import World

TABLE = Path(__file__).with_name("search_table.jsonl")
GRID: dict[str, list[Any]] = {
    "data.batch_size": [2, 4],
    "layerdrop.p_init": [0.0, 0.2],
    "optim.warmup_steps": [0, 40],
    "model.d_model": [16, 32, 64],
    "optim.lr": [3.2e-4, 1e-3, 3.2e-3, 1e-2, 3.2e-2, 1e-1, 3.2e-1],
}
STEPS, EVAL_EVERY = 320, 20
LOSS_LIMIT = 12.0  # nats per token; guessing among 4,200 words costs 8.3

Point = tuple[int, ...]  # an index into each list of GRID, in its order


@dataclass(frozen=True)
class Row:
    """One training. A list has an item for each evaluation; one that diverged has fewer.

    `seconds` are those since the evaluation before; with `diverged`, a last item more: those
    until that was seen.
    """

    params: dict[str, Any]
    diverged: bool
    valid_ppl: list[float]
    seconds: list[float]


def load_table(path: Path = TABLE) -> dict[Point, Row]:
    """What was trained so far."""
    rows = [Row(**record) for record in read_records(path)]
    return {point_of(row.params): row for row in rows}


def read_records(path: Path) -> list[Any]:
    """The JSON values, one a line, of a file that is appended to; a line cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def append_record(path: Path, record: Any) -> None:
    """Add a line to `path`, on the disk when this returns, after whole lines only."""
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # a line that a kill cut short
        file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def points() -> list[Point]:
    """Every point of GRID."""
    return list(itertools.product(*(range(len(values)) for values in GRID.values())))


def params_at(point: Point) -> dict[str, Any]:
    """The settings that a point stands for."""
    return {name: values[i] for (name, values), i in zip(GRID.items(), point, strict=True)}


def point_of(params: Mapping[str, Any]) -> Point:
    """The point with these settings."""
    return tuple(values.index(params[name]) for name, values in GRID.items())


def main(path: Path) -> None:
    """Train what is not in the table yet."""
    from trainer.engine.distributed import from_environment, leave

    table = load_table(path)
    world = from_environment()
    for point in points():
        if point not in table:
            append_record(path, asdict(_train(params_at(point), world)))
    leave()


def _train(params: dict[str, Any], world: World) -> Row:
    from trainer.run import Run

    valid_ppl, seconds = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Run(_config(params, folder), world, say=lambda _: None)) as run,
    ):
        kind = "evaluated"
        while kind == "evaluated":
            started = time.process_time()
            report = run.advance()
            kind = report.kind
            seconds.append(round(time.process_time() - started, 4))
            if kind != "diverged":
                valid_ppl.append(float(f"{report.metrics['valid_ppl']:.6g}"))
    print(params, kind, valid_ppl[-1:], round(sum(seconds), 2), flush=True)
    return Row(params, kind == "diverged", valid_ppl, seconds)


def _config(params: Mapping[str, Any], folder: str) -> TrainConfig:
    document: dict[str, Any] = {
        "output_dir": folder, "steps": STEPS, "eval_every": EVAL_EVERY, "keep_checkpoints": 1,
        "threads": 1, "loss_limit": LOSS_LIMIT,
        "data": {"name": "pydocs", "context": 32}, "model": {"layers": 2, "heads": 2},
        "layerdrop": {"policy": "static"},
    }  # fmt: skip
    for path, value in params.items():
        set_path(document, path, value)
    document["model"]["d_ff"] = 4 * params["model.d_model"]
    return resolve(document, "search_table")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE)
