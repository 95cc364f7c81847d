"""Files that a person asks for: there whole, or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from trainer.config.settings import ConfigError


def write_whole(content: str | bytes, file: Path) -> None:
    """Write `content` to `file`. Raises ConfigError where that cannot be."""
    if file.is_dir():
        raise ConfigError(f"{file}: is a folder; name a file in it")
    aside = file.with_name(f".{file.name}.writing")
    try:
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())
        aside.replace(file)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
