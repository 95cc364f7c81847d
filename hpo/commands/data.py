"""The command that prepares a data set: it shows progress, and says what came of it.

`trainer/data/fetch.py` fetches the texts, and `trainer/data/splits.py` makes tokens of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer

from hpo.commands.common import say


def prepare_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ptb, wikitext-2 or wikitext-103.")],
    folder: Annotated[
        str | None,
        typer.Option(
            "--dir",
            metavar="FOLDER",
            help="Where data sets are kept. Else $HPO_DATA_DIR, else the cache, where trainings "
            "look too.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Another source: a zip or tar, or with {file} in it the address of each text.",
        ),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="NAME", help="words or bpe.")
    ] = "words",
    vocabulary_size: Annotated[
        int, typer.Option("--vocabulary-size", metavar="N", help="Tokens of bpe.")
    ] = 8192,
) -> None:
    """Fetch a data set, verify it, and tokenize it for the trainings of this machine."""
    vocabulary = {"tokenizer": tokenizer, "vocabulary_size": vocabulary_size}
    _prepare({"name": name, "dir": folder, **vocabulary}, url)


def _prepare(settings: Mapping[str, object], url: str | None) -> None:
    """Fetch and tokenize the data set of the `data` section `settings`; say where, and how much.

    Raises ConfigError, in one line, if that cannot be done.
    """
    from trainer.config.settings import ConfigError, nearest
    from trainer.config.train import resolve
    from trainer.data.corpora import CORPORA
    from trainer.data.fetch import fetch
    from trainer.data.splits import data_folder, load_splits
    from trainer.data.tokens import TUNING

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
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn(what), *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
