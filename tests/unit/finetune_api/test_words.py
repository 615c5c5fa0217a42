"""URIs, quantities, lengths of time, names and places, against literals."""

from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.job.lifecycle import Output
from finetune_api.names import (
    MAX_JOB_NAME,
    Layout,
    attempt_name,
    prepare_name,
    publish_name,
    workspace_claim,
    workspace_folder,
)
from finetune_api.problem import Problem, Refused
from finetune_api.quantity import (
    format_bytes,
    format_duration,
    parse_bytes,
    parse_duration,
    parse_quantity,
)
from finetune_api.source import Source, Uri, parse_uri


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://Qwen/Qwen2.5-7B-Instruct", Source("hf", "Qwen/Qwen2.5-7B-Instruct")),
        ("hf://gpt2", Source("hf", "gpt2")),
        ("modelscope://Qwen/Qwen2", Source("modelscope", "Qwen/Qwen2")),
        ("pvc://datasets", Source("pvc", "datasets")),
        ("pvc://datasets/", Source("pvc", "datasets")),
        ("pvc://datasets/a b/c.jsonl", Source("pvc", "datasets", "a b/c.jsonl")),
        ("pvc://datasets/a/", Source("pvc", "datasets", "a")),
        ("pvc://datasets/.hidden/..a/...", Source("pvc", "datasets", ".hidden/..a/...")),
        ("job://sft-run", Source("job", "sft-run")),
    ],
)
def test_uris(text, source):
    assert parse_uri(text) == source
    assert TypeAdapter(Uri).validate_python(text) == text
    assert str(source) == text.rstrip("/")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Qwen/Qwen2.5-7B",
        "s3://bucket/key",
        "hf://",
        "hf:///Qwen",
        "hf://Qwen/../x",
        "pvc://",
        "pvc://Datasets/a",
        "pvc://datasets//a",
        "pvc://datasets/a\\b",
        "pvc://datasets/..",
        "pvc://datasets/../other",
        "pvc://datasets/a/../../b",
        "pvc://datasets/./a",
        "pvc://datasets/a\n",
        "pvc://datasets/a\x00",
        "job://Run",
        "job://a/b",
    ],
)
def test_what_is_no_uri(text):
    with pytest.raises(ValueError, match=r"is not hf://|must not contain"):
        parse_uri(text)
    with pytest.raises(ValidationError):
        TypeAdapter(Uri).validate_python(text)


@pytest.mark.parametrize("text", ["hf://Qwen/x", "pvc://models/../x", "/models/x"])
def test_an_output_stays_in_its_claim(text):
    assert Output(uri="pvc://models/support-bot").uri == "pvc://models/support-bot"
    with pytest.raises(ValidationError):
        Output(uri=text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("80Gi", 85_899_345_920),
        ("1Ki", 1024),
        ("1k", 1000),
        ("1.5M", 1_500_000),
        ("32", 32),
        ("2Ti", 2_199_023_255_552),
        ("1Ei", 1_152_921_504_606_846_976),
    ],
)
def test_bytes_of_quantities(text, number):
    assert parse_bytes(text) == number


def test_a_thousandth():
    assert parse_quantity("500m") == Decimal("0.5")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("2d", 172800.0), ("250ms", 0.25)],
)
def test_lengths_of_time(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "1h 30m", "-5m", "10min"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(ValueError, match="is not a length of time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (65_713_717_248, "61.2 GiB")],
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (45.2, "45s"),
        (130, "2m10s"),
        (1320, "22m"),
        (11520, "3h12m"),
        (7200, "2h"),
        (187_200, "2d4h"),
        (-3, "0s"),
    ],
)
def test_time_for_people(seconds, text):
    assert format_duration(seconds) == text


def test_names_of_children():
    assert attempt_name("support-bot", 3) == "support-bot-3"
    assert prepare_name("support-bot") == "support-bot-prepare"
    assert publish_name("support-bot") == "support-bot-publish"
    assert workspace_claim("support-bot") == "support-bot-workspace"
    assert (
        workspace_folder("support-bot", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
        == "support-bot-0a1b2c3d"
    )
    assert len(attempt_name("x" * MAX_JOB_NAME, 9999) + "-worker-4095") <= 63


def test_places_in_a_workspace():
    layout = Layout(Path("/workspace/bot-0a1b2c3d"))

    assert layout.claim(2) == Path("/workspace/bot-0a1b2c3d/claims/2.json")
    assert layout.checkpoint(2, 480) == Path("/workspace/bot-0a1b2c3d/checkpoints/2/step-480")
    assert layout.best(2, 480) == Path("/workspace/bot-0a1b2c3d/checkpoints/2/best-480")
    assert layout.end_report(2, 0) == Path("/workspace/bot-0a1b2c3d/reports/2/end-0.json")
    assert layout.status == Path("/workspace/bot-0a1b2c3d/status.json")


def test_exit_codes_are_the_published_ones():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "UNEXPECTED": 1,
        "INVALID_CONFIG": 10,
        "INVALID_DATA": 11,
        "DOES_NOT_FIT": 12,
        "NON_FINITE_LOSS": 13,
        "STORAGE_FULL": 14,
        "CHECKPOINT_UNUSABLE": 15,
        "MODEL_UNAVAILABLE": 16,
        "GATE_NOT_MET": 17,
        "COMMUNICATION_LOST": 20,
        "FENCED": 21,
        "KILLED": 137,
        "SIGNALLED": 143,
    }


def test_the_place_of_a_problem():
    problem = Problem(code="unknown-field", message="unknown field", field="spec.model.url")

    assert problem.place == "spec.model.url"
    assert problem.model_copy(update={"file": "bot.yaml", "line": 12}).place == "bot.yaml:12"
    assert (
        problem.model_copy(update={"file": "bot.yaml", "line": 12, "column": 7}).place
        == "bot.yaml:12:7"
    )
    assert str(Refused(problem)) == "unknown-field: unknown field"
