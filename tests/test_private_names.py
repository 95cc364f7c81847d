"""Check that the installed libraries have the private names that our code touches.

A library may take such a name away in any release without a word. Each name is in TABLE, with our
files that touch it and the reason, so that an upgrade that takes one away fails here and tells
which. When a library gets a public way to do the same, take it and delete the row.

A name is private if it begins with an underscore, if it is in a module that its library does not
document (INTERNAL), or if we replace it in its library.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("hpo", "storage", "trainer")

# The name by which each library is installed, by the name by which it is imported.
LIBRARIES = {
    "ax": "ax-platform",
    "cmaes": "cmaes",
    "deepspeed": "deepspeed",
    "optuna": "optuna",
    "optuna_dashboard": "optuna-dashboard",
    "optuna_integration": "optuna-integration",
    "ray": "ray",
    "tensorboardX": "tensorboardX",
    "torch": "torch",
    "typer": "typer",
    "wandb": "wandb",
}
# Modules that their libraries do not document, but name without an underscore. Of Ax, all modules
# are here: what people are meant to use is exported by `ax` itself.
INTERNAL = (
    "ax",
    "deepspeed.ops",
    "deepspeed.runtime",
    "ray.tune.execution",
    "tensorboardX.summary",
    "wandb.sdk",
)


AX_SAMPLER = "hpo/search/samplers/ax.py"


class Private(NamedTuple):
    """Private names of one module or class, with our files and folders that touch them."""

    owner: str
    names: str
    where: str
    why: str

    @property
    def library(self) -> str:
        """The package that it is imported from."""
        return self.owner.partition(".")[0]

    def is_about(self, path: str, name: str) -> bool:
        """Whether `name`, as `_File.touched` gives it, is the row's, in our file `path`."""
        dotted = [f"{self.owner}.{each}" for each in self.names.split()]
        of_it = any(
            each.endswith(name)
            if name[0] == "."
            else _is_in(name, each, ".") or _is_in(each, name, ".")
            for each in dotted
        )
        return of_it and any(_is_in(path, place) for place in self.where.split())


TABLE = (
    # Optuna
    Private(
        "optuna.Trial",
        "_trial_id",
        "hpo/control",
        "Optuna's storage and our tables know a trial by this id; a Trial shows only its number",
    ),
    Private(
        "optuna.trial.FrozenTrial",
        "_trial_id",
        "hpo/control hpo/evaluation hpo/reading hpo/search",
        "the id of a trial that was read, which it does not show either",
    ),
    Private(
        "optuna.Study",
        "_storage _study_id",
        "hpo/search",
        "a sampler is given the study alone, and keeps attributes of trials in its storage",
    ),
    Private(
        "optuna.Study",
        "_get_trials",
        "hpo/search/samplers/at_rungs.py",
        "we override it, because Optuna's samplers read a study's trials through it",
    ),
    Private(
        "optuna.samplers.CmaEsSampler",
        "_cma_rng _init_optimizer _with_margin",
        "hpo/search/samplers/cma_es.py",
        "we make the optimizer as Optuna does, but do not keep it as a pickle",
    ),
    Private(
        "optuna._transform",
        "_SearchSpaceTransform",
        "hpo/search/samplers/cma_es.py",
        "_init_optimizer takes one, and CMA-ES works on its scale",
    ),
    Private(
        "optuna.samplers.TPESampler",
        "_sample _get_internal_repr _compute_acquisition_func",
        "hpo/search/samplers/cost_aware.py",
        "we override them, so that TPE chooses among its candidates by cost too",
    ),
    Private(
        "optuna.trial.FixedTrial",
        "_suggest _params",
        "hpo/search/samplers/distinct.py",
        "we draw a whole point before any of it is written",
    ),
    Private(
        "optuna.pruners.HyperbandPruner",
        "_try_initialization",
        "hpo/search/pruners.py",
        "we call it to have the brackets before the first trial is pruned",
    ),
    Private(
        "optuna.study._multi_objective",
        "_fast_non_domination_rank",
        "hpo/search/ranking.py",
        "we want one Pareto front after another, and a Study shows the first one only",
    ),
    Private(
        "optuna.storages",
        "get_storage",
        "storage/reading.py",
        "we put Optuna's cache around our storage; its docstring says: only for internal usage",
    ),
    Private(
        "optuna.storages.RDBStorage",
        "_get_trials",
        "storage/trials.py",
        "we override it to read trials by plain SELECTs, which is many times faster",
    ),
    Private(
        "optuna.storages.RDBStorage",
        "engine scoped_session",
        "storage/database.py",
        "we replace the session by one that joins Optuna's writes and ours in one transaction",
    ),
    Private(
        "optuna.storages._cached_storage._CachedStorage",
        "_lock _studies _trial_id_to_study_id_and_number _study_id_and_number_to_trial_id",
        "storage/ledger.py",
        "we empty the cache when a transaction fails: it may know trials that were not written",
    ),
    Private(
        "optuna.storages._rdb.storage",
        "_create_scoped_session",
        "storage/trials.py",
        "it turns the database's errors into Optuna's",
    ),
    Private(
        "optuna.storages._rdb.models",
        "NOT_FOUND_MSG TrialModel TrialParamModel TrialValueModel TrialIntermediateValueModel "
        "TrialUserAttributeModel TrialSystemAttributeModel StudyUserAttributeModel",
        "storage",
        "we read trials from Optuna's tables",
    ),
    *(
        Private(f"optuna.storages._rdb.models.{model}", names, place, "we read these columns")
        for model, names, place in (
            ("TrialModel", "trial_id study_id state", "storage"),
            (
                "TrialModel",
                "number _datetime_start_utc _datetime_complete_utc",
                "storage",
            ),
            ("TrialParamModel", "param_name param_value distribution_json", "storage/trials.py"),
            (
                "TrialValueModel",
                "objective value value_type TrialValueType stored_repr_to_value",
                "storage/trials.py",
            ),
            (
                "TrialIntermediateValueModel",
                "step intermediate_value intermediate_value_type TrialIntermediateValueType "
                "stored_repr_to_intermediate_value",
                "storage/trials.py",
            ),
            ("TrialUserAttributeModel", "key value_json", "storage/trials.py"),
            ("StudyUserAttributeModel", "key value_json study_id", "storage/reading.py"),
            ("TrialSystemAttributeModel", "key value_json", "storage/trials.py"),
        )
    ),
    # optuna-dashboard
    Private(
        "optuna_dashboard._app",
        "serialize_study_detail",
        "hpo/reading/dashboard/overlay.py",
        "we replace it to add notes and pictures to the answer about a study",
    ),
    Private(
        "optuna_dashboard._serializer",
        "serialize_frozen_study",
        "hpo/reading/dashboard/writes.py",
        "its page wants a renamed study so",
    ),
    Private(
        "optuna_dashboard._storage",
        "get_study",
        "hpo/reading/dashboard/writes.py",
        "it reads what is serialized",
    ),
    # Ray
    Private(
        "ray._private.authentication.authentication_token_setup",
        "AuthenticationTokenLoader Config",
        "hpo/workers/ray_start.py",
        "Ray reads whether there is a token, and which, once: for the session before",
    ),
    Private(
        "ray._private.ray_constants",
        "ENABLE_RAY_CLUSTER",
        "hpo/workers/ray_start.py",
        "Ray has its servers on loopback only where it knows no clusters, as on macOS",
    ),
    Private(
        "ray.job_config.JobConfig",
        "_py_driver_sys_path _runtime_env_has_working_dir",
        "hpo/workers/ray_start.py",
        "Ray would put the working folder first on its workers' path, with files of our names",
    ),
    Private(
        "ray.tune.execution.class_cache",
        "ENV_VARS_TO_PROPAGATE DEFAULT_ENV_VARS",
        "hpo/workers/ray_start.py",
        "we empty them: AWS keys would stand in Ray's logs, and actors would start slowly",
    ),
    Private(
        "ray.tune.experiment.Trial",
        "get_pickled_error get_json_state",
        "hpo/workers/ray_start.py",
        "we replace them, so that Tune unpickles no file, and keeps no state for a restore",
    ),
    Private(
        "ray.tune.schedulers.pbt",
        "random",
        "hpo/workers/pbt.py",
        "we replace it, so that a comparison follows from its seed",
    ),
    Private(
        "ray.tune.schedulers.pbt.PopulationBasedTraining",
        "_exploit _get_new_config",
        "hpo/workers/pbt.py",
        "we override the first and call the second: the controller does what the scheduler decides",
    ),
    Private(
        "ray.tune.execution.tune_controller.TuneController",
        "_schedule_trial_save",
        "hpo/workers/pbt.py",
        "PopulationBasedTraining calls it on the stand-in that we give it for this controller",
    ),
    # Ax
    Private(
        "ax.api.utils.generation_strategy_dispatch",
        "choose_generation_strategy",
        AX_SAMPLER,
        "it gives the strategy that Ax's Client would use",
    ),
    Private(
        "ax.api.utils.structs",
        "GenerationStrategyDispatchStruct",
        AX_SAMPLER,
        "the strategy is chosen by it",
    ),
    Private(
        "ax.api.utils.instantiation.from_string",
        "optimization_config_from_string",
        AX_SAMPLER,
        "it makes objectives and constraints",
    ),
    *(
        Private(f"ax.core.{module}", names, AX_SAMPLER, "we build an experiment")
        for module, names in (
            ("arm", "Arm"),
            ("data", "Data"),
            ("experiment", "Experiment"),
            ("metric", "Metric"),
            ("parameter", "ChoiceParameter ParameterType RangeParameter"),
            ("search_space", "SearchSpace"),
        )
    ),
    Private(
        "ax.exceptions.core",
        "OptimizationComplete",
        AX_SAMPLER,
        "Ax raises it when every point was tried",
    ),
    Private(
        "ax.utils.common.random",
        "with_rng_seed",
        AX_SAMPLER,
        "it makes proposals repeatable",
    ),
    Private(
        "ax.utils.common",
        "logger",
        AX_SAMPLER,
        "it makes the log handlers that we silence",
    ),
    Private(
        "ax.storage.sqa_store",
        "with_db_settings_base",
        AX_SAMPLER,
        "we silence its logger by this name, because it logs when it is imported",
    ),
    # DeepSpeed
    Private(
        "deepspeed.runtime.compiler",
        "compile dummy_decorator",
        "trainer/engine/distributed.py",
        "we replace the first by the second: torch's compiler takes a second to import",
    ),
    Private(
        "deepspeed.ops",
        "__compatible_ops__",
        "trainer/engine/distributed.py",
        "we take an operation out that DeepSpeed would compile",
    ),
    Private(
        "deepspeed.accelerator.abstract_accelerator",
        "is_fp64_supported",
        "trainer/engine/distributed.py",
        "we replace it: DeepSpeed would copy every gradient to fp64",
    ),
    Private(
        "deepspeed.runtime.zero.parameter_offload",
        "FWD_MODULE_STACK PartitionedParameterCoordinator",
        "trainer/engine/zero3.py",
        "we empty them: they keep every model of a process in memory",
    ),
    Private(
        "deepspeed.utils.mixed_precision_linkage",
        "_hp_mapping",
        "trainer/engine/state.py",
        "we know a parameter of ZeRO stage 1 or 2 by it",
    ),
    Private(
        "deepspeed.runtime.zero.partition_parameters",
        "ds_id ds_shape ds_tensor",
        "trainer/engine/state.py",
        "we know a parameter of ZeRO stage 3 by them, and its shape",
    ),
    Private(
        "deepspeed.runtime.engine",
        "overflow",
        "trainer/engine/loss_scale.py",
        "at stage 0 DeepSpeed reads there whether our optimizer has skipped a step",
    ),
    # torch
    Private(
        "torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook.PowerSGDState",
        "error_dict iter rng",
        "trainer/engine/powersgd.py",
        "we set them, because the hook cannot be told at which step a run goes on",
    ),
    Private(
        "torch.optim.Optimizer",
        "param_groups state",
        "trainer/engine/optimizers.py",
        "we replace those of Muon and AdamW by those of the optimizer around them",
    ),
    # wandb
    Private(
        "wandb.sdk.wandb_setup",
        "ensure_service",
        "hpo/observers/wandb.py",
        "it gives wandb's process, which we may have to end",
    ),
    Private(
        "wandb.sdk.lib.service.service_connection",
        "_cleanup _proc",
        "hpo/observers/wandb.py",
        "we end wandb's process without waiting for it",
    ),
    Private(
        "wandb.sdk.lib.service.service_process",
        "_process",
        "hpo/observers/wandb.py",
        "we end wandb's process without waiting for it",
    ),
    Private(
        "wandb.sdk.lib.wbauth",
        "authenticate_session",
        "hpo/observers/wandb.py",
        "it finds a key without asking for one at the terminal",
    ),
    Private(
        "wandb.sdk.wandb_settings",
        "x_disable_machine_info x_disable_meta x_disable_stats x_save_requirements "
        "x_transaction_log_flush_interval",
        "hpo/observers/wandb.py",
        "wandb calls these settings internal; with them it looks at nothing, and writes often",
    ),
    # tensorboardX
    Private(
        "tensorboardX.summary",
        "hparams",
        "hpo/observers/tensorboard.py",
        "SummaryWriter.add_hparams would make another run of them",
    ),
    Private(
        "tensorboardX.writer",
        "file_writer",
        "hpo/observers/tensorboard.py",
        "it takes the summaries that hparams makes",
    ),
)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.owner}: {row.names.split()[0]}")
def test_the_installed_library_has_the_name(row: Private) -> None:
    package = LIBRARIES[row.library]
    missing = [name for name in row.names.split() if not _has(row.owner, name)]
    assert not missing, (
        f"{package} {version(package)} no longer has {', '.join(missing)} in {row.owner}, which "
        f"{row.where} touches: {row.why}"
    )


def test_no_other_private_name_is_touched() -> None:
    unknown = [
        f"{path}:{line}: {name}"
        for path, file in _files().items()
        for line, name in file.touched()
        if not any(row.is_about(path, name) for row in TABLE)
    ]
    assert not unknown, (
        "these names are private, and TABLE does not have them for these files; take a public way, "
        "or add them:\n" + "\n".join(unknown)
    )


def test_no_row_outlives_its_use() -> None:
    stale = [
        f"{place} does not touch {row.owner}.{name}"
        for row in TABLE
        for name in row.names.split()
        for place in row.where.split()
        if not any(name in file.words for path, file in _files().items() if _is_in(path, place))
    ]
    assert not stale, stale


def test_a_library_with_a_private_name_in_use_has_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    texts = [*project["dependencies"], *(text for extra in extras for text in extra)]
    bounded = {
        requirement.name
        for requirement in map(Requirement, texts)
        if any(bound.operator == "<" for bound in requirement.specifier)
    }
    assert {LIBRARIES[row.library] for row in TABLE} - bounded == set()


def _has(owner: str, name: str) -> bool:
    """Whether `owner`, a module, a class or a class above it, binds `name` in its source.

    The source is asked rather than the object: an attribute may be of instances alone, and what we
    replace is there in any case.
    """
    if _file_of(f"{owner}.{name}"):
        return True  # a module of a package
    bound = re.compile(
        rf"\b(def|class) {name}\b|\b{name}\b[\"'\]]*(: [^=\n]+)? = "
        rf"|\bimport\b.*\b{name}\b|^    {name},$",  # imported, on one line or on several
        re.MULTILINE,
    )
    return bool(bound.search(_source(owner)))


@cache
def _source(owner: str) -> str:
    """The source of a module, which is not imported, or of a class and those above it."""
    if file := _file_of(owner):
        return file.read_text(encoding="utf-8")
    try:
        classes = pkgutil.resolve_name(owner).__mro__
    except (ImportError, AttributeError):
        return ""
    library = owner.partition(".")[0]
    return "".join(inspect.getsource(c) for c in classes if _is_in(c.__module__, library, "."))


def _file_of(module: str) -> Path | None:
    """The file of a library's module, if there is such a module."""
    library, *parts = module.split(".")
    spec = importlib.util.find_spec(library)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*parts)
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _is_in(path: str, place: str, separator: str = "/") -> bool:
    return path == place or path.startswith(place + separator)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _is_internal(dotted: str) -> bool:
    """Whether a dotted name is a library's, and private or of a private module."""
    private = any(map(_is_private, dotted.split(".")))
    return _is_of_a_library(dotted) and (
        private or any(_is_in(dotted, module, ".") for module in INTERNAL)
    )


class _File:
    """One of our files, and what it touches of the libraries."""

    def __init__(self, file: Path) -> None:
        self.nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
        self._known: dict[str, str] = {}  # a library's dotted name, by what the file calls it
        self._foreign: set[str] = set()  # modules of others
        for node in self.nodes:
            self._learn(node)
        # Every name in it, also in a string, where it may be a part of a dotted name.
        fields = [value for node in self.nodes for _, value in ast.iter_fields(node)]
        self.words = {w for text in fields if isinstance(text, str) for w in text.split(".")}

    def touched(self) -> Iterator[tuple[int, str]]:
        """Private names of libraries, each with its line: dotted, or of an object as `.name`."""
        for node in self.nodes:
            match node:
                case ast.ImportFrom(module=module, names=names):
                    dotted = [f"{module}.{alias.name}" for alias in names]
                    yield from ((node.lineno, name) for name in dotted if _is_internal(name))
                case ast.Import(names=names):
                    yield from ((node.lineno, n.name) for n in names if _is_internal(n.name))
                case ast.Attribute(value=value, attr=name, ctx=context):
                    whole = self.dotted(node)
                    if whole and _is_internal(whole):
                        yield node.lineno, whole
                    elif not whole and self._is_theirs(value, name):
                        yield node.lineno, f".{name}"
                    if isinstance(context, ast.Store) and self._root(value) in self._known:
                        yield node.lineno, f".{name}"  # replaced
                case ast.Call(
                    func=ast.Name(id="getattr" | "hasattr" | "setattr"),
                    args=[value, ast.Constant(value=str(name)), *_],
                ) if self._is_theirs(value, name):
                    yield node.lineno, f".{name}"
                case ast.ClassDef():
                    for name in _defined(node):
                        if any(_has(base, name) for base in _library_bases(node.name)):
                            yield node.lineno, f".{name}"  # overridden

    def dotted(self, node: ast.expr) -> str | None:
        """Return the library's name for an expression, where it can be told."""
        match node:
            case ast.Name(id=name):
                return self._known.get(name)
            case ast.Attribute(value=value, attr=name):
                return f"{of}.{name}" if (of := self.dotted(value)) else None
            case ast.Call(func=ast.Name(id="load_deepspeed")):
                return "deepspeed"
        return None

    def _learn(self, node: ast.AST) -> None:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    called = alias.asname or alias.name.partition(".")[0]
                    dotted = alias.name if alias.asname else called
                    if _is_of_a_library(dotted):
                        self._known[called] = dotted
                    else:
                        self._foreign.add(called)
            case ast.ImportFrom(module=str(module), names=names) if _is_of_a_library(module):
                for alias in names:
                    self._known[alias.asname or alias.name] = f"{module}.{alias.name}"
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                if dotted := self.dotted(value):
                    self._known[name] = dotted

    def _is_theirs(self, owner: ast.expr, name: str) -> bool:
        """Whether a private name of `owner`, which may be any object, is a library's."""
        if not _is_private(name) or self._root(owner) in self._foreign:
            return False
        of_self = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
        in_table = any(name in row.names.split() for row in TABLE)
        return name not in _ours() or (in_table and not of_self)

    def _root(self, node: ast.expr) -> str:
        """Return the name that an expression begins with: a for `a.b().c`."""
        while not isinstance(node, ast.Name):
            match node:
                case ast.Attribute(value=inner) | ast.Call(func=inner) | ast.Subscript(value=inner):
                    node = inner
                case _:
                    return ""
        return node.id


def _is_of_a_library(dotted: str) -> bool:
    return dotted.partition(".")[0] in LIBRARIES


@cache
def _files() -> dict[str, _File]:
    """Our files, by their paths."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {str(file.relative_to(ROOT)): _File(file) for file in files}


@cache
def _ours() -> set[str]:
    """The private names that our own classes define."""
    nodes = (node for file in _files().values() for node in file.nodes)
    return {n for node in nodes if isinstance(node, ast.ClassDef) for n in _defined(node)}


def _defined(of: ast.ClassDef) -> set[str]:
    """The private names that a class defines for itself or for its instances."""
    found = set()
    for node in ast.walk(of):
        match node:
            case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return {*filter(_is_private, found)}


@cache
def _library_bases(name: str) -> set[str]:
    """The library's classes that our class is derived from, also through others of ours."""
    found = set()
    for file in _files().values():
        for node in file.nodes:
            if isinstance(node, ast.ClassDef) and node.name == name:
                for base in node.bases:
                    dotted = file.dotted(base)
                    found |= {dotted} if dotted else _library_bases(ast.unparse(base))
    return found
