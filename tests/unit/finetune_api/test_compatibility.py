"""Every row's own examples, and that reading a row never fails, whatever the spec is."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.compatibility import EXCLUSIVE, RULES, evaluate
from finetune_api.condition import (
    All,
    Compare,
    Count,
    Either,
    Eq,
    Greater,
    Has,
    In,
    Not,
    Remainder,
    StartsWith,
)
from finetune_api.crd import job_definition
from finetune_api.job import JobSpec
from finetune_api.rule import MINIMAL, specimen
from harness.spec_strategy import from_schema

SPEC_SCHEMA = job_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
    "spec"
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_bad_is_refused_and_good_is_accepted(rule):
    refused = [problem for problem in evaluate(specimen(rule.bad)) if problem.code == rule.code]

    assert len(refused) == 1
    assert refused[0].message == rule.message
    assert refused[0].fix == rule.fix
    assert refused[0].field.startswith("spec.")
    assert evaluate(specimen(rule.good)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_examples_are_valid_by_the_schema_alone(rule):
    for change in (rule.bad, rule.good):
        try:
            JobSpec.model_validate(specimen(change), strict=True)
        except ValidationError as error:
            assert {item["type"] for item in error.errors()} == {"missing"}


def test_codes_are_unique_and_kebab_case():
    codes = [rule.code for rule in RULES]

    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in codes)


def test_what_a_user_reads_says_what_to_do():
    for rule in RULES:
        assert rule.fix
        assert len(rule.text) < 400
        assert "\n" not in rule.text


def test_the_shortest_job_is_accepted():
    assert evaluate(MINIMAL) == []


def test_each_offending_item_is_a_problem_of_its_own():
    spec = specimen({})
    spec["dataset"] = {
        "train": [
            {"uri": "pvc://datasets/a.jsonl", "format": "Messages"},
            {"uri": "pvc://datasets/b.jsonl", "format": "Text"},
        ],
        "validation": {"sources": [{"uri": "pvc://datasets/c.jsonl", "format": "Tokens"}]},
    }

    assert [(problem.code, problem.field) for problem in evaluate(spec)] == [
        ("not-supported-format", "spec.dataset.train[1].format"),
        ("not-supported-format", "spec.dataset.validation.sources[0].format"),
    ]


def test_a_null_is_absent_as_for_the_api_server():
    assert [problem.code for problem in evaluate(specimen({"method": {"full": None}}))] == [
        "method-exactly-one"
    ]


def test_groups_that_shut_each_other_out_are_named_in_full():
    assert (("training.warmupRatio",), ("training.warmupSteps",)) in EXCLUSIVE
    assert EXCLUSIVE[0][:2] == (("method.full",), ("method.lora",))


@pytest.mark.parametrize(
    ("condition", "spec", "expected"),
    [
        (Has("a.b"), {"a": {"b": 0}}, True),
        (Has("a.b"), {"a": {}}, False),
        (Has("a.b"), {"a": 3}, False),
        (Eq("a", 1.0), {"a": 1}, True),
        (Eq("a", 1), {"a": True}, False),
        (Eq("a", True), {"a": 1}, False),
        (Eq("a", "x"), {}, False),
        (In("a", ("x", "y")), {"a": "y"}, True),
        (In("a", ("x", "y")), {"a": ["y"]}, False),
        (StartsWith("a", "pvc://"), {"a": "pvc://claim"}, True),
        (StartsWith("a", "pvc://"), {"a": 5}, False),
        (Greater("a", 0), {"a": 1}, True),
        (Greater("a", 0), {"a": True}, False),
        (Greater("a", 0), {"a": "1"}, False),
        (Compare("a", ">", "b"), {"a": 2, "b": 1}, True),
        (Compare("a", ">", "b"), {"a": 2}, False),
        (Remainder("a", ("b", "c")), {"a": 12, "b": 2, "c": 3}, False),
        (Remainder("a", ("b", "c")), {"a": 12, "b": 5, "c": 1}, True),
        (Remainder("a", ("b",)), {"a": 12, "b": 0}, False),
        (Count(("a", "b"), "!=", 1), {"a": {}, "b": {}}, True),
        (Count(("a", "b"), "!=", 1), {"a": {}, "b": None}, False),
        (Not(Has("a")), {}, True),
        (All(Has("a"), Has("b")), {"a": 1}, False),
        (Either(Has("a"), Has("b")), {"a": 1}, True),
    ],
)
def test_conditions(condition, spec, expected):
    assert condition.holds(spec) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Has("a.b"), "(has(self.a) && has(self.a.b))"),
        (Eq("a", 1.0), "(has(self.a) && self.a == 1.0)"),
        (Eq("a", True), "(has(self.a) && self.a == true)"),
        (Eq("@.b", 'x"y'), '(has(item.b) && item.b == "x\\"y")'),
        (In("@", ("x",)), '(item in ["x"])'),
        (Not(Has("a")), "!(has(self.a))"),
        (Greater("a", 0), "(has(self.a) && self.a > 0)"),
        (Greater("a", 0.0), "(has(self.a) && self.a > 0.0)"),
        (
            Remainder("a", ("b", "c")),
            "(has(self.a) && has(self.b) && has(self.c) && self.a % (self.b * self.c) != 0)",
        ),
        (
            Count(("a", "b"), ">", 1),
            "((has(self.a) ? 1 : 0) + (has(self.b) ? 1 : 0) > 1)",
        ),
    ],
)
def test_conditions_in_cel(condition, expected):
    assert condition.cel() == expected


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(from_schema(SPEC_SCHEMA))
def test_a_spec_that_the_definition_accepts_can_be_read(spec):
    for problem in evaluate(spec):
        assert problem.field.startswith("spec.")
    try:
        JobSpec.model_validate(spec, strict=True)
    except ValidationError as error:  # what resolve fills may be absent, and nothing else
        assert {item["type"] for item in error.errors()} == {"missing"}, error


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_reading_anything_never_fails(data):
    assert isinstance(evaluate(data), list)


@settings(max_examples=50, deadline=None)
@given(JSON, JSON)
def test_reading_a_damaged_spec_never_fails(first, second):
    for section in ("method", "dataset", "training", "resources", "evaluation"):
        assert isinstance(evaluate({**MINIMAL, section: first, "model": {"uri": second}}), list)
