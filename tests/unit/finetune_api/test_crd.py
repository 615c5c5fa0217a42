"""The definitions: current, structural, bounded, without defaults."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from finetune_api import crd
from finetune_api.document import Document
from finetune_api.structural import structural

ROOT = Path(__file__).parents[3]
FORBIDDEN = {"$ref", "$defs", "default", "title", "const", "examples", "filled", "partial"}


def schema_of(definition):
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema, path=""):
    """Every schema in a schema, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


DEFINITIONS = {"job": crd.job_definition(), "profile": crd.profile_definition()}
NODES = [
    (path, node)
    for definition in DEFINITIONS.values()
    for path, node in nodes(schema_of(definition))
]


def test_the_files_are_current(capsys):
    assert crd.main(["--check", str(ROOT / "crds")]) == 0, capsys.readouterr().err


def test_a_stale_file_is_told(tmp_path, capsys):
    assert crd.main(["--write", str(tmp_path)]) == 0
    assert crd.main(["--check", str(tmp_path)]) == 0
    stale = tmp_path / "finetune.dev_finetunejobs.yaml"
    stale.write_text(stale.read_text() + "# by hand\n")

    assert crd.main(["--check", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{stale} is not current; fix: make crds\n"


def test_the_files_hold_the_definitions():
    for name, definition in (("finetunejobs", "job"), ("finetuneprofiles", "profile")):
        path = ROOT / f"crds/finetune.dev_{name}.yaml"
        assert YAML(typ="safe").load(path) == DEFINITIONS[definition]
        assert path.stat().st_size < 256 * 1024  # what a client-side apply can carry


def test_nothing_that_the_api_server_refuses_or_fills_in():
    for path, node in NODES:
        assert not FORBIDDEN & set(node), path
        assert "null" not in str(node.get("type")), path
        if "anyOf" in node:
            assert node["x-kubernetes-int-or-string"] is True, path
            assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}], path


def test_everything_is_bounded():
    for path, node in NODES:
        if path in {".apiVersion", ".kind"}:
            continue
        if node.get("type") == "string":
            assert "enum" in node or "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if node.get("type") == "integer":
            assert node["format"] == "int64", path


def test_a_user_has_to_write_only_these():
    spec = schema_of(DEFINITIONS["job"])["properties"]["spec"]

    def required(*path):
        here = spec
        for name in path:
            here = here["properties"][name]
        return here.get("required", [])

    assert required() == ["model", "dataset", "method"]
    assert required("model") == ["uri"]
    assert required("dataset") == ["train"]
    assert required("training") == []
    assert required("resources") == []
    assert required("parallelism") == []
    assert required("evaluation", "gate") == []


def test_defaults_of_a_profile_require_nothing():
    defaults = schema_of(DEFINITIONS["profile"])["properties"]["spec"]["properties"]["defaults"]

    assert [path for path, node in nodes(defaults) if "required" in node] == []
    assert defaults["properties"]["training"]["properties"]["epochs"]["maximum"] == 10_000


def test_bounds_of_single_fields():
    spec = schema_of(DEFINITIONS["job"])["properties"]["spec"]["properties"]
    lora = spec["method"]["properties"]["lora"]["properties"]

    assert lora["r"]["minimum"] == 1
    assert lora["r"]["maximum"] == 8192
    assert lora["dropout"]["maximum"] == 1
    assert lora["dropout"]["exclusiveMaximum"] is True
    assert lora["bias"]["enum"] == ["none", "all", "lora_only"]
    assert spec["resources"]["properties"]["memory"]["x-kubernetes-int-or-string"] is True
    assert lora["targetModules"] == {
        "description": "Absent: all linear layers but the output layer and routers.",
        "x-kubernetes-preserve-unknown-fields": True,
        "minLength": 1,
        "maxLength": 1024,
        "minItems": 1,
        "maxItems": 256,
        "items": {"type": "string", "minLength": 1, "maxLength": 256},
        "minProperties": 1,
        "maxProperties": 0,
        "minimum": 1,
        "maximum": 0,
        "not": {"enum": [True, False]},
    }


def test_names_columns_and_status():
    definition = DEFINITIONS["job"]["spec"]
    version = definition["versions"][0]

    assert definition["names"]["shortNames"] == ["ftjob"]
    assert definition["names"]["categories"] == ["finetune"]
    assert definition["names"]["plural"] == "finetunejobs"
    assert definition["scope"] == "Namespaced"
    assert DEFINITIONS["profile"]["spec"]["scope"] == "Cluster"
    assert version["subresources"] == {"status": {}}
    columns = version["additionalPrinterColumns"]
    assert [column["name"] for column in columns if "priority" not in column] == [
        "Phase",
        "Reason",
        "Progress",
        "Loss",
        "ETA",
        "GPUs",
        "Restarts",
        "Age",
    ]
    assert [column["name"] for column in columns if column.get("priority") == 1] == [
        "Model",
        "Method",
        "Step",
        "Checkpoint",
        "Output",
    ]
    conditions = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"][
        "conditions"
    ]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_a_column_shows_a_field_that_exists():
    schema = schema_of(DEFINITIONS["job"])
    for column in crd.JOB_COLUMNS:
        if column["jsonPath"].startswith(".status."):
            here = schema
            for part in column["jsonPath"].lstrip(".").split("."):
                here = here["properties"][part]
            assert here["type"] == column["type"], column["name"]


def test_a_string_without_a_bound_is_an_error():
    class Loose(Document):
        """A model with a mistake."""

        text: str

    with pytest.raises(ValueError, match=r"Loose\.text: a string needs a bound"):
        structural(Loose)
