"""The service's own log of a study: `log.jsonl` in its folder, one JSON object per line.

Every record names its study and controller, and its trial and attempt if it is about a trial. What
libraries print goes to `log.txt` beside it instead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from storage import TeacherRecord

logger = logging.getLogger("hpo.study")

FIELDS = ("study", "controller", "trial", "attempt", "teacher", "step", "state", "reason")


class JsonLines(logging.Formatter):
    """Formats a record as one line, with those of FIELDS that it was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a line break."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            **{
                field: value
                for field in FIELDS
                if (value := getattr(record, field, None)) is not None
            },
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def logged(
    folder: Path, study: str, controller: int, follow: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Write to log.jsonl, and as text to standard error, what is logged while the block runs.

    That is what the service does, and the warnings of all libraries. `follow` is called before each
    text, and may send standard error elsewhere.
    """

    def stamp(record: logging.LogRecord) -> bool:
        record.study, record.controller = study, controller
        return True

    def followed(record: logging.LogRecord) -> bool:
        follow()
        return True

    # This handler opens the file again once it was moved away, as logrotate does.
    handler = WatchedFileHandler(folder / "log.jsonl", encoding="utf-8", delay=True)
    handler.setFormatter(JsonLines())
    handler.addFilter(stamp)
    as_text = logging.StreamHandler()
    as_text.addFilter(followed)
    as_text.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    ours, root = logging.getLogger("hpo"), logging.getLogger()
    level = ours.level
    ours.setLevel(logging.INFO)
    for each in (handler, as_text):
        root.addHandler(each)
    try:
        yield
    finally:
        ours.setLevel(level)
        for each in (handler, as_text):
            root.removeHandler(each)
            each.close()


class LogObserver:
    """An observer of the controller that logs what happens."""

    def __init__(self) -> None:
        self._attempts: dict[int, int] = {}  # the attempt that each trial is at

    def begin(
        self, trial: int, attempt: int, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        self._attempts[trial] = attempt
        self._log(trial, f"trial {trial} begins attempt {attempt}")

    def report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        said = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        self._log(trial, f"trial {trial} at step {step}: {said}", step=step)

    def end(self, trial: int, state: str, reason: str | None) -> None:
        why = f" ({reason})" if reason else ""
        self._log(trial, f"trial {trial} is {state}{why}", state=state, reason=reason)
        self._attempts.pop(trial, None)

    def teacher(self, teacher: TeacherRecord) -> None:
        said = {"step": teacher.step, "state": teacher.state.value, "reason": teacher.reason}
        message = f"teacher {teacher.key} is {teacher.state.value} at step {teacher.step}"
        logger.info(message, extra={"teacher": teacher.key, "attempt": teacher.attempts, **said})

    def _log(self, trial: int, message: str, **fields: Any) -> None:
        logger.info(message, extra={"trial": trial, "attempt": self._attempts.get(trial), **fields})
