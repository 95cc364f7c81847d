"""What the ledger says of a study and of its trials, as Markdown for the dashboard's notes.

Text that anybody may have written stands in a fence that it cannot close, or as character
references, which are never syntax. The notes are made here and stored nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.control.messages import last_line
from hpo.reading.cells import markdown_table
from hpo.search.constraints import Constraint, broken
from hpo.study.config import StudyConfig
from hpo.study.tracking import run_id
from storage import Attempt, Ledger, StudyRecord

_YOURS = "*Made from the ledger. What you write here replaces it; empty it, and this is back.*"


def study_note(ledger: Ledger, record: StudyRecord, stop: str) -> str:
    """Tell how far the study is, how to stop it (at the path `stop`) or go on, and its file."""
    counts = ledger.trial_counts(record)
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items()))
    alive = [plain(controller) for controller in ledger.controllers(record) if controller.alive]
    if alive:
        runs = f"Run by {', '.join(alive)}. [Stop it]({stop}): as `hpo stop {record.name}` does."
    else:
        runs = f"Nobody runs it; `hpo resume {record.name}` goes on."
    made = sum(counts.values()) - counts["WAITING"]
    return "\n\n".join(
        (
            f"{made} of {record.budget_trials} trials ({states or 'none yet'}), "
            f"{max(0.0, ledger.device_seconds(record)):.0f} device-seconds. {runs}",
            "#### Study file",
            fenced(record.document, "yaml"),
            _YOURS,
        )
    )


def trial_note(
    trial: FrozenTrial,
    attempts: Sequence[Attempt],
    front: Sequence[Mapping[str, Any]],
    record: StudyRecord,
    config: StudyConfig,
) -> str:
    """Tell how the trial ended, at what cost, what constraints it breaks, and where its run is."""
    reason = trial.user_attrs.get("reason") or attempts[-1].reason
    cost = sum(attempt.device_seconds for attempt in attempts)
    parts = [
        f"**{trial.state.name}**{f', {plain(reason)}' if reason else ''}: "
        f"{len(attempts)} attempt{'s'[: len(attempts) != 1]}, {cost:.1f} device-seconds",
        *_missed(config.constraints, trial),
        _table(
            ("attempt", "steps", "reason", "device-seconds"),
            (
                (
                    a.number,
                    _steps(a),
                    a.reason or "",
                    f"{a.device_seconds:.1f}" if a.ended_at else "",
                )
                for a in attempts
            ),
        ),
    ]
    if front:
        parts += ["#### Depth front", _depths(front)]
    if said := last_line(attempts[-1].detail):
        parts.append(fenced(said))
    parts += [_places(trial, record, config), _YOURS]
    return "\n\n".join(parts)


def _missed(constraints: Sequence[Constraint], trial: FrozenTrial) -> list[str]:
    missed = broken(constraints, trial)
    if missed is None:
        return []
    if not missed:
        return ["Feasible: it keeps every constraint."]
    return ["Infeasible: " + "; ".join(f"{plain(n)} missed by {v:.6g}" for n, v in missed.items())]


def _steps(attempt: Attempt) -> str:
    if attempt.last_step is None:
        return ""
    return f"{attempt.first_step or 0}-{attempt.last_step}"


def _depths(front: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ("depth", "layers", "found by", "valid_ppl", "parameters", "µs/token"),
        (
            (
                point["depth"],
                " ".join(map(str, point["layers"])),
                point["search"],
                f"{point['valid_ppl']:.2f}",
                f"{point['parameters']:,}",
                f"{point['seconds_per_token'] * 1e6:.1f}",
            )
            for point in front
        ),
    )


def _places(trial: FrozenTrial, record: StudyRecord, config: StudyConfig) -> str:
    """Tell where the run and its tracking are; no browser would follow a link to a folder."""
    lines = [
        f"run folder  {trial.user_attrs.get('run_dir', '')}",
        f"all of it   hpo show {record.name} {trial.number}",
    ]
    wandb = config.tracking.wandb
    if wandb is None or wandb.mode == "disabled":
        return fenced("\n".join(lines))
    run = run_id(record.uid, trial.number)
    lines.append(f"wandb       project {wandb.project}, group {record.name}, run {run}")
    text = fenced("\n".join(lines))
    if wandb.entity and wandb.mode != "offline":
        path = "/".join(re.sub(r"[^\w.-]", "", part) for part in (wandb.entity, wandb.project))
        text += f"\n\n[Its run at wandb](https://wandb.ai/{path}/runs/{run})"
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return markdown_table(head, ([plain(cell) for cell in row] for row in rows))


def plain(text: object) -> str:
    """Return Markdown that shows `text` as it is, in one line; only an address becomes a link."""
    return re.sub(r"[^\w ,.-]|_", lambda c: f"&#{ord(c[0])};", " ".join(str(text).split()))


def fenced(text: str, language: str = "") -> str:
    """Return `text` as a block of code, in a fence longer than any inside it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
