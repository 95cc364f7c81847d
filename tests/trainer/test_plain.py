"""YAML as we read it, by the core schema of YAML 1.2; what we keep is read back as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.config.plain import dumped, kept, typed
from trainer.config.settings import ConfigError, kept_document, parse_assignment
from trainer.config.train import check_setting, resolve

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
DATA = st.recursive(
    SCALARS, lambda inside: st.lists(inside) | st.dictionaries(KEYS, inside), max_leaves=8
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0e-400", 0.0),
        ("1e-3", 0.001), ("5E4", 5e4), ("1.0e-05", 1e-5), (".5", 0.5), ("-.inf", -math.inf),
        ("0x1F", 31), ("0o17", 15), ("-0", 0), ("~", None), ("", None), ("True", True),
        ("y", "y"), ("2026-01-01", "2026-01-01"), ("12_layers", "12_layers"), ("=", "="),
        ("10.0.0.1:80", "10.0.0.1:80"), ("1.5.2", "1.5.2"), ("'yes'", "yes"), ("'010'", "010"),
    ],
)  # fmt: skip
def test_what_is_clear_is_what_it_looks_like(text: str, value: Any) -> None:
    read = typed(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("010", "10"), ("007", "7"), ("-09", "-9"), ("1_000", "1000"), ("1_000.5", "1000.5"),
        ("0b101", "5"), ("0x1F_0", "0x1F0"), ("1:30", "one number, such as 1.5"),
        ("-1:30:00", "one number, such as 1.5"), ("yes", "true"), ("Off", "false"), ("NO", "false"),
    ],
)  # fmt: skip
def test_what_readers_of_yaml_disagree_about_is_refused_with_what_to_write(
    text: str, write: str
) -> None:
    said = f"readers of YAML disagree about it; write {write}, or '{text}' for a text"
    with pytest.raises(ConfigError) as refused:
        parse_assignment(f"budget.hours={text}")
    assert str(refused.value) == f"budget.hours={text}: {text}: {said}"
    with pytest.raises(yaml.MarkedYAMLError) as found:
        typed(f"budget:\n  hours: [1, {text}]\n")
    assert found.value.problem == f"budget.hours.1: {text}: {said}"
    assert typed(f"'{text}'") == text


def test_merge_keys_merge() -> None:
    document = typed(
        "base: &base {x: 1, y: {z: 2}}\n"
        "more: &more {<<: *base, x: 3}\n"
        "list: {<<: [*more, {w: 5, x: 9}]}\n"
        "block:\n  <<: *base\n  y: 7\n"
    )
    assert document["more"] == {"x": 3, "y": {"z": 2}}
    assert document["list"] == {"w": 5, "x": 3, "y": {"z": 2}}
    assert document["block"] == {"x": 1, "y": 7}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {x: 1, x: 2}", "key 'x' is given twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "key '<<' is given twice; write <<: [*one, *other]"),
        ("a: {<<: 5}", "expected a mapping or list of mappings for merging, but found scalar"),
        ("steps: -1.5e400", "-1.5e400: no computer's number is so large"),
        ("lr: 2e-400", "2e-400: no computer's number is so small"),
        ("!!bool maybe", "'maybe' is neither true nor false"),
    ],
)
def test_what_could_be_two_things_is_refused(text: str, words: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match=words[:20]) as refused:
        typed(text)
    assert refused.value.problem == words


@given(DATA)
@example({"a": math.inf, 2: -math.inf})
@example(["yes", "010", "1e3", "0o17", "1:30", "<<", "=", "2026-01-01", "~", ""])
@example([1e22, 1e-5, 5e-324, 5.06e-11, 10**30])
def test_plain_data_is_read_back_as_it_was(data: Any) -> None:
    text = dumped(data)
    assert repr(kept(text)) == repr(typed(text)) == repr(data)


@given(DATA)
def test_what_earlier_versions_kept_is_read_as_they_meant_it(data: Any) -> None:
    assert repr(kept(yaml.safe_dump(data, sort_keys=False))) == repr(data)


def test_a_kept_document_may_be_larger_than_a_file() -> None:
    document = {"choices": ["x" * 90] * 3000}
    assert kept_document(dumped(document), "study s") == document


def test_what_is_no_plain_data_is_not_written() -> None:
    for value in ({1, 2}, b"x", object()):
        with pytest.raises(yaml.YAMLError):
            dumped({"a": value})


def test_true_is_no_number() -> None:
    for document in ({"steps": True}, {"evaluation": {"depths": [True]}}):
        with pytest.raises(ConfigError, match="must be a number, not"):
            resolve(document, "train.yaml")
    with pytest.raises(ConfigError, match="True does not fit steps: must be a number"):
        check_setting("steps", True, "study.yaml: space.steps")
    assert resolve({"model": {"compile": True}}, "train.yaml").model.compile is True
