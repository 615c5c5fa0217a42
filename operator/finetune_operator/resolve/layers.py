"""Laying raw data over raw data, and remembering which layer held each value."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.compatibility import EXCLUSIVE
from finetune_api.resolved import Origin
from finetune_operator.resolve.paths import Path

Groups = tuple[frozenset[str], ...]


def _exclusive() -> dict[Path, list[Groups]]:
    """Return the contract's groups of exclusive fields by the section that holds them."""
    found: dict[Path, list[Groups]] = {}
    for groups in EXCLUSIVE:
        section = tuple(groups[0][0].split(".")[:-1])
        names = tuple(frozenset(path.rpartition(".")[2] for path in group) for group in groups)
        found.setdefault(section, []).append(names)
    return found


ONE_OF = _exclusive()
"""Fields of which one shuts out the others. A layer that chooses replaces the choice of the layers
below; it never adds to it."""


@dataclass(frozen=True)
class Merged:
    """One raw spec out of several layers, and the layer of each of its values."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, Origin] = field(default_factory=dict)

    def over(self, layer: Mapping[str, Any], origin: Origin) -> Merged:
        """Return this with a layer on top. A list is one value; maps are merged by key."""
        data = copy.deepcopy(self.data)
        origins = dict(self.origins)
        _lay(data, origins, layer, origin, ())
        return Merged(data, origins)

    def filled(self, path: Path, value: Any) -> Merged:
        """Return this with a built-in value at a path that no layer holds."""
        layer: Any = value
        for part in reversed(path):
            layer = {part: layer}
        return self.over(layer, "built-in")

    def origin(self, path: Path) -> Origin | None:
        """Return the layer of the value at a path, or of the nearest value around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return None


def _lay(
    below: dict[str, Any],
    origins: dict[Path, Origin],
    layer: Mapping[str, Any],
    origin: Origin,
    path: Path,
) -> None:
    """Write ``layer`` into ``below`` and its origins into ``origins``."""
    for name in _displaced(path, layer):
        if below.pop(name, None) is not None:
            _forget(origins, (*path, name))
    for key, value in layer.items():
        here = (*path, key)
        held = below.get(key)
        if isinstance(value, Mapping) and value and isinstance(held, dict):
            if not held:
                _forget(origins, here)
            _lay(held, origins, value, origin, here)
        elif isinstance(value, Mapping) and isinstance(held, dict) and held:
            continue  # an empty section over one that says something changes nothing
        else:
            _forget(origins, here)
            below[key] = copy.deepcopy(value)
            origins.update(dict.fromkeys(leaves(value, here), origin))


def _displaced(path: Path, layer: Mapping[str, Any]) -> set[str]:
    """Return the names below a path that the choice of a layer pushes out."""
    out: set[str] = set()
    for groups in ONE_OF.get(path, ()):
        chosen = {name for group in groups if group & layer.keys() for name in group}
        if chosen:
            out |= {name for group in groups for name in group} - chosen
    return out


def _forget(origins: dict[Path, Origin], path: Path) -> None:
    """Remove the origins of a value and of all that is in it."""
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values; a list and an empty section are values."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    else:
        yield path
