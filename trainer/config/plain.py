"""YAML as we read and write it: plain data, by the core schema of YAML 1.2.

`typed` reads what a person wrote. What other readers of YAML take for another number, or for true
or false, is refused with what to write. `dumped` writes what we keep ourselves, and `kept` reads it
back, the same, also what earlier versions kept.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, NoReturn

import yaml

MOST_CHARACTERS = 200_000  # of what a person wrote
MOST_VALUES = 100_000  # in it, with what its aliases stand for
MOST_LEVELS = 32  # of sections and lists within each other

_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_MERGE, _UNCLEAR = f"{_TAG}merge", "tag:unclear"

_SIGN = "[-+]?"
_CORE = (
    # What YAML 1.1 reads otherwise: digits with _ or : in them, a leading zero, yes and no.
    (
        _UNCLEAR,
        rf"{_SIGN}(?:0[0-9_]+|0b[01][01_]*|0x[0-9a-fA-F]+_[0-9a-fA-F_]*"
        r"|[0-9][0-9_]*(?::[0-9_]+)+(?:\.[0-9_]*)?"
        r"|(?=[0-9.]*_)(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?)"
        r"|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
    ),
    (_MERGE, "<<"),
    (f"{_TAG}null", "~|null|Null|NULL|"),
    (f"{_TAG}bool", "true|True|TRUE|false|False|FALSE"),
    (f"{_TAG}int", rf"{_SIGN}(?:[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)"),
    (
        f"{_TAG}float",
        rf"{_SIGN}(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
    ),
)


def is_text(text: str) -> bool:
    """Whether a file, a database and a path can all hold `text`."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def typed(text: str) -> Any:
    """The value of the YAML that a person wrote.

    Raises YAMLError, ValueError, RecursionError; for what readers of YAML disagree about, it is a
    MarkedYAMLError itself and none of a subclass.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"no settings are longer than {MOST_CHARACTERS:,} characters")
    return yaml.load(text, Loader=_Typed)  # noqa: S506 - a SafeLoader


def kept(text: str) -> Any:
    """The value that `dumped` wrote. Raises as `typed` does."""
    return yaml.load(text, Loader=_Kept)  # noqa: S506 - a SafeLoader


def dumped(value: Any) -> str:
    """Plain data as YAML, which both `typed` and `kept` read back. Raises YAMLError."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _Kept(yaml.SafeLoader):
    """A SafeLoader of plain data: no dates, sets or bytes.

    PyYAML's own writer, with which earlier versions kept documents, wrote by YAML 1.1.
    """

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag in {None, *_PLAIN}
    }
    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in found if tag in {*_PLAIN, _MERGE}]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    most_values, most_levels = 20 * MOST_VALUES, 2 * MOST_LEVELS  # it has all the defaults, too

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if isinstance(text, str) and not is_text(text):
            _refuse(node, "a character that no text has")
        return text

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._measured(node, 1, {})
            self._check(node, "", set())
        return node

    def _measured(
        self, node: yaml.Node, level: int, known: dict[yaml.Node, tuple[int, int]]
    ) -> tuple[int, int]:
        """Count a node's values, with its aliases written out, and the levels of its nesting."""
        values, levels = known.get(node) or (1, 1)
        if node not in known and level <= self.most_levels:  # or the node contains itself
            for part in _parts(node):
                inside, deep = self._measured(part, level + 1, known)
                values, levels = values + inside, max(levels, 1 + deep)
            known[node] = values, levels
        if values > self.most_values or level + levels - 1 > self.most_levels:
            _refuse(
                node,
                f"more than {self.most_values:,} values, or {self.most_levels} levels, with its "
                "aliases written out",
            )
        return values, levels

    def _check(self, node: yaml.Node, path: str, seen: set[yaml.Node]) -> None:
        """Refuse a key that is given twice, and what readers of YAML disagree about."""
        if node.tag == _UNCLEAR:
            raise yaml.MarkedYAMLError(problem=f"{path and f'{path}: '}{_advice(node.value)}",
                          problem_mark=node.start_mark)  # fmt: skip
        if isinstance(node, yaml.ScalarNode) or node in seen:
            return
        seen.add(node)
        if not isinstance(node, yaml.MappingNode):
            for position, part in enumerate(node.value):
                self._check(part, f"{path}.{position}".lstrip("."), seen)
            return
        keys: set[Any] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(key_node, "a key must be a word")
            self._check(key_node, path, seen)
            merges = key_node.tag == _MERGE
            key = key_node.value if merges else self.construct_object(key_node)
            if (key, merges) in keys:
                more = "; write <<: [*one, *other]" if merges else ""
                _refuse(key_node, f"key {key!r} is given twice{more}")
            keys.add((key, merges))
            self._check(value_node, f"{path}.{key}".lstrip("."), seen)


class _Typed(_Kept):
    """Reads by the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012
        None: [(tag, re.compile(rf"(?:{pattern})\Z")) for tag, pattern in _CORE]
    }
    most_values, most_levels = MOST_VALUES, MOST_LEVELS

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node), 0)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        number: float = self.construct_yaml_float(node)
        text = node.value.lower()
        vanished = number == 0 and re.search("[1-9]", text.partition("e")[0])
        if vanished or (math.isinf(number) and "inf" not in text):
            _refuse(
                node, f"{node.value}: no computer's number is so {'small' if vanished else 'large'}"
            )
        return number

    def construct_bool(self, node: yaml.ScalarNode) -> bool:
        text: str = node.value.lower()
        if text not in ("true", "false"):
            _refuse(node, f"{node.value!r} is neither true nor false")
        return text == "true"


_Typed.add_constructor(f"{_TAG}int", _Typed.construct_int)
_Typed.add_constructor(f"{_TAG}float", _Typed.construct_float)
_Typed.add_constructor(f"{_TAG}bool", _Typed.construct_bool)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `typed` or `kept` would take for something else."""

    yaml_representers: ClassVar[dict[Any, Any]] = {
        kind: represent
        for kind, represent in yaml.SafeDumper.yaml_representers.items()
        if kind in {type(None), str, bool, int, float, list, tuple, dict, None}
    }
    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012
        **yaml.SafeDumper.yaml_implicit_resolvers,
        None: _Typed.yaml_implicit_resolvers[None],
    }


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        return []
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value)


def _advice(text: str) -> str:
    """What a person may write instead of `text`."""
    if text.lower() in ("yes", "on", "no", "off"):
        clear = "true" if text.lower() in ("yes", "on") else "false"
    elif ":" in text:
        clear = "one number, such as 1.5"
    else:
        digits = text.replace("_", "")
        zero = re.fullmatch(r"([-+]?)0+([0-9]+)", digits)
        clear = zero[1] + zero[2] if zero else str(int(digits, 0)) if "0b" in digits else digits
    return f"{text}: readers of YAML disagree about it; write {clear}, or '{text}' for a text"


def _refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
