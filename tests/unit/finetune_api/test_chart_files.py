"""The parts of the chart that are made from the models."""

import json

from jsonschema import Draft202012Validator

from finetune_api.chart_files import chart_files, strict, template
from finetune_api.profile import ProfileSpec
from finetune_api.structural import structural


def test_a_definition_becomes_a_template_that_can_be_left_out_and_stays():
    text = "# made\napiVersion: v1\nmetadata:\n  name: a\nspec:\n  said: {{x}}\n"
    assert template(text) == (
        "# made\n"
        "{{- if .Values.crds.enabled }}\n"
        "apiVersion: v1\n"
        "metadata:\n"
        "  name: a\n"
        "  labels:\n"
        '    {{- include "finetune-operator.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    # Without it, uninstalling would remove every job and profile of the cluster.\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
        "spec:\n"
        '  said: {{ "{{" }}x}}\n'
        "{{- end }}\n"
    )


def test_fields_that_are_not_known_are_refused_and_maps_stay_open():
    assert strict(
        {
            "type": "object",
            "properties": {
                "properties": {"type": "string"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "rate": {
                    "type": "number",
                    "format": "double",
                    "minimum": 0,
                    "exclusiveMinimum": True,
                },
            },
        }
    ) == {
        "type": "object",
        "properties": {
            "properties": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "open": {"type": "object"},
            "rate": {"type": "number", "exclusiveMinimum": 0},
        },
        "additionalProperties": False,
    }


def refused(spec):
    schema = strict(structural(ProfileSpec))
    Draft202012Validator.check_schema(schema)
    found = Draft202012Validator(schema).iter_errors(spec)
    return sorted("/".join(map(str, error.absolute_path)) for error in found)


def test_the_schema_of_profiles_reads_them_as_the_api_server_does():
    assert refused({}) == []
    good = {
        "allow": {"namespaceSelector": {"matchLabels": {"a": "b"}}, "uris": ["pvc://*"]},
        "limits": {"nodes": 4, "workspace": "2Ti", "runtime": "72h"},
        "defaults": {"method": {"lora": {"r": 8}}, "workspace": {"size": 100}},
        "platform": {"extraResources": {"rdma/hca": 1}, "modelCache": {"claimName": "models"}},
    }
    assert refused(good) == []
    assert refused({"limit": {}}) == [""]
    assert refused({"limits": {"node": 4}}) == ["limits"]
    assert refused({"limits": {"nodes": 0, "workspace": "lots"}}) == [
        "limits/nodes",
        "limits/workspace",
    ]
    assert refused({"defaults": {"training": {"epoch": 3}}}) == ["defaults/training"]
    assert refused({"platform": {"modelCache": {}}}) == ["platform/modelCache"]
    assert refused({"platform": {"extraResources": {"rdma/hca": "500m"}}}) == [
        "platform/extraResources/rdma/hca"
    ]
    assert refused({"limits": {"workspace": 0}}) == ["limits/workspace"]


def test_what_else_stands_in_the_schema_of_values_is_kept(tmp_path):
    own = {"title": "Values", "$defs": {"other": {"type": "string"}, "profileSpec": {}}}
    (tmp_path / "values.schema.json").write_text(json.dumps(own))
    files = {"finetune.dev_finetunejobs.yaml": "# made\nmetadata:\n  name: a\nspec:\n  x: 1\n"}
    found = chart_files(files, {"type": "object", "properties": {"a": {}}}, tmp_path)
    assert sorted(map(str, found)) == ["templates/crds/finetunejobs.yaml", "values.schema.json"]
    (schema,) = [text for path, text in found.items() if path.suffix == ".json"]
    assert json.loads(schema) == {
        "title": "Values",
        "$defs": {
            "other": {"type": "string"},
            "profileSpec": {
                "type": "object",
                "properties": {"a": {}},
                "additionalProperties": False,
            },
        },
    }
