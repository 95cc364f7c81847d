"""docs/reference.md, written from the code: every command and option, every key of a settings file.

`make docs` writes it. An option means what its help says, a key what the comment beside it or above
it says, a section what its docstring says; what has none of these is refused. It explains nothing
itself.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import click
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from hpo.cli import app
from hpo.reading.cells import markdown_table
from hpo.study.config import StudyConfig
from trainer.config.settings import Section
from trainer.config.train import TrainConfig

Model = type[BaseModel]

PAGE = Path(__file__).with_suffix(".md")

_TITLE = """\
# Reference

Every command with its options, every key of a study file and of a train config. This page is made
from the code by `make docs`, and a test compares them: what it says holds for this version.
"""
_STUDY = """\
## A study file

`hpo start FILE` reads it: [a first one](../README.md#your-own-study), [searching](searching.md).
"""
_TRAIN = """\
## A train config

Read by `python -m trainer FILE`, and under `train` of a study file. `--set`, `space`, `when` and
`path=value` name its keys by dotted path, `optim.lr`: [training](training.md).
"""


class Undocumented(Exception):
    """Something that people can type, and nothing says what it does."""


def page() -> str:
    """The whole page. Raises Undocumented."""
    parts = [_TITLE, *_commands(), _STUDY, *_sections("", StudyConfig, {})]
    return "\n".join([*parts, _TRAIN, *_sections("", TrainConfig, {})])


# Commands


def _commands() -> Iterator[str]:
    yield "## Commands\n\n`hpo COMMAND --help` says the same.\n"
    for name, command in _walk(typer.main.get_command(app), "hpo"):
        yield command_part(name, command)
    from trainer.__main__ import main as train
    from trainer.export import main as export

    yield f"### python -m trainer\n\n```\n{_help_of(train)}```\n"
    yield f"### python -m trainer.export\n\n```\n{_help_of(export)}```\n"


def _walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not (parts := getattr(command, "commands", None)):
        yield name, command
    for part, inside in (parts or {}).items():
        yield from _walk(inside, f"{name} {part}")


def command_part(name: str, command: click.Command) -> str:
    """The part of the page about one command. Raises Undocumented."""
    usage = [name]
    rows = []
    for parameter in command.params:
        meaning = getattr(parameter, "help", None)
        if not meaning or not command.help:
            raise Undocumented(f"{name} {parameter.name}: give it, and the command, a help text")
        argument = parameter.param_type_name == "argument"
        takes = "" if getattr(parameter, "is_flag", False) else parameter.metavar or "N"
        if argument:
            usage.append(takes if parameter.required else f"[{takes.strip('[]')}]")
            usage[-1] += "..." * (parameter.nargs == -1)
        said = takes if argument else f"{', '.join(parameter.opts)} {takes}".strip()
        default = "required" if parameter.required else _default_of(parameter)
        rows.append((f"`{said}`", default, meaning))
    about = " ".join((command.help or "").split())
    return f"### {' '.join(usage)}\n\n{about}\n\n{_table(('option', 'default', 'meaning'), rows)}"


def _default_of(parameter: click.Parameter) -> str:
    given = parameter.default
    return "" if given is None or given is False or callable(given) else f"`{given}`"


def _help_of(main: Callable[[list[str]], int]) -> str:
    fixed = patch.dict(os.environ, COLUMNS="100")  # argparse fits its help to the terminal
    with fixed, redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
        main(["--help"])
    return said.getvalue()


# Settings


def _sections(path: str, model: Model, titles: dict[Model, str]) -> Iterator[str]:
    """The part about the settings at `path`, and about the sections below that have no part yet."""
    found = [
        (name, field, _inside(path, name, field)) for name, field in model.model_fields.items()
    ]
    new = {each: title for *_, inside in found for title, each in inside if each not in titles}
    titles |= new
    yield section_part(model, titles)
    for each, title in new.items():
        yield f"### {title}\n\n{_about(each)}\n"
        yield from _sections(title, each, titles)


def section_part(model: Model, titles: Mapping[Model, str]) -> str:
    """The table of one section's keys; `titles` are the sections'. Raises Undocumented."""
    meanings, properties = meanings_of(model), model.model_json_schema()["properties"]
    rows = []
    for name, field in model.model_fields.items():
        inside, tag = _models(field.annotation), _tag(field)
        if tag is not None:  # the section's title says what it is
            rows.insert(0, (f"`{name}`", f"`{tag}`", "required" * field.is_required(), ""))
            continue
        meaning = meanings.get(name) or (_about(inside[0]) if len(inside) == 1 else "")
        if not meaning:
            raise Undocumented(f"{model.__name__}.{name}: say beside it, after a #, what it means")
        links = [f"[{titles[m].rpartition(': ')[2]}](#{anchor(titles[m])})" for m in inside]
        one_of = "one of " if len(links) > 1 else ""
        kind = one_of + ", ".join(links) or _kind(properties[name])
        rows.append((f"`{name}`", kind, _default(field), meaning))
    return _table(("key", "type and range", "default", "meaning"), rows) if rows else ""


def _inside(path: str, name: str, field: FieldInfo) -> list[tuple[str, Model]]:
    """The sections that a key may hold, each with its title on the page."""
    found = _models(field.annotation)
    title = f"{path}.{name}".lstrip(".") + (".PATH" if "dict" in str(field.annotation) else "")
    tags = [next(filter(None, map(_tag, m.model_fields.values())), "") for m in found]
    return [
        (f"{title}: {tag}" if len(found) > 1 else title, m)
        for tag, m in zip(tags, found, strict=True)
    ]


def _models(annotation: Any) -> list[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tag(field: FieldInfo) -> str | None:
    """The one word that a key can have, by which sections are told apart."""
    words = get_args(field.annotation)
    return words[0] if len(words) == 1 and isinstance(words[0], str) else None


@cache
def meanings_of(model: Model) -> Mapping[str, str]:
    """What the comments beside and above each key of a section say, inherited ones too."""
    found: dict[str, str] = {}
    for base in model.__bases__:
        if issubclass(base, Section) and base is not Section:
            found |= meanings_of(base)
    source = textwrap.dedent(inspect.getsource(model))
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    alone = {line for line in comments if source.splitlines()[line - 1].lstrip().startswith("#")}
    definition = ast.parse(source).body[0]
    for key in getattr(definition, "body", []):
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name):
            first = key.lineno
            while first - 1 in alone:
                first -= 1
            said = [comments.get(line, "") for line in range(first, (key.end_lineno or first) + 1)]
            said = [words for words in said if not re.match("type: ignore|noqa", words)]
            if meaning := " ".join(filter(None, said)):
                found[key.target.id] = meaning
    return found


def _about(model: Model) -> str:
    if not model.__doc__ or model.__doc__ == (model.__base__ and model.__base__.__doc__):
        raise Undocumented(f"{model.__name__}: give it a docstring")
    return " ".join(model.__doc__.split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):  # of several: which; its own table has its keys' defaults
        tags = filter(None, map(_tag, type(value).model_fields.values()))
        return "".join(f"`{{name: {tag}}}`" for tag in tags)
    plain = to_jsonable_python(value)
    shown = yaml.safe_dump(plain, default_flow_style=True, width=1000, sort_keys=False)
    return f"`{shown.strip().removesuffix('...').strip()}`"


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_kind, parts))
    if words := schema.get("enum"):
        return ", ".join(f"`{word}`" for word in words)
    if (kind := schema.get("type")) == "array":
        if parts := schema.get("prefixItems"):
            return f"[{', '.join(map(_kind, parts))}]"
        return f"list of {_kind(schema['items'])}"
    if kind in ("integer", "number"):
        bounds = [
            f" {sign} {_number(schema[key])}"
            for key, sign in (
                ("minimum", "≥"),
                ("exclusiveMinimum", ">"),
                ("maximum", "≤"),
                ("exclusiveMaximum", "<"),
            )
            if key in schema and abs(schema[key]) < 2**53  # past it is every number
        ]
        return kind + ",".join(bounds)
    names = {"boolean": "`true`, `false`", "object": "mapping", "null": "`null`"}
    return names.get(str(kind), str(kind))


def _number(bound: float) -> str:
    if bound >= 2**16 and bound == int(bound) and int(bound).bit_count() == 1:
        return f"2^{int(bound).bit_length() - 1}"
    return f"{bound:,g}" if bound < 10**6 else f"{bound:,.0f}"


def anchor(title: str) -> str:
    """The anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return markdown_table(heads, rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
