"""What the models of the contract say about a path: which section or field stands there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from finetune_api.document import Document


def fields(model: type[Document]) -> dict[str, FieldInfo]:
    """Return the fields of a model under the names that users write."""
    return {info.alias or to_camel(name): info for name, info in model.model_fields.items()}


def section_in(annotation: Any) -> type[Document] | None:
    """Return the model inside an annotation such as ``list[DataSource] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return annotation
    for part in get_args(annotation):
        found = section_in(part)
        if found is not None:
            return found
    return None


def section_at(model: type[Document], path: Sequence[str | int]) -> type[Document] | None:
    """Return the model of the section at a path; None where the path holds no section."""
    here: type[Document] | None = model
    for part in path:
        if here is None:
            return None
        if isinstance(part, int):
            continue  # an item of the list whose model is at hand already
        info = fields(here).get(part)
        here = section_in(info.annotation) if info else None
    return here


def known(model: type[Document], path: Sequence[str | int]) -> bool:
    """Tell whether a path names a field of the model."""
    if not path or not isinstance(path[-1], str):
        return False
    around = section_at(model, path[:-1])
    return around is not None and path[-1] in fields(around)


def required(model: type[Document]) -> list[str]:
    """Return the names that a user has to write in a section."""
    return [
        name
        for name, info in fields(model).items()
        if info.is_required()
        and not (isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("filled"))
    ]
