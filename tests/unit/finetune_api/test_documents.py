"""Models are frozen and closed, and have one byte form."""

import importlib
import json
import pkgutil

import pytest
from pydantic import TypeAdapter, ValidationError

import finetune_api
from finetune_api.document import Document, Quantity, canonical, digest_of
from finetune_api.job import JobSpec
from finetune_api.job.method import Lora
from finetune_api.job.training import Training
from finetune_api.profile import ProfileSpec
from finetune_api.status import JobStatus
from finetune_api.structural import structural


def models():
    found = set()
    for module in pkgutil.walk_packages(finetune_api.__path__, "finetune_api."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Document):
                found.add(value)
    return sorted(found, key=lambda model: (model.__module__, model.__name__))


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_model_is_frozen_closed_and_documented(model):
    assert model.model_config["frozen"] is True
    assert model.model_config["extra"] == "forbid"
    assert model.__doc__


def test_a_value_cannot_be_changed():
    lora = Lora(r=8)
    with pytest.raises(ValidationError, match="frozen"):
        lora.r = 16


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="rank"):
        Lora.model_validate({"rank": 8})


def test_names_outside_python_are_camel_case():
    assert Lora(init_lora_weights="gaussian", r=8).to_json() == {
        "r": 8,
        "alpha": 32.0,
        "dropout": 0.0,
        "bias": "none",
        "targetModules": "all-linear",
        "useRslora": False,
        "useDora": False,
        "initLoraWeights": "gaussian",
        "loraBias": False,
        "fanInFanOut": False,
        "ensureWeightTying": False,
    }


def test_the_one_byte_form():
    assert canonical({"b": 1.5, "a": ["é", None, True]}) == '{"a":["é",null,true],"b":1.5}'.encode()
    # printf '{"a":1}' | sha256sum
    assert digest_of({"a": 1}) == (
        "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))


@pytest.mark.parametrize("value", ["80Gi", "500m", "32", "1.5T", "0"])
def test_quantities(value):
    assert TypeAdapter(Quantity).validate_python(value) == value


def test_a_whole_number_is_a_quantity():
    assert TypeAdapter(Quantity).validate_python(32) == "32"


@pytest.mark.parametrize("value", ["80GB", "-1", -1, 1.5, True, "", "1e3", " 1", "1\n"])
def test_what_is_no_quantity(value):
    with pytest.raises(ValidationError):
        TypeAdapter(Quantity).validate_python(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learningRate", 0),
        ("learningRate", float("inf")),
        ("epochs", 0),
        ("betas", [0.9]),
        ("betas", [0.9, 1.0]),
        ("globalBatchSize", 0),
        ("seed", 2**32),
    ],
)
def test_bounds_of_training(field, value):
    complete = {"learningRate": 1e-4, "precision": "bf16", "gradientCheckpointing": True}
    Training.model_validate(complete)
    with pytest.raises(ValidationError, match=field):
        Training.model_validate({**complete, field: value})


@pytest.mark.parametrize(
    ("init", "accepted"),
    [("default", True), ("pissa_niter_16", True), ("pissa_niter_", False), ("random", False)],
)
def test_initialisations_of_lora(init, accepted):
    if accepted:
        assert Lora.model_validate({"initLoraWeights": init}).init_lora_weights == init
    else:
        with pytest.raises(ValidationError):
            Lora.model_validate({"initLoraWeights": init})


def test_a_user_may_leave_out_what_resolve_fills():
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({})

    assert {item["loc"] for item in caught.value.errors()} == {
        ("model",),
        ("dataset",),
        ("method",),
        ("training",),
        ("parallelism",),
        ("resources",),
    }


def test_a_profile_with_defaults():
    profile = ProfileSpec.model_validate(
        {"defaults": {"training": {"epochs": 1}, "workspace": {"size": "500Gi"}}}
    )

    assert profile.defaults == {"training": {"epochs": 1}, "workspace": {"size": "500Gi"}}
    assert profile.allow.uris is None
    assert profile.platform.network == "HubOnly"


def test_defaults_of_a_profile_are_held_to_the_schema():
    with pytest.raises(ValidationError, match=r"training\.epochs"):
        ProfileSpec.model_validate({"defaults": {"training": {"epochs": 0}}})
    with pytest.raises(ValidationError, match=r"training\.lr"):
        ProfileSpec.model_validate({"defaults": {"training": {"lr": 1e-4}}})


def test_a_profile_names_images_by_digest():
    image = "registry.example/trainer@sha256:" + "0" * 64
    ProfileSpec.model_validate({"platform": {"images": {"trainer": image}}})
    with pytest.raises(ValidationError, match="trainer"):
        ProfileSpec.model_validate({"platform": {"images": {"trainer": "trainer:latest"}}})


def full(schema):
    """What fills every bound of a structural schema."""
    if "enum" in schema:
        return max(schema["enum"], key=len)
    if "properties" in schema:
        return {name: full(child) for name, child in schema["properties"].items()}
    if "additionalProperties" in schema:
        keys = [f"{number:064d}" for number in range(schema["maxProperties"])]
        return {key: full(schema["additionalProperties"]) for key in keys}
    if schema["type"] == "array":
        return [full(schema["items"])] * schema["maxItems"]
    values = {"integer": schema.get("maximum", 2**53), "number": 1234567.8901234567}
    values |= {"boolean": False, "string": "x" * schema.get("maxLength", 0)}
    return values[schema["type"]]


def test_a_status_of_which_every_part_is_full_is_not_large():
    """A store takes 1.5 MiB; what the operator writes has 16 kB (``status_size``)."""
    assert 100_000 < len(json.dumps(full(structural(JobStatus)))) <= 110_000
