"""Whose folders a claim holds that one job after another of a name has used.

The claim's label names the job that it was made for. Every later one adds its folder to an annotation
of the claim: nothing else outlives a job that could tell the next one where its model lies.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api import GROUP
from finetune_api.names import workspace_folder
from finetune_operator.kube import CLAIMS, Forbidden, Invalid, Kube, KubeError, Object, uid_of
from finetune_operator.render.workspace import made_by_us, made_for
from finetune_operator.resolve.paths import look

log = logging.getLogger(__name__)

ANNOTATION = f"{GROUP}/later-folders"
MOST = 20
"""Folders that are kept beside the first; the oldest are forgotten."""
REMEMBERED = 4096


def earlier(claim: Mapping[str, Any], job: str, uid: str) -> tuple[str, ...]:
    """Return the folders of earlier jobs of this name in a claim that we made, the newest first."""
    first = made_for(claim)
    if first in (None, uid) or not made_by_us(claim):
        return ()
    found = [workspace_folder(job, str(first)), *_later(claim, job)]
    own = workspace_folder(job, uid)
    return tuple(dict.fromkeys(one for one in reversed(found) if one != own))


def told(folders: tuple[str, ...]) -> str:
    """Return what the user of a claim that is used again reads."""
    if len(folders) == 1:
        return f"the claim holds the folder of an earlier job too: {folders[0]}"
    return (
        f"the claim holds the folders of earlier jobs too, the newest first: {', '.join(folders)}"
    )


def _later(claim: Mapping[str, Any], job: str) -> list[str]:
    """Return what the annotation says; whoever may change the claim may have written anything."""
    said = look(claim, "metadata", "annotations", ANNOTATION)
    words = said.split()[-MOST:] if isinstance(said, str) else []
    return [word for word in words if re.fullmatch(re.escape(job) + "-[0-9a-f]{8}", word)]


@dataclass
class Folders:
    """Adds the folder of a job to its claim, once; remembers only where that was refused."""

    kube: Kube
    _refused: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)

    async def add(self, claim: Object, job: str, uid: str) -> None:
        """Add the folder of a job that uses a claim of an earlier one.

        Where there was no answer, or the claim has changed since it was read, the next look does.
        """
        own, before = workspace_folder(job, uid), _later(claim, job)
        key = (uid_of(claim), own)
        if own in before or key in self._refused:
            return
        metadata = {
            "uid": uid_of(claim),
            "resourceVersion": claim["metadata"]["resourceVersion"],
            "annotations": {ANNOTATION: " ".join([*before, own][-MOST:])},
        }
        try:
            await self.kube.patch(CLAIMS, claim, {"metadata": metadata})
        except (Forbidden, Invalid) as error:
            log.info("claim %s keeps no folder: %s", claim["metadata"]["name"], error.message)
            self._refused[key] = None
            while len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)
        except KubeError as error:
            # A note must not keep a job from being looked at; the next look tries again.
            log.info("claim %s keeps no folder yet: %s", claim["metadata"]["name"], error)
