"""What the reading commands print for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hpo.reading.cells import spread_text
from hpo.reading.views import View
from hpo.search.constraints import OUT_OF_MEMORY
from hpo.study.hints import command


def studies(found: list[View]) -> None:
    """The table of `hpo list`."""
    table = _table("study", "trials", "states", "run by")
    for study in found:
        begun = _begun_of_budget(study)
        table.add_row(study["study"], begun, _states(study), study["controller"] or "-")
    _print(table if found else "no study yet: `hpo start` makes one")


def status(url: str, found: View) -> None:
    """The lines of `hpo status` for a study in the ledger at `url`."""
    _print(f"{found['study']}: {_begun_of_budget(found)} trials, {_states(found) or 'none yet'}")
    unfinished = found["trials"] < found["budget"] or "RUNNING" in found["states"]
    resume = command(f"hpo resume {found['study']}", url)
    more = f"; `{resume}`" if unfinished else ""
    _print(f"run by: {found['controller'] or f'nobody{more}'}")
    _print(f"cost: {found['device_seconds']:.0f} device-seconds")
    if found["best"]:
        _print(f"best: trial {found['best']['trial']}, {_values(found['best'])}")
    for teacher in found["teachers"]:
        reason = f" ({teacher['reason']})" if teacher["reason"] else ""
        _print(
            f"teacher {teacher['teacher']}: {teacher['state']}{reason}, "
            f"step {teacher['step']}/{teacher['steps']}, {teacher['seconds']:.0f} s, in "
            f"{teacher['folder']}"
        )
    if found["running"]:
        trials(found["running"])


def trials(found: list[View]) -> None:
    """The table of `hpo trials`: a column for each parameter, or one for all if room is short."""
    table = _trials(found, columns=True)
    terminal = Console()
    if terminal.is_terminal and Console(width=10_000).measure(table).maximum > terminal.width:
        table = _trials(found, columns=False)
    _print(table if found else "no trial yet")


def _trials(found: list[View], *, columns: bool) -> Table:
    names = _names(sorted({path for trial in found for path in trial["params"]}))
    constrained = any(trial["feasible"] is not None for trial in found)
    feasible = ["feasible"] if constrained else []
    wide = list(names.values()) if columns else ["parameters"]
    table = _table("trial", "state", "reason", "step", "value", *feasible, "attempts", *wide)
    for trial in found:
        params = {path: _text(value, digits=4) for path, value in trial["params"].items()}
        words = " ".join(f"{names[path]}={text}" for path, text in params.items())
        table.add_row(
            str(trial["trial"]),
            trial["state"],
            trial["reason"] or "",
            _text(trial["step"]),
            _values(trial, names=False),
            *([_feasible(trial)] if constrained else []),
            str(trial["attempts"]),
            *([params.get(path, "") for path in names] if columns else [words]),
        )
    return table


def trial(found: View) -> None:
    """The page of `hpo show`."""
    reason = f" ({found['reason']})" if found["reason"] else ""
    _print(f"trial {found['trial']}: {found['state']}{reason} {_values(found)}")
    if found["feasible"] is not None:
        _print(f"feasible: {_feasible(found)}")
    if found["origin"]:
        _print(f"from: {_origin(found['origin'])}")
    if found["parent"] is not None:
        _print(f"from: step {found['parent_step']} of trial {found['parent']}")
    _print(f"folder: {found['run_dir'] or 'none yet'}")
    _print(f"cost: {found['device_seconds']:.1f} device-seconds")
    for path, value in found["params"].items():
        _print(f"  {path}={_text(value)}")
    attempts = _table("attempt", "steps", "reason", "device-seconds")
    for attempt in found["attempts"]:
        steps = f"{_text(attempt['first_step'])}-{_text(attempt['last_step'])}"
        seconds = f"{attempt['device_seconds']:.1f}"
        attempts.add_row(str(attempt["number"]), steps, attempt["reason"] or "", seconds)
    _print(attempts)
    _print(_metrics("step", found["metrics"]))
    if found["repeats"]:
        _print(_metrics("repeat", dict(enumerate(found["repeats"]))))
    if found["depth_front"]:
        _print(_depth_front(found["depth_front"]))
    for attempt in found["attempts"]:
        if attempt["detail"]:
            _print(f"attempt {attempt['number']}:\n{attempt['detail']}")


def best(name: str, url: str, found: list[View]) -> None:
    """The lines of `hpo best`, and what to type next for the ledger at `url`."""
    if not found:
        _print(f"study {name} has no completed trial yet that is feasible")
    for trial in found:
        _print(f"best of {name}: trial {trial['trial']}, {_values(trial)}")
        for path, value in trial["params"].items():
            _print(f"  {path}={_text(value)}")
        next_ones = (f"hpo show {name} {trial['trial']}", f"hpo trials {name}", "hpo dashboard")
        _print(f"next: {', '.join(command(words, url) for words in next_ones)}")


def evaluation(name: str, url: str, found: list[View]) -> None:
    """The table of `hpo evaluate`."""
    columns = ("tuned valid", "fresh valid", "optimism", "test", "test - valid")
    table = _table("trial", "seeds", *columns)
    for row in found:
        table.add_row(
            str(row["trial"]),
            " ".join(map(str, row["seeds"])) or "none trained",
            "" if row["tuned_valid_ppl"] is None else f"{row['tuned_valid_ppl']:.2f}",
            spread_text(row["valid_ppl"]),
            _signed(row["optimism_gap"]),
            spread_text(row["test_ppl"]),
            _signed(row["test_minus_valid"]),
        )
    _print(f"evaluation of {name}: perplexities, mean and standard deviation over fresh seeds")
    _print(table)
    _print(f"each training: {command(f'hpo trials {name}.evaluation', url)}")


def comparison(url: str, found: View) -> None:
    """The tables of `hpo compare`."""
    from hpo.reading import comparison_table

    _print(f"comparison of {found['study']}'s recipes under one budget")
    for columns, *rows in comparison_table.tables(found):
        table = _table(*columns)
        for row in rows:
            table.add_row(*row)
        _print(table)
    for line in comparison_table.remarks(found):
        _print(line)
    _print("each training: " + command(f"hpo trials {found['comparison']}", url))


def transfer(found: View) -> None:
    """The lines of `hpo transfer`."""
    small, big = found["small"], found["big"]
    _print(f"{small} and {big}: {found['configurations']} configurations in common, by")
    _print(f"  {', '.join(found['paths'])}")
    for metric, ranks in found["metrics"].items():
        if ranks["spearman"] is None:
            _print(f"{metric}: the same throughout in one of them, so without an order")
            continue
        low_high = ranks["spearman_95"]
        within = f", 95 % within {low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else ""
        rho, tau = ranks["spearman"], ranks["kendall"]
        _print(f"{metric}: Spearman's rho {rho:.3f} (p {ranks['spearman_p']:.2g}{within})")
        _print(f"{metric}: Kendall's tau {tau:.3f} (p {ranks['kendall_p']:.2g})")


def _metrics(key: str, rows: dict[int, View]) -> Table:
    names = sorted({name for metrics in rows.values() for name in metrics})
    table = _table(key, *(name.replace("_", "\n") for name in names))  # narrow
    for number, metrics in rows.items():
        table.add_row(str(number), *(_text(metrics.get(name), digits=4) for name in names))
    return table


def _depth_front(points: list[View]) -> Table:
    columns = ("depth", "search", "layers", "valid_ppl", "parameters", "seconds_per_token")
    table = _table(*columns)
    for point in points:
        layers = " ".join(str(layer) for layer in point["layers"])
        table.add_row(*(_text({**point, "layers": layers}[column]) for column in columns))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(what: Table | str) -> None:
    # On a pipe a table is as wide as it needs to be, so that nothing is cut. With `emoji`, rich
    # would make a picture of the `:train:` in a function's name.
    wide = None if Console().is_terminal else 10_000
    console = Console(width=wide, highlight=False, markup=False, emoji=False)
    console.print(what, soft_wrap=isinstance(what, str))


def _begun_of_budget(study: View) -> str:
    return f"{study['trials']}/{study['budget']}"


def _states(study: View) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in study["states"].items())


def _origin(origin: View) -> str:
    if "recipe" in origin:
        return f"recipe {origin['recipe']}, compared for {origin['study']}"
    return f"trial {origin['trial']} of {origin['study']}" if "study" in origin else "hpo enqueue"


def _values(trial: View, *, names: bool = True) -> str:
    return ", ".join(
        f"{name} {_text(value)}" if names else _text(value)
        for name, value in trial["values"].items()
    )


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _feasible(trial: View) -> str:
    """Return `yes`, or which constraints are broken and by how much."""
    if trial["feasible"] is None:
        return ""
    missed = ", ".join(
        "out of memory" if name == OUT_OF_MEMORY else f"{name} by {amount:.4g}"
        for name, amount in trial["violations"].items()
    )
    return f"no: {missed}" if missed else "yes"


def _names(paths: list[str]) -> dict[str, str]:
    """Return a short name for each path: its last part, or the whole path if two end alike."""
    last = [path.rpartition(".")[2] for path in paths]
    return {p: end if last.count(end) == 1 else p for p, end in zip(paths, last, strict=True)}


def _text(value: Any, digits: int = 6) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
