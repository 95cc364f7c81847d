"""How a value or a table is written for people, whatever the table is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def spread_text(spread: Mapping[str, Any], style: str = ".2f", unit: float = 1.0) -> str:
    """Return `mean ± sd` in units of `unit`, each formatted by `style` and left out if None."""
    shown = (spread[part] for part in ("mean", "sd") if spread[part] is not None)
    return " ± ".join(f"{value / unit:{style}}" for value in shown)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, with the pipes in its cells escaped."""
    cells = ([cell.replace("|", "\\|") for cell in line] for line in [head, *rows])
    lines = [next(cells), ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
