"""How every benchmark reports: a table for people, then one JSON object as the last line.

It measures nothing and judges nothing: a benchmark says itself whether a goal is met.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One measured value. `goal` and `met` are None where the value is only a reference."""

    name: str
    value: float
    unit: str
    goal: str | None = None
    met: bool | None = None


def report(benchmark: str, results: Sequence[Result]) -> None:
    """Print `results` to stdout. Raises ValueError for a value that is NaN or infinite."""
    record = {"benchmark": benchmark, "results": [asdict(result) for result in results]}
    last_line = json.dumps(record, allow_nan=False)
    table = Table("name", "value", "unit", "goal", "met", title=benchmark)
    for result in results:
        met = {True: "yes", False: "no", None: ""}[result.met]
        table.add_row(result.name, f"{result.value:,.3f}", result.unit, result.goal, met)
    Console().print(table)
    print(last_line)
