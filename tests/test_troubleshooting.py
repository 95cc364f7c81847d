"""The messages that docs/troubleshooting.md explains are those that the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENOUGH = 18  # characters of its own that a text is known by, if they are not all of a message
OPENING = r"([\w,;]|\\.){12}"  # or so many at its beginning, and there alone


class Texts(ast.NodeVisitor):
    """Every text of some code, as a pattern that has anything where the code puts in a value."""

    def __init__(self) -> None:
        self.patterns: dict[str, int] = {}  # and how many characters are its own

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.patterns[re.escape(node.value)] = len(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        own = [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
        self.patterns["".join(re.escape(part) or ".+" for part in own)] = len("".join(own))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)


def test_every_message_that_is_explained_is_one_that_the_code_says() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    texts = Texts()
    for package in ("hpo", "trainer", "storage"):
        for file in (ROOT / package).rglob("*.py"):
            texts.visit(ast.parse(file.read_text(encoding="utf-8")))
    known = [re.compile(pattern) for pattern, own in texts.patterns.items() if own >= ENOUGH]
    opening = [re.compile(pattern) for pattern in texts.patterns if re.match(OPENING, pattern)]

    def is_said(message: str) -> bool:
        # What the service adds to every reason to leave would find any of them.
        message = re.sub("^left study mine: |; go on with: .*", "", message)
        found = any(k.search(message) for k in known) or any(k.match(message) for k in opening)
        return found or re.escape(message) in texts.patterns

    assert not [message for message in messages if not is_said(message)]
    assert len(set(messages)) == len(messages) >= 25
