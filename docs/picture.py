"""A picture of a terminal, as SVG: how docs/images/start.svg was made of a real `hpo start`.

    tmux capture-pane -ep -t PANE | python -m docs.picture FILE.svg

What the terminal shows is not changed.
"""

from __future__ import annotations

import io
import sys

from rich.console import Console
from rich.text import Text


def svg(screen: str, title: str) -> str:
    """The terminal's `screen`, with its escape sequences, as a picture."""
    text = Text.from_ansi(screen.rstrip())
    width = max(line.cell_len for line in text.split())
    console = Console(record=True, width=width + 1, file=io.StringIO())
    console.print(text)
    return console.export_svg(title=title, unique_id="terminal")


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(svg(sys.stdin.read(), title="hpo start"))
