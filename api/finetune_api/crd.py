"""The custom resource definitions, made from the models and the rules.

``python -m finetune_api.crd --write crds/`` writes them, ``--check crds/`` fails when a file is not
what would be written; with ``--chart`` also those of the Helm chart. The schema is structural (no ``$ref``, no ``anyOf`` with null), bounded
everywhere, so that the API server can bound the cost of the rules, and carries no defaults:
``resolve`` alone fills in values, and says where each came from.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from finetune_api import GROUP, VERSION
from finetune_api.chart_files import chart_files
from finetune_api.compatibility import RULES
from finetune_api.job import KIND as JOB_KIND
from finetune_api.job import MUTABLE, JobSpec
from finetune_api.names import MAX_JOB_NAME
from finetune_api.profile import KIND as PROFILE_KIND
from finetune_api.profile import ProfileSpec
from finetune_api.status import JobStatus

Schema = dict[str, Any]

_KEPT = (
    "description",
    "type",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
)
# What refuses every value of a type, for unions: a keyword that speaks of another type is ignored.
_NEVER: dict[str, Schema] = {
    "string": {"minLength": 1, "maxLength": 0},
    "array": {"minItems": 1, "maxItems": 0},
    "object": {"minProperties": 1, "maxProperties": 0},
    "number": {"minimum": 1, "maximum": 0},
    "boolean": {"not": {"enum": [True, False]}},
}


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model.

    Raises ``ValueError`` for a string, list or map without a bound.
    """
    whole = model.model_json_schema(by_alias=True, mode="validation")
    return _walk(whole, whole.get("$defs", {}), model.__name__)


def without_required(schema: Schema) -> Schema:
    """Return the schema with every field optional, for a part of an object."""
    return {
        key: _deep(value, without_required) for key, value in schema.items() if key != "required"
    }


def _deep(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return change(value)
    return [_deep(item, change) for item in value] if isinstance(value, list) else value


def _walk(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    node = _inlined(node, definitions)
    if node.get("partial"):
        part = without_required(structural(JobSpec))
        return {**part, "description": node["description"]} if "description" in node else part
    if "anyOf" in node:
        return _union(node, definitions, path)
    found: Schema = {key: node[key] for key in _KEPT if key in node}
    if "description" in found:
        found["description"] = " ".join(found["description"].replace("``", "").split())
    if "const" in node:
        found["enum"] = [node["const"]]
    for side in ("Minimum", "Maximum"):
        if f"exclusive{side}" in node:
            found[side.lower()] = node[f"exclusive{side}"]
            found[f"exclusive{side}"] = True
    if node.get("x-kubernetes-int-or-string"):
        return _int_or_string(found)
    kind = node.get("type")
    if kind == "integer":
        found["format"] = "int64"
    elif kind == "string" and "enum" not in found and "maxLength" not in found:
        raise ValueError(f"{path}: a string needs a bound")
    elif kind == "array":
        if "maxItems" not in found:
            raise ValueError(f"{path}: a list needs a bound")
        found["items"] = _walk(node["items"], definitions, f"{path}[]")
    elif kind == "object":
        found.update(_members(node, definitions, path))
    return found


def _members(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """Return properties and required ones of an object, or the values of a map."""
    values = node.get("additionalProperties")
    if "patternProperties" in node:  # the API server cannot hold keys to a pattern; resolve does
        (values,) = node["patternProperties"].values()
    if isinstance(values, Mapping):
        if "maxProperties" not in node:
            raise ValueError(f"{path}: a map needs a bound")
        walked = _walk(values, definitions, f"{path}{{}}")
        if "type" in walked or "x-kubernetes-int-or-string" in walked:
            return {"additionalProperties": walked}
        # A rule sees a map only where it knows the type of its values: one of several types is
        # left to ``resolve``, and the rules see an object whose members they cannot name.
        return {"x-kubernetes-preserve-unknown-fields": True}
    properties = node.get("properties", {})
    found: Schema = {}
    required = [
        name
        for name in node.get("required", [])
        if not _inlined(properties[name], definitions).get("filled")
    ]
    if required:
        found["required"] = required
    if properties:
        found["properties"] = {
            name: _walk(value, definitions, f"{path}.{name}") for name, value in properties.items()
        }
    return found


def _inlined(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a node with what it refers to in it; its own words win."""
    if "$ref" not in node:
        return node
    name = node["$ref"].rpartition("/")[2]
    return {**definitions[name], **{key: value for key, value in node.items() if key != "$ref"}}


def _union(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """Return one schema for several: null alone means absent; other unions have no type."""
    members = [_inlined(part, definitions) for part in node["anyOf"]]
    members = [part for part in members if part.get("type") != "null"]
    around = {key: value for key, value in node.items() if key != "anyOf"}
    if len(members) == 1:
        return _walk({**members[0], **around}, definitions, path)
    found: Schema = {"x-kubernetes-preserve-unknown-fields": True}
    if "description" in node:
        found["description"] = node["description"]
    kinds = set()
    for part in members:
        walked = _walk(part, definitions, path) if part.get("type") != "string" else part
        if part["type"] == "string" and "maxLength" not in part:
            raise ValueError(f"{path}: a string needs a bound")
        kinds.add("number" if part["type"] == "integer" else part["type"])
        found.update(
            {k: v for k, v in walked.items() if k in _KEPT and k not in {"type", "description"}}
        )
    for kind, never in _NEVER.items():
        if kind not in kinds:
            found.update(never)
    return found


def _int_or_string(found: Schema) -> Schema:
    """Return the schema of a quantity, which may be written as a number."""
    kept = {key: value for key, value in found.items() if key != "type"}
    return {
        **kept,
        "minimum": 0,  # the pattern speaks of text alone
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
    }


def immutability(spec: Schema) -> list[Schema]:
    """Return one transition rule for each field of ``spec`` that is fixed at creation."""
    fixed = [name for name in spec["properties"] if name not in (*MUTABLE, "workspace")]
    fix = "delete the job and make a new one"
    rows = [
        {
            "rule": _unchanged("self", "oldSelf", name),
            "message": f"spec.{name} cannot be changed after creation; fix: {fix} [immutable]",
            "fieldPath": f".{name}",
            "reason": "FieldValueForbidden",
        }
        for name in fixed
    ]
    here, there = "self.workspace", "oldSelf.workspace"
    inner = [
        _unchanged(here, there, name)
        for name in spec["properties"]["workspace"]["properties"]
        if name != "size"
    ]
    inner.append(
        f"has({here}.size) == has({there}.size) && (!has({here}.size) || "
        f"quantity(string({here}.size)).compareTo(quantity(string({there}.size))) >= 0)"
    )
    rows.append(
        {
            "rule": f"has({here}) == has({there}) && "
            f"(!has({here}) || {' && '.join(f'({test})' for test in inner)})",
            "message": "spec.workspace cannot be changed after creation, but for a size that "
            f"grows; fix: {fix} [immutable]",
            "fieldPath": ".workspace",
            "reason": "FieldValueForbidden",
        }
    )
    return rows


def _unchanged(here: str, there: str, name: str) -> str:
    now, before = f"{here}.{name}", f"{there}.{name}"
    return f"has({now}) == has({before}) && (!has({now}) || {now} == {before})"


def _rules() -> list[Schema]:
    return [
        {
            "rule": rule.cel,
            "message": rule.text,
            "fieldPath": f".{rule.each[0] if rule.each else rule.field}",
            "reason": "FieldValueInvalid",
        }
        for rule in RULES
    ]


def _name_rule() -> Schema:
    return {
        "rule": f"size(self.metadata.name) <= {MAX_JOB_NAME} && "
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": f"a job's name has at most {MAX_JOB_NAME} characters: lower-case letters, "
        "digits and -, a letter first, no - last; fix: choose such a name [invalid-name]",
        "reason": "FieldValueInvalid",
    }


def _root(spec: Schema, **others: Any) -> Schema:
    return {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            **{name: value for name, value in others.items() if name == "status"},
        },
        **{name: value for name, value in others.items() if name != "status"},
    }


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": 1} if wide else column


JOB_COLUMNS = [
    _column("Phase", ".status.phase"),
    _column("Reason", ".status.summary.reason"),
    _column("Progress", ".status.summary.progress"),
    _column("Loss", ".status.summary.loss"),
    _column("ETA", ".status.summary.eta"),
    _column("GPUs", ".status.summary.gpus", "integer"),
    _column("Restarts", ".status.summary.restarts", "integer"),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Model", ".status.summary.model", wide=True),
    _column("Method", ".status.summary.method", wide=True),
    _column("Step", ".status.progress.step", "integer", wide=True),
    _column("Checkpoint", ".status.checkpoint.step", "integer", wide=True),
    _column("Output", ".status.output.uri", wide=True),
]
PROFILE_COLUMNS = [
    _column(
        "Default", f".metadata.annotations.{GROUP.replace('.', chr(92) + '.')}/is-default-profile"
    ),
    _column("Nodes", ".spec.limits.nodes", "integer"),
    _column("Accelerators", ".spec.limits.accelerators", "integer"),
    _column("Age", ".metadata.creationTimestamp", "date"),
]


def _definition(
    kind: str, *, scope: str, short: str, schema: Schema, columns: list[Schema], status: bool
) -> Schema:
    plural = kind.lower() + "s"
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    if status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["finetune"],
            },
            "versions": [version],
        },
    }


def job_definition() -> Schema:
    """Return the CustomResourceDefinition of FineTuneJob."""
    spec = structural(JobSpec)
    spec["x-kubernetes-validations"] = [*_rules(), *immutability(spec)]
    status = _conditions_by_type(structural(JobStatus))
    root = _root(spec, status=status, **{"x-kubernetes-validations": [_name_rule()]})
    root["description"] = "One fine-tuning of a model, from its data to a verified result."
    return _definition(
        JOB_KIND, scope="Namespaced", short="ftjob", schema=root, columns=JOB_COLUMNS, status=True
    )


def _conditions_by_type(status: Schema) -> Schema:
    """Return the schema of status with its conditions as a map by type, as Kubernetes has them."""
    conditions = status["properties"]["conditions"]
    conditions["x-kubernetes-list-type"] = "map"
    conditions["x-kubernetes-list-map-keys"] = ["type"]
    return status


def profile_definition() -> Schema:
    """Return the CustomResourceDefinition of FineTuneProfile."""
    root = _root(structural(ProfileSpec))
    root["description"] = "What jobs may use, their limits, presets and platform."
    return _definition(
        PROFILE_KIND,
        scope="Cluster",
        short="ftprofile",
        schema=root,
        columns=PROFILE_COLUMNS,
        status=False,
    )


def files() -> dict[str, str]:
    """Return file names and their YAML text."""
    from ruamel.yaml import YAML

    found = {}
    for definition in (job_definition(), profile_definition()):
        yaml = YAML()
        yaml.width = 100
        yaml.representer.ignore_aliases = lambda _: True
        text = io.StringIO()
        text.write("# Made from api/finetune_api by `make crds`; changes here are lost.\n")
        yaml.dump(definition, text)
        plural = definition["spec"]["names"]["plural"]
        found[f"{GROUP}_{plural}.yaml"] = text.getvalue()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or check that they are current; returns 1 where one is not."""
    parser = argparse.ArgumentParser(prog="python -m finetune_api.crd", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FOLDER")
    action.add_argument("--check", type=Path, metavar="FOLDER")
    parser.add_argument("--chart", type=Path, metavar="FOLDER", help="the Helm chart as well")
    options = parser.parse_args(arguments)
    folder: Path = options.write or options.check
    definitions = files()
    wanted = {folder / name: text for name, text in definitions.items()}
    if options.chart:
        made = chart_files(definitions, structural(ProfileSpec), options.chart)
        wanted |= {options.chart / path: text for path, text in made.items()}
    stale = []
    for path, text in wanted.items():
        if options.write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path))
    for name in stale:
        sys.stderr.write(f"{name} is not current; fix: make crds\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
