"""`hpo data prepare`: a data set fetched and tokenized, with bars of progress on standard error.

It keeps nothing itself: texts belong to `trainer/fetch.py`, tokens to `trainer/data.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from trainer.config import resolve
from trainer.corpora import CORPORA
from trainer.data import data_folder, load_splits
from trainer.fetch import fetch
from trainer.settings import ConfigError, nearest
from trainer.tokens import TUNING


def prepare(settings: Mapping[str, object], url: str | None, say: Callable[[str], None]) -> None:
    """Have texts and tokens of the `data` section `settings` here; `say` where and how many.

    Raises ConfigError, in one line, when that cannot be.
    """
    name = str(settings["name"])
    if name not in CORPORA:
        raise ConfigError(f"{name}: no such data set to fetch{nearest(name, CORPORA)}")
    config = resolve({"data": settings}, "hpo data prepare").data
    folder = data_folder(config.dir)
    with _bar(f"fetching {name}") as show:
        fetched = fetch(name, folder, url, show)
    say(f"{name}: {'fetched into' if fetched else 'already in'} {folder / name}")

    files = {split: folder / CORPORA[name].file(split) for split in TUNING}
    # The train split is read for its vocabulary first.
    total = sum(file.stat().st_size for file in [files["train"], *files.values()])
    with _bar(f"tokenizing {name}") as show:
        read = 0

        def on_text(characters: int) -> None:
            nonlocal read
            read += characters
            show(read, total)

        splits = load_splits(config, on_text=on_text)
    words = ", ".join(f"{splits.words(split):,} {split}" for split in TUNING)
    say(f"{name}: words {words}; a vocabulary of {len(splits.vocabulary):,} in {splits.folder}")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn(what), *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
