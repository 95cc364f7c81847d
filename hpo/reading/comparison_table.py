"""A comparison as tables: on the terminal, in Markdown and LaTeX, and as CSV with every digit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from hpo.reading.cells import markdown_table, spread_text
from hpo.reading.views import View
from trainer.config.settings import ConfigError

Rows = list[list[str]]  # the first has the columns' names


def tables(found: View) -> list[Rows]:
    """Return three tables: perplexities, differences from the recipe `against`, and costs."""
    return [_perplexities(found), _differences(found), _costs(found)]


def _perplexities(found: View) -> Rows:
    shares = [*found["recipes"][0]["sub_models"]]
    rows = [["recipe", "seeds", "valid", "test", *(f"{share} depth" for share in shares)]]
    for row in found["recipes"]:
        spreads = [row["valid_ppl"], row["test_ppl"], *(row["sub_models"][s] for s in shares)]
        rows.append([row["recipe"], _seeds(row), *(spread_text(each, ",.2f") for each in spreads)])
    return rows


def _differences(found: View) -> Rows:
    rows = [[f"less {found['against']}", "valid", "test"]]
    for row in found["recipes"]:
        if row["recipe"] != found["against"]:
            between = row["differences"]
            cells = [_interval(between["valid_ppl"]), _interval(between["test_ppl"])]
            rows.append([row["recipe"], *cells])
    return rows


def _costs(found: View) -> Rows:
    target = "" if found["target_ppl"] is None else f"{found['target_ppl']:.4g}"
    columns = [f"steps to {target}", f"seconds to {target}", "tokens/s", "peak MiB", "cost"]
    rows = [["recipe", *columns]]
    for row in found["recipes"]:
        some = row["reached_target"] < len(row["seeds"])
        reached = f" ({row['reached_target']} of {len(row['seeds'])})" if some else ""
        steps = spread_text(row["steps_to_target"], ",.0f") + reached
        rows.append(
            [
                row["recipe"],
                steps if row["reached_target"] else "never",
                spread_text(row["seconds_to_target"], ",.1f"),
                spread_text(row["tokens_per_second"], ",.0f"),
                spread_text(row["peak_memory_bytes"], ",.0f", 2**20),
                spread_text(row["device_seconds"], ",.1f"),
            ]
        )
    return rows


def remarks(found: View) -> list[str]:
    """Return the lines that a reader of the tables has to know."""
    percent = f"{found['confidence']:.0%}".replace("%", " %")
    said = [
        "perplexities: mean ± standard deviation over the seeds; sub-models without fine-tuning",
        f"differences: seed by seed, mean and {percent} confidence interval of each by itself",
        "cost: device-seconds of one training, with its evaluations",
    ]
    if any("best" in row["recipe"].split("+") for row in found["recipes"]):
        said.append(f"best: trial {found['best']} of {found['study']}")
    said += _unlike(found)
    for teacher in found["teachers"]:
        if teacher["seconds"]:
            said.append(
                f"teacher {teacher['teacher']}: {teacher['seconds']:.0f} s, once, in no cost above"
            )
    return said


def _unlike(found: View) -> list[str]:
    """Name each recipe whose steps or model differ in size from those of `against`."""
    own = next(row["size"] for row in found["recipes"] if row["recipe"] == found["against"])
    said = []
    for row in found["recipes"]:
        others = [f"{key} {value}" for key, value in row["size"].items() if value != own[key]]
        if others:
            same = ", ".join(
                f"{key} {own[key]}" for key in row["size"] if row["size"][key] != own[key]
            )
            said.append(
                f"{row['recipe']}: {', '.join(others)}, where {found['against']} has {same}: "
                "as many steps, but not of the same size"
            )
    return said


def check_files(files: Sequence[Path]) -> None:
    """Raise ConfigError for a file whose suffix is none that tables are written in."""
    for file in files:
        if file.suffix not in _WRITERS:
            raise ConfigError(f"-o {file}: must end with {', '.join(_WRITERS)}")


def content_for(file: Path, found: View) -> str:
    """Return the tables in the format that the suffix of `file` names."""
    return _WRITERS[file.suffix](found)


def _markdown(found: View) -> str:
    parts = (markdown_table(head, body) for head, *body in tables(found))
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in remarks(found))]) + "\n"


def _latex(found: View) -> str:
    """Return a `tabular` for each table, with booktabs' rules, and the remarks as comments."""
    parts = [f"% {line}" for line in remarks(found)]
    for head, *body in tables(found):
        frame = pd.DataFrame(body, columns=head)
        text: str = frame.style.hide(axis="index").format(escape="latex").format_index(
            escape="latex", axis=1
        ).to_latex(hrules=True)  # fmt: skip
        parts.append(text.replace("±", r"$\pm$"))
    return "\n".join(parts)


def _csv(found: View) -> str:
    table: str = pd.DataFrame([_flat(row) for row in found["recipes"]]).to_csv(index=False)
    return table


_WRITERS: dict[str, Callable[[View], str]] = {".md": _markdown, ".tex": _latex, ".csv": _csv}


def _flat(row: View) -> View:
    flat: View = {"recipe": row["recipe"], "seeds": len(row["seeds"])}
    spreads = ("valid_ppl", "test_ppl", "steps_to_target", "seconds_to_target", "tokens_per_second",
               "peak_memory_bytes", "device_seconds")  # fmt: skip
    for name in spreads:
        flat |= {f"{name}_mean": row[name]["mean"], f"{name}_sd": row[name]["sd"]}
    for share, each in row["sub_models"].items():
        name = f"valid_ppl_depth_{share.replace('/', '_of_')}"
        flat |= {f"{name}_mean": each["mean"], f"{name}_sd": each["sd"]}
    for name, difference in row["differences"].items():
        for part in ("mean", "low", "high"):
            flat[f"{name}_difference_{part}"] = difference and difference[part]
    return {**flat, "reached_target": row["reached_target"]}


def _seeds(row: View) -> str:
    early = ", ".join(f"{count} {reason}" for reason, count in row["ended_early"].items())
    return f"{len(row['seeds'])} ({early})" if early else str(len(row["seeds"]))


def _interval(found: View | None) -> str:
    if found is None:
        return ""
    within = "" if found["low"] is None else f" [{found['low']:+.2f}, {found['high']:+.2f}]"
    return f"{found['mean']:+.2f}{within}"
