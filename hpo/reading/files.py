"""Writing a file that a person asks for: all of it, or nothing."""

from __future__ import annotations

from pathlib import Path

from trainer.config.paths import expanded
from trainer.config.settings import ConfigError
from trainer.config.whole import whole_file


def write_whole(content: str | bytes, file: Path) -> Path:
    """Write `content` to `file`, and return `file`. Raises ConfigError if it cannot be written."""
    file = expanded(str(file), "the file")
    if file.is_dir():
        raise ConfigError(f"{file}: is a folder; name a file in it")
    try:
        with whole_file(file, durable=False) as aside:
            aside.write(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    return file
