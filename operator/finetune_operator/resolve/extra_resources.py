"""What a profile adds to the requests of training pods, and what the API server asks of it."""

from __future__ import annotations

from finetune_api.job import JobSpec
from finetune_api.job.resources import QUOTA
from finetune_api.problem import Problem
from finetune_api.profile import Platform
from finetune_api.quantity import parse_bytes
from finetune_operator.resolve.paths import path_text

PAGES = "hugepages-"


def problems(platform: Platform) -> list[Problem]:
    """Return what is wrong with the extra resources of a profile."""
    found = []
    for name, amount in (platform.extra_resources or {}).items():
        field = path_text(("spec", "platform", "extraResources", name))
        if name.startswith(QUOTA):
            found.append(
                Problem(
                    code="resource-of-quota",
                    field=field,
                    message=f"{name} is how a quota speaks of it, no name of a resource",
                    fix=f"write {name.removeprefix(QUOTA)}",
                )
            )
        if name.startswith(PAGES) and parse_bytes(amount) % parse_bytes(size := _size(name)):
            found.append(
                Problem(
                    code="pages-not-whole",
                    field=field,
                    message=f"{field} is {amount}, which is no whole number of pages",
                    fix=f"write a multiple of {size}",
                )
            )
    return found


def lacking(spec: JobSpec, platform: Platform) -> list[Problem]:
    """Return the problem of a job that the API server would give no huge pages."""
    wanted = spec.resources
    pages = [name for name in platform.extra_resources or {} if name.startswith(PAGES)]
    if not pages or wanted.memory is not None or wanted.cpu is not None:
        return []
    return [
        Problem(
            code="pages-need-memory",
            field="spec.resources.memory",
            message=f"the profile adds {pages[0]}, which a pod gets only beside memory or cpu",
            fix="set resources.memory",
        )
    ]


def _size(name: str) -> str:
    """Return the size of a page: ``2Mi`` of ``hugepages-2Mi``."""
    return name.removeprefix(PAGES)
