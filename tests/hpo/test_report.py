"""The page about a study: what is on it, and what must never be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial
from plotly.offline import get_plotlyjs

from hpo.commands.writing import report
from hpo.reading.figures import importances
from hpo.reading.report import at_edges, page
from tests.hpo.long_studies import MARKUP, written
from tests.hpo.stage import Stage

ROOT = Path(__file__).parents[2]
Page = Callable[..., str]


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a study, made once."""
    made: dict[Any, str] = {}

    def get(*of: Any) -> str:
        if of not in made:
            url = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/hpo.db"
            made[of] = page(written(url, *of).ledger, "played")
        return made[of]

    return get


def own(html: str) -> str:
    """The page without plotly.js."""
    library = get_plotlyjs()
    assert html.count(library) == 1
    return html.replace(library, "")


def headings(html: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", html)


def drawn(html: str) -> int:
    return own(html).count("Plotly.newPlot(")


def test_a_page_of_twelve_trials_shows_everything(page_of: Page) -> None:
    html = page_of(12)
    assert headings(html) == [
        "Best trial", "valid_ppl: history", "valid_ppl: parameter importances",
        "valid_ppl: parallel coordinates", "valid_ppl: slices", "valid_ppl: learning curves",
        "Depth front", "Time line", "Failures", "Cost", "The study file", "This page",
    ]  # fmt: skip
    assert drawn(html) == 8, "six parameters are two rows of slices"
    assert "Left out" not in html
    assert "12 of 12 trials begun" in html
    assert "optim.lr:" in html, "the study file"
    assert re.search(r"optuna \d+\.", own(html))
    assert re.search(r"git commit [0-9a-f]{40}", own(html)) or not (ROOT / ".git").exists()


@pytest.mark.parametrize("trials", [12, 2000])
def test_a_page_loads_nothing_and_stays_small(page_of: Page, trials: int) -> None:
    html = page_of(trials)
    assert len(html.encode()) < 10e6
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", own(html))
    assert "default-src 'none'" in html


def test_a_page_of_two_thousand_trials_says_what_it_leaves_out(page_of: Page) -> None:
    html = page_of(2000)
    assert "Of 1000 trials the best 20 and a sample of the others, 200 in all." in html
    assert own(html).count("customdata[0]") == 200, "lines of parallel coordinates"
    assert "The newest 2000; 250 earlier ones are left out." in html
    assert "The newest 20 of 500." in html


def test_whatever_the_ledger_says_is_text(page_of: Page) -> None:
    html = own(page_of(12))
    assert "alert(" in html
    assert MARKUP not in html
    assert r"\u003cscript" not in html, "nor as markup that Plotly could take for such"
    scripts = len(re.findall("<script", html))
    assert scripts == html.count("</script>") == 1 + drawn(page_of(12))


@pytest.mark.parametrize(
    ("trials", "why"), [(0, "No trial is complete with a finite"), (1, "need 5")]
)
def test_a_page_of_too_few_trials_says_why_figures_are_missing(
    page_of: Page, trials: int, why: str
) -> None:
    html = page_of(trials)
    assert why in html
    assert drawn(html) >= trials


def test_each_of_several_objectives_has_its_history_and_importances(page_of: Page) -> None:
    found = headings(page_of(24, ("valid_ppl", "step_seconds")))
    for metric in ("valid_ppl", "step_seconds"):
        assert {f"{metric}: history", f"{metric}: parameter importances"} <= {*found}
    assert "Pareto front" in found
    assert "Best trials: the Pareto front" in found
    assert "Depth front" in headings(page_of(1))


def test_a_parameter_that_one_trial_has_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    study = optuna.create_study()
    for number in range(8):
        drawn_of = {"lr": FloatDistribution(0.0, 1.0)}
        drawn_of |= {} if number else {"p_final": FloatDistribution(0.0, 1.0)}
        params = dict.fromkeys(drawn_of, number / 8)
        study.add_trial(create_trial(value=number, params=params, distributions=drawn_of))
    assert importances(study, "valid_ppl").data
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("value", "dimension", "edge"),
    [
        (1.05e-4, FloatDistribution(1e-4, 1e-2, log=True), "lower end of its space (0.0001)"),
        (2e-4, FloatDistribution(1e-4, 1e-2, log=True), None),
        (2e-4, FloatDistribution(1e-4, 1e-2), "lower end of its space (0.0001)"),
        (0.39, FloatDistribution(0.0, 0.4), None),
        (0.395, FloatDistribution(0.0, 0.4), "upper end of its space (0.4)"),
        (8, IntDistribution(2, 8), "upper end of its space (8)"),
        (5, IntDistribution(5, 5), None),
    ],
)
def test_a_best_trial_at_the_edge_of_its_space_is_warned_of(
    value: float, dimension: Any, edge: str | None
) -> None:
    best = create_trial(value=1.0, params={"x": value}, distributions={"x": dimension})
    best.params["seed"] = 1
    best.distributions["seed"] = IntDistribution(0, 2**32 - 1)  # has no better end
    warnings = at_edges([best])
    assert len(warnings) == (edge is not None)
    assert all(edge in warning for warning in warnings if edge)


def test_a_front_is_warned_of_only_where_many_of_it_lie_at_an_edge() -> None:
    def front(at_edge: int) -> list[Any]:
        space = {"x": FloatDistribution(0.0, 1.0)}
        params = [{"x": 0.01 if number < at_edge else 0.5} for number in range(8)]
        return [create_trial(value=1.0, params=x, distributions=space) for x in params]

    assert not at_edges(front(1))
    assert "in 2 of 8 best trials, at the lower end" in at_edges(front(2))[0]


def test_the_command_writes_the_page_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    Stage(url)
    (tmp_path / "file").touch()
    for output, why in (
        (tmp_path / "no" / "r.html", "cannot be written: No such file or directory"),
        (tmp_path / "file" / "r.html", "cannot be written: Not a directory"),
        (tmp_path, "is a folder; name a file in it"),
    ):
        with pytest.raises(SystemExit, match="2"):
            report("played", output, url)
        assert f"-o {output}: {why}" in capsys.readouterr().err
    report("played", tmp_path / "r.html", url)
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".writing")]
