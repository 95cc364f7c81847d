"""The one way in which a path that a person wrote becomes absolute, wherever it was written."""

from __future__ import annotations

from pathlib import Path

from trainer.config.settings import ConfigError, is_url


def absolute(path: str, where: str, folder: Path | None = None) -> str:
    """`path`, relative to `folder` or beginning with `~`, made absolute; a URL as it is.

    Without `folder` it is relative to the working folder. Links are kept as they are written, and
    `..` leads where the system says. Raises ConfigError, beginning with `where`.
    """
    if is_url(path):
        return path
    try:
        found = ((folder or Path()) / Path(path).expanduser()).absolute()
        return str(found.resolve() if ".." in found.parts else found)
    except RuntimeError as error:  # there is no such user, or it has no home
        raise ConfigError(f"{where}: {path}: {error}; give the full path") from None
    except FileNotFoundError:
        raise ConfigError(
            f"{where}: {path}: the working folder has been removed; go to another, or give the "
            "full path"
        ) from None
