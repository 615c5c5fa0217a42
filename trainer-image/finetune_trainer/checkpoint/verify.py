"""Which checkpoint to resume from: the newest of the lineage that proves itself.

A folder is a checkpoint if and only if its ``manifest.json`` parses, belongs to this job, and every
file that it names has the size and SHA-256 that it says. Nothing is ever taken because its step
number is the highest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from finetune_api.checkpoint import CheckpointRef, Claim, Manifest, Rejected, parse_manifest
from finetune_api.exit_codes import ExitCode
from finetune_api.job.parallelism import Parallelism
from finetune_api.names import MANIFEST, Layout
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.errors import StageError

_STEP = re.compile(r"^step-([0-9]+)$")
_BEST = re.compile(r"^best-([0-9]+)$")
_CHUNK = 8 << 20
MANIFEST_LIMIT = 64 << 20
"""Bytes; a manifest of a hundred thousand files stays below."""


class Unusable(Exception):
    """A folder is no checkpoint, or not one that this job can go on from; says why."""


class Incomplete(Unusable):
    """There is no manifest: the save did not finish, or the deletion did."""


@dataclass(frozen=True)
class Expected:
    """What a checkpoint must have been trained with."""

    job_uid: str
    dataset_fingerprint: str
    model_digest: str
    tokenizer_digest: str
    engine: str
    method: str
    precision: str
    global_batch_size: int
    seed: int


@dataclass(frozen=True)
class Found:
    """A checkpoint whose manifest, sizes and identity are right; contents not read yet."""

    ref: CheckpointRef
    folder: Path
    manifest: Manifest


def engine_name(parallelism: Parallelism | None) -> str:
    """Return the engine as manifests spell it: ddp, fsdp, zero-1, zero-2 or zero-3."""
    if parallelism is None:
        return "ddp"
    if parallelism.deepspeed is not None:
        return f"zero-{parallelism.deepspeed.zero_stage}"
    return parallelism.engine


def expected(config: StageConfig) -> Expected:
    """Return what a train stage's checkpoints must say."""
    spec, choices = config.job.spec, config.choices
    if choices is None:
        raise ValueError("the configuration has no choices: it is not one of a train stage")
    return Expected(
        job_uid=config.job.uid,
        dataset_fingerprint=choices.fingerprint,
        model_digest=choices.model_digest,
        tokenizer_digest=choices.tokenizer_digest,
        engine=engine_name(spec.parallelism),
        method=spec.method.kind,
        precision=spec.training.precision,
        global_batch_size=choices.global_batch_size,
        seed=spec.training.seed,
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder; raises ``Unusable``."""
    try:
        path = folder / MANIFEST
        if path.stat().st_size > MANIFEST_LIMIT:
            raise Unusable(f"its {MANIFEST} is larger than any manifest")
        return parse_manifest(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        raise Incomplete(f"no {MANIFEST}: it was never finished, or is being deleted") from None
    except (ValueError, ValidationError):
        raise Unusable(f"its {MANIFEST} cannot be read as one") from None
    except OSError as error:
        raise Unusable(f"its {MANIFEST} cannot be read: {error.strerror}") from None


def check_identity(manifest: Manifest, wanted: Expected) -> None:
    """Raise ``Unusable`` when a manifest belongs to another job or another training."""
    for attribute in wanted.__dataclass_fields__:
        found, want = getattr(manifest, attribute), getattr(wanted, attribute)
        if found != want:
            name = attribute.replace("_", " ")
            raise Unusable(f"{name} is {found}, the job's is {want}")


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise ``Unusable`` when a file is missing, outside the folder, or of another size."""
    root = folder.resolve()
    for entry in manifest.files:
        path = folder / entry.path
        if not path.resolve().is_relative_to(root):
            raise Unusable(f"{entry.path} lies outside the checkpoint")
        try:
            size = path.stat().st_size
        except OSError:
            raise Unusable(f"{entry.path} is missing") from None
        if size != entry.size:
            raise Unusable(f"{entry.path} has {size} bytes, its manifest says {entry.size}")


def check_contents(folder: Path, manifest: Manifest, ranks: Collection[int] | None = None) -> None:
    """Raise ``Unusable`` when a file's SHA-256 is not the manifest's.

    ``ranks``: only the files that these ranks wrote; None: all.
    """
    for entry in manifest.files:
        if ranks is not None and entry.rank not in ranks:
            continue
        try:
            found = sha256(folder / entry.path)
        except OSError as error:
            raise Unusable(f"{entry.path} cannot be read: {error.strerror}") from None
        if found != entry.sha256:
            raise Unusable(f"{entry.path} has another content than its manifest says")


def verified(folder: Path, job_uid: str | None = None) -> Manifest:
    """Return the manifest of a folder that is a checkpoint, all contents read; raises ``Unusable``."""
    manifest = read_manifest(folder)
    if job_uid is not None and manifest.job_uid != job_uid:
        raise Unusable(f"job uid is {manifest.job_uid}, the job's is {job_uid}")
    check_sizes(folder, manifest)
    check_contents(folder, manifest)
    return manifest


def reference(layout: Layout, folder: Path, manifest: Manifest) -> CheckpointRef:
    """Return the name by which status, claims and reports know a checkpoint."""
    return CheckpointRef(
        step=manifest.step,
        path=folder.relative_to(layout.root).as_posix(),
        digest=manifest.digest,
        time=manifest.time,
        world_size=manifest.world_size,
    )


def steps(folder: Path, name: re.Pattern[str] = _STEP) -> list[int]:
    """Return the steps of which a claim's folder holds anything, newest first."""
    if not folder.is_dir():
        return []
    names = (name.match(entry.name) for entry in folder.iterdir())
    return sorted((int(name[1]) for name in names if name), reverse=True)


def places(
    layout: Layout, known: Mapping[int, Claim | None] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield (claim, step) of every candidate along the lineage, newest claim and step first.

    ``known``: the claims; absent: those on disk.

    The step from which a claim resumed is a candidate even if the folder does not list it: network
    file systems list from a cache.
    """
    for span in claims.lineage(claims.read_all(layout) if known is None else known):
        listed = steps(layout.checkpoints / str(span.claim))
        if span.last_step is not None:
            limit = span.last_step
            listed = sorted({limit, *(step for step in listed if step <= limit)}, reverse=True)
        for step in listed:
            yield span.claim, step


def snapshots(
    layout: Layout, known: Mapping[int, Claim | None] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield (claim, step) of every snapshot of a best evaluation along the lineage, newest first.

    ``known``: the claims; absent: those on disk.
    """
    for span in claims.lineage(claims.read_all(layout) if known is None else known):
        for step in steps(layout.checkpoints / str(span.claim), _BEST):
            if span.last_step is None or step <= span.last_step:
                yield span.claim, step


@dataclass
class Search:
    """The walk along the lineage: what was found unusable so far, and whether work was done."""

    layout: Layout
    wanted: Expected
    world_size: int | None
    """None: the weights alone are wanted, whoever wrote them."""
    known: CheckpointRef | None = None
    below: int | None = None
    """Claims from this number on are left out; None: all count."""
    damaged: dict[str, str] = field(default_factory=dict)
    """By the digest of its manifest: what is wrong with a checkpoint whose contents were read."""
    rejected: tuple[Rejected, ...] = ()
    progressed: bool = False
    """A checkpoint was committed once, whatever became of it."""

    def again(self, below: int) -> Search:
        """Return a walk from the beginning that reads no damaged checkpoint twice."""
        return replace(self, below=below, rejected=(), progressed=False)

    def candidates(self) -> Iterator[Found]:
        """Yield usable-looking checkpoints, best first; the consumer reads their contents.

        Raises:
            StageError: a checkpoint is intact but needs another world size (10).
        """
        history = {
            number: claim
            for number, claim in claims.read_all(self.layout).items()
            if self.below is None or number < self.below
        }
        self.progressed = self.known is not None or any(
            claim and claim.resumes_from for claim in history.values()
        )
        for sequence, step in places(self.layout, history):
            folder = self.layout.checkpoint(sequence, step)
            try:
                found = self._look(folder, sequence, step)
            except Unusable as error:
                self.progressed |= not isinstance(error, Incomplete)
                self.reject(folder, step, str(error))
                continue
            self.progressed = True
            check_world(found.manifest, self.world_size)
            yield found

    def _look(self, folder: Path, sequence: int, step: int) -> Found:
        manifest = read_manifest(folder)
        check_identity(manifest, self.wanted)
        if (manifest.claim, manifest.step, manifest.kind) != (sequence, step, "checkpoint"):
            raise Unusable(
                f"its manifest is that of step {manifest.step} of claim {manifest.claim}"
            )
        found = Found(reference(self.layout, folder, manifest), folder, manifest)
        if (
            self.known
            and found.ref.path == self.known.path
            and found.ref.digest != self.known.digest
        ):
            raise Unusable("its manifest is not the one that was verified when it was written")
        if found.ref.digest in self.damaged:
            raise Unusable(self.damaged[found.ref.digest])
        check_sizes(folder, manifest)
        return found

    def reject_contents(self, found: Found, reason: str) -> None:
        """Remember a checkpoint whose contents are not what its manifest says."""
        self.damaged[found.ref.digest] = reason
        self.reject(found.folder, found.ref.step, reason)

    def reject(self, folder: Path, step: int, reason: str) -> None:
        """Remember an unusable checkpoint, and why."""
        path = folder.relative_to(self.layout.root).as_posix()
        self.rejected += (Rejected(path=path, step=step, reason=reason[:512]),)

    def not_before(self, chosen: Found | None, found: Found | None) -> Found | None:
        """Return ``found``; where it is older than one that was chosen and is still there, that."""
        if chosen is None or (found and found.ref.step >= chosen.ref.step):
            return found
        try:
            return self._look(chosen.folder, chosen.manifest.claim, chosen.ref.step)
        except Unusable:
            return found

    def settle(self, found: Found | None, chosen: Found | None = None) -> None:
        """Raise ``StageError`` (15) when going on from ``found`` would silently lose work.

        A newer checkpoint that is damaged is named in ``rejected`` and the one before it is used.
        A verified one (that the attempt knows, or that was ``chosen`` a moment ago) that is gone
        without a trace means that this is not the folder that it was.
        """
        verified = [ref for ref in (self.known, chosen and chosen.ref) if ref]
        if found is None:
            if self.progressed or verified:
                raise unusable(self.rejected, verified[0] if verified else None)
            return
        for ref in verified:
            if found.ref.step < ref.step and not any(r.path == ref.path for r in self.rejected):
                raise unusable(self.rejected, ref)


def check_world(manifest: Manifest, world_size: int | None) -> None:
    """Raise ``StageError`` (10) when a checkpoint cannot be loaded by this number of ranks."""
    if world_size in (None, manifest.world_size):
        return
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="world-size-changed",
            message=f"the checkpoint of step {manifest.step} was written by "
            f"{manifest.world_size} ranks; this attempt has {world_size}. Random number streams "
            "and sharded optimizer state belong to their rank",
            fix=f"run the attempt with {manifest.world_size} ranks, as before",
            field="spec.resources",
        ),
    )


def unusable(rejected: Iterable[Rejected], known: CheckpointRef | None) -> StageError:
    """Return the refusal to start over a job that had made progress (15)."""
    rejected = tuple(rejected)
    reasons = "; ".join(f"step {item.step}: {item.reason}" for item in rejected[:3])
    if known is not None:
        what = f"the checkpoint of step {known.step} ({known.path}) was verified before, and "
        what += "nothing at or after it can be used"
    else:
        what = "training had made progress, and no checkpoint can be used"
    return StageError(
        ExitCode.CHECKPOINT_UNUSABLE,
        Problem(
            code="checkpoint-unusable",
            message=f"{what}{': ' + reasons if reasons else ''}"[:1024],
            fix="check that the workspace is the one that this job used before and that its volume "
            "is sound, and put the checkpoint back from a copy; or create the job anew to train "
            "from the beginning",
        ),
    )
