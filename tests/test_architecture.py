"""The house's rules on imports, read from the source, and what importing may do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hpo", "storage", "trainer")

# A room imports only rooms of the rows above its own, and itself. A file beside the rooms counts
# as a room by its name.
# They import nothing of ours; anybody may import them.
LEAVES = {"hpo.clock", "hpo.errors", "hpo.ours", "hpo.training"}
ORDER = {
    "hpo": [
        {"search"},
        {"study"},
        {"control"},
        {"workers", "observers", "reading"},
        {"service"},
        {"evaluation"},
        {"commands", "api"},
        {"cli", ""},  # "" is the package's own __init__, which hands out the api
        {"__main__"},
    ],
    "trainer": [
        {"config"},
        {"data"},
        {"model"},
        {"runs"},
        {"teaching"},
        {"engine"},
        {"measuring"},
        {"run", "ending", "signals"},
        {"export", "terminal"},
        {"__main__"},
    ],
}
# Beside torch and Ray, nothing of `search` and `study` may need these before it is asked.
LIBRARIES = {
    "ray": {
        f"hpo/workers/{n}.py"
        for n in ("dispatch", "gang", "pbt", "ray_daemon", "ray_start", "trainable")
    },
    "ax": {"hpo/search/samplers/ax.py"},
}
FORBIDDEN = {
    "trainer": {"ray", "optuna", "ax", "sqlalchemy", "storage"},
    "storage": {"ray", "torch", "deepspeed", "ax", "trainer"},
    "hpo/search": {"ray", "torch", "deepspeed"},
    "hpo/study": {"ray", "torch", "deepspeed", "ax"},
    "hpo/control": {"ray", "torch", "deepspeed", "ax"},
    "hpo/reading": {"ray", "torch", "deepspeed", "ax"},
}

Sources = Mapping[str, str]  # source code by module


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*folders: str) -> dict[str, str]:
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    return {module_of(file): file.read_text() for file in files}


def imported(source: str) -> set[str]:
    """Every dotted name that is imported anywhere in it, also under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def graph(code: Sources) -> dict[str, set[str]]:
    """The modules of `code` that each of them imports; packages only where they are meant."""
    edges: dict[str, set[str]] = {}
    for module, source in code.items():
        names = imported(source) & code.keys()
        # `from hpo.reading import views` names the empty package as well.
        meant = {n for n in names if not any(other.startswith(f"{n}.") for other in names)}
        edges[module] = meant - {module}
    return edges


def room_of(module: str) -> tuple[str, str]:
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def level(module: str) -> int:
    package, room = room_of(module)
    (found,) = [place for place, rooms in enumerate(ORDER[package]) if room in rooms]
    return found


def upward(code: Sources) -> list[str]:
    """Imports of a room that is above, or beside, the importing one."""
    return [
        f"{module} imports {other}"
        for module, others in graph(code).items()
        for other in others - LEAVES
        if room_of(module)[0] == room_of(other)[0] in ORDER and module not in LEAVES
        if room_of(module) != room_of(other) and level(other) >= level(module)
    ]


def circle(code: Sources) -> list[str]:
    """The modules of a circle of imports; none if there is none."""
    try:
        list(TopologicalSorter(graph(code)).static_order())
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def forbidden(code: Sources, libraries: Iterable[str]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, source in code.items()
        for name in imported(source)
        if name.partition(".")[0] in libraries
        if not any(f"{name}.".startswith(f"{leaf}.") for leaf in LEAVES)
    ]


def test_a_room_imports_only_rooms_below_it() -> None:
    assert upward(sources(*PACKAGES)) == []


def test_no_imports_go_in_a_circle() -> None:
    assert circle(sources(*PACKAGES)) == []


@pytest.mark.parametrize(("folder", "libraries"), FORBIDDEN.items())
def test_a_room_knows_nothing_of_what_it_must_not_need(folder: str, libraries: set[str]) -> None:
    code = sources(folder)
    if folder == "hpo/search":
        code.pop("hpo.search.samplers.ax")
        libraries = {*libraries, "ax"}
    above = {"hpo", "storage", "trainer"} - {folder.partition("/")[0]} if "/" not in folder else {}
    wrong = forbidden(code, {*libraries, *above})
    assert wrong == []


def test_leaves_import_nothing_of_ours() -> None:
    code = sources("hpo")
    assert forbidden({leaf: code[leaf] for leaf in LEAVES}, PACKAGES) == []


def test_the_rules_find_what_breaks_them() -> None:
    code = sources(*PACKAGES)

    def planted(module: str, line: str) -> dict[str, str]:
        return {**code, module: f"{code[module]}\n{line}\n"}

    up = planted("hpo.search.space", "from hpo.study.config import StudyConfig")
    assert upward(up) == ["hpo.search.space imports hpo.study.config"]
    beside = planted("hpo.reading.views", "from hpo.observers import live")
    assert upward(beside) == ["hpo.reading.views imports hpo.observers.live"]
    typed = "if TYPE_CHECKING:\n    from hpo.control.parking import Parking"
    assert {"hpo.control.pruning", "hpo.control.parking"} <= {
        *circle(planted("hpo.control.pruning", typed))
    }
    torch = planted("hpo.search.points", "def f():\n    import torch.nn")
    search = {name: text for name, text in torch.items() if name.startswith("hpo.search")}
    assert forbidden(search, {"torch"}) == ["hpo.search.points imports torch.nn"]


def test_rooms_are_packages_without_code() -> None:
    """A rank that imports one light module of a room would load all of what its __init__ names."""
    rooms = [f for package in ("hpo", "trainer") for f in (ROOT / package).rglob("__init__.py")]
    assert [f for f in rooms if f.parent.parent != ROOT and f.read_text().strip()] == []


@pytest.mark.parametrize(("library", "files"), LIBRARIES.items())
def test_adapters_alone_import_their_library(library: str, files: set[str]) -> None:
    users = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if any(name.partition(".")[0] == library for name in imported(file.read_text()))
    }
    assert users == files


def test_importing_changes_nothing_in_the_process() -> None:
    """Every module, each in a process that has imported its libraries before."""
    modules = [m for m in sources(*PACKAGES) if "__main__" not in m and "migrations" not in m]
    program = """
import importlib, os, sys, warnings, signal, logging
import optuna, ray.tune, ray.tune.schedulers.pbt, torch, sqlalchemy
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
def state():
    return (dict(os.environ), optuna.logging.get_verbosity(), Trial.get_pickled_error,
            class_cache.ENV_VARS_TO_PROPAGATE.copy(), dict(class_cache.DEFAULT_ENV_VARS),
            signal.getsignal(2), torch.get_num_threads(), logging.getLogger().level)
before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
    assert state() == before, module
assert "deepspeed" not in sys.modules, "it reads DS_ACCELERATOR as it is imported"
"""
    for order in (modules, modules[::-1]):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, *order],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_unpickles() -> None:
    """Neither a run folder nor a ledger runs code: torch, numpy and pandas would, with these."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"torch.load", "np.load", "numpy.load", "pandas.read_pickle", "yaml.unsafe_load"}
    found = []
    for module, source in sources(*PACKAGES).items():
        found += [(module, name) for name in imported(source) & modules]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node) in calls:
                found.append((module, ast.unparse(node)))
    assert not found


@pytest.mark.parametrize(
    "module", ["trainer.config.train", "hpo.cli", "hpo.study.load", "hpo.reading.views"]
)
def test_what_answers_the_user_imports_neither_torch_nor_ray(module: str) -> None:
    program = f"import {module}, sys; sys.exit(bool({{'torch', 'ray', 'ax'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_command_line_starts_without_the_database() -> None:
    program = (
        "import hpo.cli, sys; sys.exit('optuna' in sys.modules or 'sqlalchemy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_is_installed_carries_every_module_config_and_migration(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(tmp_path)], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"hpo/{f.relative_to(ROOT)}" for f in (ROOT / "configs").rglob("*.yaml")}
    code = {str(f.relative_to(ROOT)) for p in PACKAGES for f in (ROOT / p).rglob("*.py")}
    assert len(configs) >= 12
    assert configs | code | {"hpo/reading/report.html"} <= names


def test_every_station_of_a_trial_is_where_its_page_says() -> None:
    page = (ROOT / "docs/life-of-a-trial.md").read_text()
    stations = re.findall(r"\| `([\w/]+\.py)` \| `(?:(\w+)\.)?(\w+)` \|", page)
    assert len(stations) >= 12
    for file, owner, function in stations:
        names = {
            (outer.name if isinstance(outer, ast.ClassDef) else "", node.name)
            for outer in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(outer, (ast.Module, ast.ClassDef))
            for node in outer.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        assert (owner, function) in names, f"{file} has no {owner}.{function}"


def test_every_file_that_the_architecture_page_names_is_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+/[\w.]+\.py)`", page))
    assert len(named) >= 20
    assert [file for file in sorted(named) if not (ROOT / file).is_file()] == []
