"""Reading settings: YAML documents, dotted paths, pydantic models, one-line errors.

Train configs and study files both use this module. It knows no setting by name, and it imports no
torch, because the command line validates a study with it before any worker starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from hpo.errors import HpoError
from trainer.config.plain import MOST_CHARACTERS, kept, typed

Document = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


MOST_SHOWN = 800  # characters of a message, which may quote an input of any length


def one_line(message: str) -> str:
    """`message` as a terminal can show it: one line, no control characters, not too long."""
    if len(message) > MOST_SHOWN:
        message = f"{message[:MOST_SHOWN]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


class ConfigError(HpoError, ValueError):
    """The user's input is wrong; one line names file, key, what was given and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Section(BaseModel):
    """Base of every settings model: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def document(self, exclude: dict[str, Any] | None = None) -> Document:
        """Return all settings as plain data; infinite numbers and integer keys stay as they are."""
        document: Document = _listed(self.model_dump(exclude=exclude))
        return document

    @model_validator(mode="wrap")
    @classmethod
    def _truth_is_no_number(cls, given: Any, read: Callable[[Any], Any]) -> Any:
        made = read(given)
        for name in given if isinstance(given, Mapping) else ():
            if _is_truth_made_number(given[name], getattr(made, str(name), None)):
                raise ValueError(f"{name}: must be a number, not {given[name]}")
        return made


def _listed(value: Any) -> Any:
    """`value` with lists for tuples, as a file has them."""
    if isinstance(value, Mapping):
        return {key: _listed(inside) for key, inside in value.items()}
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def _is_truth_made_number(given: Any, made: Any) -> bool:
    """Whether a true or false in `given` became a number, as pydantic makes it."""
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        given, made = [*given.values()], [*made.values()]
    if isinstance(given, (list, tuple)) and isinstance(made, (list, tuple)):
        return any(map(_is_truth_made_number, given, made))
    return isinstance(given, bool) and isinstance(made, (int, float)) and made is not given


def is_url(path: str) -> bool:
    """Whether `path` is an fsspec URL, such as `s3://bucket/prefix`, and not a file's path."""
    return "://" in path


def read_document(path: str | Path) -> Document:
    """The mapping in the YAML file `path`. Raises ConfigError naming the file and line."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {_line(error)}") from None
    return _mapping(_parsed(typed, text, str(path)), str(path))


def kept_document(text: str, source: str) -> Document:
    """The mapping that `dumped` wrote as `text`, which `source` kept. Raises ConfigError."""
    return _mapping(_parsed(kept, text, source), source)


def _mapping(document: Any, source: str) -> Document:
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: must hold settings, `key: value`, not {_shown(document)}")
    return document


def _parsed(parse: Callable[[str], Any], text: str, source: str) -> Any:
    try:
        return parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark if "\n" in text.strip() else None
        line = f" line {mark.line + 1}:" if mark else ""
        what = "" if type(error) is yaml.MarkedYAMLError else " not valid YAML:"
        raise ConfigError(f"{source}:{line}{what} {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {_line(error)}") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `"optim.lr=1e-3"` into `("optim.lr", 0.001)`; the value is YAML. Raises ConfigError."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{text!r}: must be path=value, such as optim.lr=1e-3")
    return path.strip(), _parsed(typed, value, text)


def set_path(document: Document, path: str, value: Any) -> None:
    """Set the dotted `path` in `document`, creating the sections on the way."""
    *sections, key = path.split(".")
    for section in sections:
        child = document.get(section)
        document[section] = child = dict(child) if isinstance(child, Mapping) else {}
        document = child
    document[key] = value


def get_path(document: Mapping[str, Any], path: str) -> Any:
    """The value at the dotted `path`, or None where a section on the way is missing."""
    value: Any = document
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def validated(model: type[Model], document: Mapping[str, Any], source: str) -> Model:
    """`document` as a `model`. Raises ConfigError, in one line, for the first mistake."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(model, document, error)}") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; did you mean lr?"` with the closest of `names`, or all `names` if few, or no text."""
    choices = sorted(set(names))
    # A bare key is compared with the last parts of paths too, so that `lrr` finds `optim.lr`.
    candidates = difflib.get_close_matches(name, choices, n=1, cutoff=0.6) or [
        choice
        for choice in choices
        if difflib.SequenceMatcher(None, name.rpartition(".")[2], choice.rpartition(".")[2]).ratio()
        > 0.75
    ]
    if candidates:
        return f"; did you mean {candidates[0]}?"
    return f"; one of: {', '.join(choices)}" if 0 < len(choices) <= 12 else ""


def leaf_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted path of `model` that holds a value, with its field."""
    for name, field in model.model_fields.items():
        if sections := _sections(field.annotation):
            yield from leaf_fields(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def check_value(model: type[BaseModel], path: str, value: Any, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless `path` of `model` accepts `value`."""
    try:
        made = _adapter(model, path).validate_python(value)
        if _is_truth_made_number(value, made):
            raise ConfigError(f"{what}: {value} does not fit {path}: must be a number")
    except ValidationError as error:
        reason = _reason(error.errors(include_url=False)[0])
        raise ConfigError(f"{what}: {_shown(value)} does not fit {path}: {reason}") from None


@cache
def _adapter(model: type[BaseModel], path: str) -> TypeAdapter[Any]:
    field = dict(leaf_fields(model))[path]
    annotated: Any = field.annotation
    return TypeAdapter(Annotated[annotated, *field.metadata] if field.metadata else annotated)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Every settings model in an annotation, also inside unions, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _explain(model: type[BaseModel], document: Mapping[str, Any], error: ValidationError) -> str:
    # An unknown key is reported first: it is usually the reason why another key is missing.
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = _location(problem["loc"], document, missing=problem["type"] == "missing")
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        names = _names_at(model, problem["loc"][:-1])
        return f"{path}: no such setting{nearest(location[-1], names)}"
    if problem["type"] == "missing":
        return f"{path}: is required and was not given"
    if problem["type"] == "union_tag_not_found":
        tag = str(problem["ctx"]["discriminator"]).strip("'")
        return f"{path}.{tag}: is required and was not given"
    if problem["type"] == "union_tag_invalid":
        tag = str(problem["ctx"]["discriminator"]).strip("'")
        tags = [name.strip(" '") for name in problem["ctx"]["expected_tags"].split(",")]
        given = problem["ctx"]["tag"]
        return f"{path}.{tag}: there is no {given!r}{nearest(str(given), tags)}"
    where = f"{path}: " if path else ""
    if problem["type"] == "value_error":
        return f"{where}{_reason(problem)}"
    return f"{where}{_reason(problem)}, not {_shown(problem['input'])}"


def _location(parts: tuple[int | str, ...], document: Any, *, missing: bool) -> list[str]:
    """The keys on the way to a problem, without the tags that pydantic adds for unions."""
    keys: list[str] = []
    for position, part in enumerate(parts):
        wanted = missing and position == len(parts) - 1
        known = part in document if isinstance(document, Mapping) else isinstance(part, int)
        if part == "[key]" or not (known or wanted):
            continue
        keys.append(str(part))
        if isinstance(document, Mapping):
            document = document.get(part)
        elif isinstance(document, (list, tuple)) and isinstance(part, int):
            document = document[part] if part < len(document) else None
    return keys


def _names_at(model: type[BaseModel], parts: tuple[int | str, ...]) -> set[str]:
    """The settings that the model at `parts` has; a tag picks one model of a union."""
    models = [model]
    for part in parts:
        inside = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        tagged = [
            m
            for m in models
            if any(part in get_args(f.annotation) for f in m.model_fields.values())
        ]
        models = [s for annotation in inside for s in _sections(annotation)] or tagged or models
    return {name for m in models for name in m.model_fields}


def _reason(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    return _line(message.replace("Input should be", "must be"))


def _shown(value: Any) -> str:
    text = _line(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(problem: object) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__
