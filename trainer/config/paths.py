"""The one way in which a path that a person wrote becomes absolute, wherever it was written."""

from __future__ import annotations

from pathlib import Path

from trainer.config.plain import is_text
from trainer.config.settings import ConfigError, is_url

_SQLITE = "sqlite:///"


def absolute(path: str, where: str, folder: Path | None = None) -> str:
    """`path`, relative to `folder` or beginning with `~`, made absolute; a URL as it is.

    Without `folder` it is relative to the working folder. Links are kept as they are written, and
    `..` leads where the system says. Raises ConfigError, beginning with `where`.
    """
    if is_url(path):
        return path
    try:
        found = ((folder or Path()) / expanded(path, where)).absolute()
        return str(found.resolve() if ".." in found.parts else found)
    except FileNotFoundError:
        raise ConfigError(
            f"{where}: {path}: the working folder has been removed; go to another, or give the "
            "full path"
        ) from None
    except RuntimeError as error:  # links that lead to each other
        raise ConfigError(f"{where}: {path}: {error}") from None


def expanded(path: str, where: str) -> Path:
    """`path` with a leading `~` expanded. Raises ConfigError, beginning with `where`."""
    if not is_text(path):
        raise ConfigError(f"{where}: {path!a}: is no path in UTF-8; rename it")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # there is no such user, or it has no home
        reason = str(error).rstrip(".")
        raise ConfigError(f"{where}: {path}: {reason}; give the full path") from None


def expanded_url(url: str, where: str) -> str:
    """A ledger's URL, with a leading `~` of a SQLite file expanded. Raises as `expanded` does."""
    if not url.startswith(f"{_SQLITE}~"):
        return url
    return f"{_SQLITE}{expanded(url.removeprefix(_SQLITE), where)}"
