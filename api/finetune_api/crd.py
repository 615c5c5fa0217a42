"""The custom resource definitions, made from the models and the rules.

``python -m finetune_api.crd --write crds/`` writes them, ``--check crds/`` fails when a file is not
what would be written; with ``--chart`` also those of the Helm chart. They carry no defaults:
``resolve`` alone fills in values, and says where each came from.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from finetune_api import GROUP, VERSION
from finetune_api.chart_files import chart_files
from finetune_api.compatibility import RULES
from finetune_api.job import KIND as JOB_KIND
from finetune_api.job import MUTABLE, JobSpec
from finetune_api.names import MAX_JOB_NAME
from finetune_api.profile import KIND as PROFILE_KIND
from finetune_api.profile import ProfileSpec
from finetune_api.status import JobStatus
from finetune_api.structural import Schema, structural


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
