"""The parts of the Helm chart that say again what the models say: definitions, schema of profiles.

``python -m finetune_api.crd --chart charts/finetune-operator`` writes or checks them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

SCHEMA_FILE = "values.schema.json"
PROFILE_SCHEMA = "profileSpec"
_METADATA = """\
  labels:
    {{- include "finetune-operator.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    # Without it, uninstalling would remove every job and profile of the cluster.
    helm.sh/resource-policy: keep
  {{- end }}
"""


def chart_files(
    definitions: Mapping[str, str], profile_spec: Schema, chart: Path
) -> dict[Path, str]:
    """Return paths within the chart and what belongs there.

    Args:
        definitions: name and text of each file in ``crds/``.
        profile_spec: structural schema of a profile's ``spec``.
        chart: folder of the chart; of its schema only one definition is made, the rest is kept.
    """
    found = {
        Path("templates/crds") / name.partition("_")[2]: template(text)
        for name, text in definitions.items()
    }
    schema = json.loads((chart / SCHEMA_FILE).read_text(encoding="utf-8"))
    schema["$defs"] = {**schema.get("$defs", {}), PROFILE_SCHEMA: strict(profile_spec)}
    found[Path(SCHEMA_FILE)] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return found


def template(definition: str) -> str:
    """Return the template of a definition: its text with the release's labels, and a switch."""
    first, _, rest = definition.partition("\n")
    escaped = rest.replace("{{", '{{ "{{" }}')
    head, name, body = escaped.partition("\nspec:\n")
    return f"{first}\n{{{{- if .Values.crds.enabled }}}}\n{head}\n{_METADATA}{name[1:]}{body}{{{{- end }}}}\n"


def strict(node: Any) -> Any:
    """Return a structural schema as JSON Schema that refuses fields it does not know.

    Helm sends objects without asking the API server to refuse unknown fields: a limit with a typo
    would vanish without a word.
    """
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    found = {
        key: _members(value) if key == "properties" else strict(value)
        for key, value in node.items()
        if not key.startswith("x-kubernetes-") and key not in {"format", "default"}
    }
    for side in ("Minimum", "Maximum"):
        if found.get(f"exclusive{side}") is True:  # OpenAPI 3.0 has a flag, JSON Schema the bound
            found[f"exclusive{side}"] = found.pop(side.lower())
    known = "properties" in node and "additionalProperties" not in node
    if known and not node.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def _members(properties: Mapping[str, Any]) -> Schema:
    return {name: strict(value) for name, value in properties.items()}
