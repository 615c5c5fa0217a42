"""Which volumes a stage sees: the job's own folder, and the claims that the stage reads or writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.job import JobSpec
from finetune_api.job.dataset import DataSource
from finetune_api.names import (
    VOLUMES_MOUNT,
    WORKSPACE_MOUNT,
    workspace_claim,
    workspace_folder,
)
from finetune_api.resolved import Mounts, ResolvedJob, Stage
from finetune_api.source import SecretKeyRef, parse_uri
from finetune_operator.render import Object

WORKSPACE_VOLUME = "workspace"


@dataclass(frozen=True)
class Claim:
    """A claim that a stage mounts as a whole."""

    name: str
    writable: bool = False

    @property
    def path(self) -> str:
        """Where it is mounted."""
        return f"{VOLUMES_MOUNT}/{self.name}"


def claim_of(job: ResolvedJob) -> str:
    """Return the claim that holds the job's folder: the user's, or the one that is made."""
    return job.spec.workspace.claim_name or workspace_claim(job.name)


def claims(spec: JobSpec, stage: Stage) -> tuple[Claim, ...]:
    """Return the claims of a stage by name.

    Preparation sees every claim of the job, so that one that is missing shows before an
    accelerator is asked for. Training and publishing see those of the model: the data was prepared
    into the workspace, and a claim of one node would keep the pods of the others from starting.
    Only the output's claim may be written to, by publishing, and by preparation, which tries it
    before an accelerator is asked for.
    """
    found = dict.fromkeys(_claims_of(model_uris(spec)), False)
    output = [] if spec.output.uri is None else [spec.output.uri]
    if stage == "prepare":
        found |= dict.fromkeys(_claims_of(_data_uris(spec)), False)
    if stage != "train":
        found |= dict.fromkeys(_claims_of(output), True)
    return tuple(Claim(name, writable) for name, writable in sorted(found.items()))


def _claims_of(uris: list[str]) -> Iterator[str]:
    for uri in uris:
        source = parse_uri(uri)
        if source.scheme == "pvc":
            yield source.name


def model_uris(spec: JobSpec) -> list[str]:
    """Return where model, tokenizer and adapter come from."""
    model = spec.model
    others = [reference.uri for reference in (model.tokenizer, model.adapter) if reference]
    return [model.uri, *others]


def data_sources(spec: JobSpec) -> list[DataSource]:
    """Return the sources of training and validation."""
    held_out = spec.dataset.validation.sources if spec.dataset.validation else None
    return [*spec.dataset.train, *(held_out or [])]


def _data_uris(spec: JobSpec) -> list[str]:
    return [source.uri for source in data_sources(spec)]


def secrets(spec: JobSpec, stage: Stage) -> tuple[SecretKeyRef, ...]:
    """Return the secrets of a stage, each once.

    Preparation fetches, so it gets the tokens; it names those of training too, so that one that
    is missing shows now. Publishing needs none.
    """
    named = [spec.model.token_secret_ref, *(s.token_secret_ref for s in data_sources(spec))]
    tokens = [ref for ref in named if ref is not None]
    wandb = [spec.reporting.wandb.api_key_secret_ref] if spec.reporting.wandb else []
    found = {"prepare": [*tokens, *wandb], "train": wandb}.get(stage, [])
    return tuple({(ref.name, ref.key): ref for ref in found}.values())


def mounts(spec: JobSpec, stage: Stage) -> Mounts:
    """Return the folders as the stage's processes find them."""
    return Mounts(
        workspace=WORKSPACE_MOUNT,
        volumes={claim.name: claim.path for claim in claims(spec, stage)},
    )


def volumes(job: ResolvedJob, stage: Stage) -> tuple[list[Object], list[Object]]:
    """Return (volumes, mounts) of a stage's claims.

    A claim is one volume however often it is mounted: the kubelet does not start a pod that names
    one twice. Of the workspace only the job's folder is mounted, so that a pod cannot reach the
    folder of another job. A volume that nobody writes to is mounted read-only as a whole, which
    also keeps the kubelet from changing the groups of its files.
    """
    home = claim_of(job)
    found = claims(job.spec, stage)
    named = {home: WORKSPACE_VOLUME}
    for claim in found:
        named.setdefault(claim.name, f"claim-{len(named)}")
    written = {home, *(claim.name for claim in found if claim.writable)}
    made = []
    for name, volume in named.items():
        source: Object = {"claimName": name}
        if name not in written:
            source["readOnly"] = True
        made.append({"name": volume, "persistentVolumeClaim": source})
    mounted: list[Object] = [
        {
            "name": WORKSPACE_VOLUME,
            "mountPath": WORKSPACE_MOUNT,
            "subPath": workspace_folder(job.name, job.uid),
        }
    ]
    for claim in found:
        mount: Object = {"name": named[claim.name], "mountPath": claim.path}
        if not claim.writable:
            mount["readOnly"] = True
        mounted.append(mount)
    return made, mounted
