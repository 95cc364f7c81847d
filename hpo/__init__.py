"""The service: command line, study files, samplers, controller, Ray Tune.

In Python: `hpo.start`, `hpo.resume` and `hpo.load` (hpo/api.py), imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpo.ours import find_ours_first

if TYPE_CHECKING:
    from hpo.api import Study, Unfinished, load, resume, start
    from hpo.errors import HpoError
    from hpo.study.config import StudyConfig
    from storage import LedgerError
    from trainer.config.settings import ConfigError

__all__ = [
    "ConfigError", "HpoError", "LedgerError", "Study", "StudyConfig", "Unfinished",
    "load", "resume", "start",
]  # fmt: skip

_ELSEWHERE = {
    "ConfigError": "trainer.config.settings",
    "HpoError": "hpo.errors",
    "LedgerError": "storage",
    "StudyConfig": "hpo.study.config",
}

find_ours_first()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "hpo.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
