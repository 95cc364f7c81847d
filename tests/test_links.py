"""Every link between our pages leads somewhere: to a file that is there, and a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

from docs.reference import anchor

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]


def test_every_link_leads_somewhere() -> None:
    astray = []
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)(.*?)\)", page.read_text(encoding="utf-8")):
            name, _, heading = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (heading and heading not in headings(target)):
                astray.append(f"{page.relative_to(ROOT)}: {link}")
    assert not astray


def headings(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
    return {anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
