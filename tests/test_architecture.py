"""The house's rules on imports, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOR_ALL = "hpo.errors"  # the root of all errors, which trainer and storage may import too


def imports_of(file: Path) -> set[str]:
    """Top-level names of every module that `file` imports, anywhere in it, `FOR_ALL` excepted."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module.split(".")[0]} if node.module != FOR_ALL else set()
    return found


def files_of(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("trainer", {"ray", "optuna", "ax", "sqlalchemy", "hpo", "storage"}),
        ("storage", {"ray", "torch", "deepspeed", "ax", "hpo", "trainer"}),
    ],
)
def test_a_package_imports_nothing_above_it(package: str, forbidden: set[str]) -> None:
    broken = {str(f): imports_of(f) & forbidden for f in files_of(package)}
    assert not {file: names for file, names in broken.items() if names}


def test_what_every_package_imports_imports_nothing() -> None:
    assert not imports_of(ROOT / f"{FOR_ALL.replace('.', '/')}.py")


@pytest.mark.parametrize(
    ("library", "files"),
    [
        ("ray", {f"hpo/{n}.py" for n in ("dispatch", "gang", "pbt", "ray_daemon", "trainable")}),
        ("ax", {"hpo/ax_sampler.py"}),
    ],
)
def test_adapters_alone_import_their_library(library: str, files: set[str]) -> None:
    users = {
        str(f.relative_to(ROOT)) for p in ("hpo", "storage", "trainer") for f in files_of(p)
        if library in imports_of(f)
    }  # fmt: skip
    assert users == files


def test_nothing_unpickles() -> None:
    """Neither a run folder nor a ledger runs code: torch, numpy and pandas would, with these."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"torch.load", "np.load", "numpy.load", "pandas.read_pickle", "yaml.unsafe_load"}
    found = []
    for file in (f for package in ("hpo", "storage", "trainer") for f in files_of(package)):
        found += [(file.name, name) for name in imports_of(file) & modules]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node) in calls:
                found.append((file.name, ast.unparse(node)))
    assert not found


@pytest.mark.parametrize(
    "module", ["trainer.config.train", "hpo.cli", "hpo.study.config", "hpo.reading.views"]
)
def test_what_answers_the_user_imports_neither_torch_nor_ray(module: str) -> None:
    program = f"import {module}, sys; sys.exit(bool({{'torch', 'ray', 'ax'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_command_line_starts_without_the_database() -> None:
    program = (
        "import hpo.cli, sys; sys.exit('optuna' in sys.modules or 'sqlalchemy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_is_installed_carries_every_config_and_migration(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(tmp_path)], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"hpo/{f.relative_to(ROOT)}" for f in (ROOT / "configs").rglob("*.yaml")}
    migrations = {str(f.relative_to(ROOT)) for f in (ROOT / "storage").rglob("versions/*.py")}
    assert len(configs) >= 12
    assert configs | migrations | {"hpo/report.html"} <= names
