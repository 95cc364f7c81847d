"""The commands about data sets."""

from __future__ import annotations

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
    from hpo.prepare import prepare

    vocabulary = {"tokenizer": tokenizer, "vocabulary_size": vocabulary_size}
    prepare({"name": name, "dir": folder, **vocabulary}, url, say)
