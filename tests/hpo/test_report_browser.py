"""The report as people see it, on a screen without a network and on paper, small and large.

The screenshots of docs/images are what this leaves in `$HPO_SCREENSHOTS`, a folder, if that is set.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium
import pytest

from hpo.reading.report import page
from tests.chromium import CHROMIUM, OFFLINE, Tab, tab
from tests.hpo.long_studies import written

pytestmark = pytest.mark.slow

METRICS = ("valid_ppl", "step_seconds")
# By the title of a figure: what is drawn in it, as CSS finds it, how often at least, and its words.
MARKS = {
    "history": (".scatterlayer path.point", 6, "Best Value"),
    "parameter importances": (".barlayer .point path", 6, "Hyperparameter Importance"),
    "parallel coordinates": (".scatterlayer path.js-line", 6, "optim.warmup_steps"),
    "slices": (".scatterlayer path.point", 36, "'linear'"),
    "learning curves": (".scatterlayer path.js-line", 7, "pruned or unfinished"),
    "Pareto front": (".scatterlayer path.point", 6, "Best Trial"),
    "Depth front": (".scatterlayer path.js-line", 1, "layers kept"),
    "Time line": (".barlayer .point path", 12, "UTC"),
}
SECTION = (
    "[...document.querySelectorAll('section')].find(s => s.children[0].textContent == {title!r})"
)


def titles() -> list[str]:
    """Of all figures that a page of two objectives has."""
    each = [title for title in MARKS if title[0].islower()]
    return [f"{metric}: {title}" for metric in METRICS for title in each] + [
        title for title in MARKS if title not in each
    ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with tab(tmp_path_factory.mktemp("chromium"), *OFFLINE) as its:
        yield its


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("trials", [12, 2000])
def test_a_report_is_whole_without_a_network_and_on_paper(
    trials: int, browser: Tab, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    ledger = written(f"sqlite:///{tmp_path}/hpo.db", trials, METRICS, says="linear").ledger
    file.write_text(page(ledger, "played"))
    assert file.stat().st_size < 10e6

    browser.open(file.as_uri())
    drawn = {}
    for title in titles():
        marks, least, _ = MARKS[title.split(": ")[-1]]
        found = f"{SECTION.format(title=title)}.querySelectorAll({marks!r})"
        drawn[title] = browser.run(f"{found}.length")
        assert drawn[title] >= least, title
    curves = SECTION.format(title="valid_ppl: learning curves")
    faint = browser.run(f"{curves}.querySelector('path.js-line').style.strokeOpacity")
    assert float(faint) == 0.5, "pruned trials, which are drawn first"
    text = browser.run("document.body.innerText")
    for words in ("at the upper end of its space (0.3)", "worker_lost", "device-seconds",
                  "optim.lr:", "optuna 5"):  # fmt: skip
        assert words in text
    assert "git commit" in text or not (Path(__file__).parents[2] / ".git").exists()
    assert not browser.run("document.querySelectorAll('[data-title^=Share]').length"), "an upload"
    assert browser.requested() == [file.as_uri()]
    assert browser.complaints() == []
    if folder := os.environ.get("HPO_SCREENSHOTS"):
        lines = SECTION.format(title="valid_ppl: parallel coordinates")
        top = 0 if trials < 20 else browser.run(f"{lines}.getBoundingClientRect().top") - 10
        (Path(folder) / f"report-{trials}.png").write_bytes(browser.picture(top, 1360))

    paper = [*pdfium.PdfDocument(browser.pdf())]
    assert len(paper) < 12
    texts = [sheet.get_textpage().get_text_bounded() for sheet in paper]
    on_sheet: Counter[int] = Counter()
    for title in titles():
        [sheet] = [n for n, text in enumerate(texts) if title in text.splitlines()]
        assert MARKS[title.split(": ")[-1]][2] in texts[sheet], "the figure, with its heading"
        on_sheet[sheet] += drawn[title]
    for sheet, marks in on_sheet.items():
        paths = paper[sheet].get_objects([pdfium.raw.FPDF_PAGEOBJ_PATH])
        assert sum(1 for _ in paths) > marks
