"""Saving: every rank writes, flushes and hashes its own files; the manifest comes last.

``Checkpoints`` is what a trainer holds, one a rank:

* ``mark()`` after each optimizer step, before anything else draws random numbers. What is saved
  later belongs to the last mark, so that a save in the middle of an accumulation throws the
  partial accumulation away and the resumed run draws the same numbers again.
* ``save(trainer, reason, evaluation)`` on all ranks at the same step.
* ``save_best(trainer, evaluation)`` on all ranks: weights alone, outside rotation.
* ``close()`` at the end: waits for the deletion of old checkpoints.

Files are named as transformers' ``Trainer`` reads them, so that
``Trainer.train(resume_from_checkpoint=folder)`` restores optimizer, scheduler, scaler and position;
weights are restored as ``trained`` says, and random numbers by ``rng.load`` from the trainer's
``_load_rng_state``.
"""

from __future__ import annotations

import copy
import errno
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from finetune_api.checkpoint import CheckpointRef, FileEntry, Manifest
from finetune_api.exit_codes import ExitCode
from finetune_api.names import MANIFEST, Layout
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer import methods
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint import durable, retention, rng, verify, zero
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.checkpoint.restore import METHOD_STATE, Start
from finetune_trainer.errors import StageError

T = TypeVar("T")
Reason = Literal["cadence", "signal", "best", "end"]
LOG_HISTORY = 1000
"""Entries of the log that a checkpoint carries; the whole of it is in the reports."""
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "finetunejob")
_OF_RANK = re.compile(r"(?:^|/)(?:rng_state|(?:bf16_)?zero_pp_rank)_([0-9]+)[._]")
_FULL = re.compile(
    r"no space left|disk quota|file write failed|unexpected pos|PytorchStreamWriter", re.I
)


class Checkpoints:
    """The checkpoints of one claim, as one rank of its gang writes them."""

    def __init__(self, config: StageConfig, start: Start, gang: Gang) -> None:
        """Hold what every manifest of this claim says; touches nothing."""
        self.layout = Layout(Path(config.mounts.workspace))
        self.config, self.start, self.gang = config, start, gang
        self.newest: CheckpointRef | None = start.resume
        """The newest verified checkpoint: of this claim, or the one that it resumed from."""
        self.seconds = 0.0
        """What the last save took of the training time."""
        self._random: rng.State | None = None
        self._retention = retention.Retention(
            self.layout, start.claim, config.job.spec.checkpoint.keep
        )

    @property
    def sequence(self) -> int:
        """The number of the claim."""
        return self.start.claim.sequence

    def mark(self) -> None:
        """Remember the random number generators as they are at the end of an optimizer step."""
        self._random = rng.capture()

    def save(
        self, trainer: Any, reason: Reason, evaluation: Mapping[str, float] | None = None
    ) -> CheckpointRef:
        """Commit a checkpoint of the trainer's last finished step and return its name.

        Collective. A step that is saved already is not saved again, but for one that this claim
        resumed from and that was evaluated only then.

        Raises:
            StageError: 21 when a newer claim exists, 14 when the storage is full; on every rank.
        """
        step = int(trainer.state.global_step)
        if self.newest is not None and self.newest.step == step and not self._adds(evaluation):
            return self.newest
        began = time.monotonic()
        folder = self.layout.checkpoint(self.sequence, step)
        files = self._written(
            folder,
            lambda: write_weights(trainer, folder, self.gang.leads),
            lambda: self._write_rest(trainer, folder),
        )
        manifest = self._manifest(trainer, files, "checkpoint", reason, evaluation)
        newest = self.newest = self._commit(folder, manifest)
        self.seconds = time.monotonic() - began
        self.gang.led(lambda: self._retention.begin(newest))
        return newest

    def _adds(self, evaluation: Mapping[str, float] | None) -> bool:
        """Tell whether the checkpoint that this claim resumed from lacks an evaluation. Collective."""
        folder = self.start.folder
        if not evaluation or folder is None or self.newest != self.start.resume:
            return False

        def lacking() -> bool:
            try:
                return not verify.read_manifest(folder).evaluation
            except verify.Unusable:  # gone: whoever may still write it writes it again
                return True

        return self.gang.led(lacking)

    def save_best(self, trainer: Any, evaluation: Mapping[str, float]) -> CheckpointRef:
        """Commit a snapshot of the weights alone.

        Those before it stay as long as a run that goes on from a checkpoint may publish them.
        """
        folder = self.layout.best(self.sequence, int(trainer.state.global_step))
        files = self._written(folder, lambda: write_weights(trainer, folder, self.gang.leads))
        ref = self._commit(folder, self._manifest(trainer, files, "best", "best", evaluation))
        self.gang.led(lambda: self._retention.begin_snapshots(ref))
        return ref

    def close(self) -> None:
        """Wait until old checkpoints are deleted. Collective; raises as ``save`` does."""
        self.gang.led(self._retention.finish)

    def _written(self, folder: Path, *writes: Callable[[], None]) -> tuple[FileEntry, ...]:
        """Write with every rank; returns all ranks' files, flushed and hashed.

        A rank begins with the next part when all have done the one before: DeepSpeed's own waiting
        for the rank that writes the weights would end sooner, and not at all where that one failed.
        Within a part no rank may leave others waiting (``zero``).
        """
        self.gang.led(lambda: self._make(folder))
        folder.mkdir(parents=True, exist_ok=True)
        for write in writes:
            self._done_by_all(folder, write)
        told = self._done_by_all(folder, lambda: flushed(folder, self.gang.rank))
        return tuple(entry for entries in told for entry in entries or ())

    def _done_by_all(self, folder: Path, act: Callable[[], T]) -> list[T | None]:
        """Return what came of ``act`` on every rank; raises ``StageError`` (14) on all for one."""
        result: T | None = None
        problem: Problem | None = None
        try:
            with rng.preserved():
                result = act()
        except Exception as error:
            claims.fence(self.layout, self.sequence)
            problem = storage_problem(error, self.layout.root)
            if problem is None:
                raise
        told = self.gang.all((result, problem))
        problems = [problem for _, problem in told if problem]
        if problems:
            self.gang.led(lambda: self._discard(folder))
            raise StageError(ExitCode.STORAGE_FULL, problems[0])
        return [result for result, _ in told]

    def _make(self, folder: Path) -> None:
        claims.fence(self.layout, self.sequence)
        try:
            durable.make_folder(folder)
        except OSError as error:
            problem = storage_problem(error, self.layout.root)
            if problem is None:
                raise
            raise StageError(ExitCode.STORAGE_FULL, problem) from error

    def _discard(self, folder: Path) -> None:
        """Give back the room of a save that failed: it never was a checkpoint."""
        claims.fence(self.layout, self.sequence)
        shutil.rmtree(folder, ignore_errors=True)

    def _write_rest(self, trainer: Any, folder: Path) -> None:
        write_optimizer(trainer, folder, self.gang.leads)
        import torch

        if self.gang.leads:
            write_state(trainer, folder)
            kept = methods.state(trainer.model, self.config)
            if kept:
                torch.save(kept, folder / METHOD_STATE)
        torch.save(self._random or rng.capture(), folder / rng.file_name(self.gang.rank))

    def _commit(self, folder: Path, manifest: Manifest) -> CheckpointRef:
        def commit() -> CheckpointRef:
            data = json.dumps(manifest.to_json(), indent=1).encode()
            claims.fence(self.layout, self.sequence)
            try:
                durable.replace(folder / MANIFEST, data)
                durable.flush_folder(folder.parent)
            except OSError as error:
                problem = storage_problem(error, self.layout.root)
                if problem is None:
                    raise
                raise StageError(ExitCode.STORAGE_FULL, problem) from error
            return verify.reference(self.layout, folder, manifest)

        return self.gang.led(commit)

    def _manifest(
        self,
        trainer: Any,
        files: tuple[FileEntry, ...],
        kind: Literal["checkpoint", "best"],
        reason: Reason,
        evaluation: Mapping[str, float] | None,
    ) -> Manifest:
        wanted, attempt = verify.expected(self.config), self.config.attempt
        return Manifest(
            kind=kind,
            claim=self.sequence,
            attempt=self.start.claim.attempt,
            step=int(trainer.state.global_step),
            epoch=float(trainer.state.epoch or 0.0),
            world_size=self.gang.world_size,
            micro_batch_size=attempt.micro_batch_size if attempt else 1,
            evaluation=dict(evaluation or {}),
            reason=reason,
            versions=versions(),
            files=tuple(sorted(files, key=lambda entry: entry.path)),
            time=claims.now(),
            **{field: getattr(wanted, field) for field in wanted.__dataclass_fields__},
        )


def owner(path: str) -> int:
    """Return the rank that writes a file of a checkpoint, and that reads it again."""
    match = _OF_RANK.search(path)
    return int(match[1]) if match else 0


def flushed(folder: Path, rank: int) -> list[FileEntry]:
    """Flush and hash the files of a rank; returns their entries, sorted."""
    entries, folders = [], {folder}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            folders.add(path)
        elif name != MANIFEST and owner(name) == rank:
            durable.flush_file(path)
            size = path.stat().st_size
            entries.append(FileEntry(path=name, size=size, sha256=verify.sha256(path), rank=rank))
    for place in folders:
        durable.flush_folder(place)
    return entries


def write_weights(trainer: Any, folder: Path, leads: bool) -> None:
    """Write the model (or the adapter alone) as safetensors; collective under ZeRO-3."""
    state = None
    engine = trainer.model_wrapped
    if zero_stage(trainer) == 3:
        state = engine._zero3_consolidated_16bit_state_dict(
            exclude_frozen_parameters=is_adapter(trainer)
        )
    elif leads:
        state = trainer.model.state_dict()
    if leads:
        trainer.model.save_pretrained(folder, state_dict=state)
        # peft writes a model card with each adapter; the job's own is written at publishing.
        (folder / "README.md").unlink(missing_ok=True)


def write_optimizer(trainer: Any, folder: Path, leads: bool) -> None:
    """Write optimizer, scheduler and gradient scaler; collective under DeepSpeed."""
    import torch

    if zero_stage(trainer):
        tag = f"global_step{int(trainer.state.global_step)}"
        zero.write(trainer.model_wrapped, folder, tag, adapter_alone=is_adapter(trainer))
    if not leads:
        return
    if not zero_stage(trainer):
        torch.save(trainer.optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None:
        torch.save(scaler.state_dict(), folder / "scaler.pt")


def write_state(trainer: Any, folder: Path) -> None:
    """Write step, epoch, best metric and the end of the log."""
    state = copy.copy(trainer.state)
    state.log_history = state.log_history[-LOG_HISTORY:]
    state.save_to_json(str(folder / "trainer_state.json"))


def zero_stage(trainer: Any) -> int:
    """Return the ZeRO stage that runs; 0 without DeepSpeed."""
    if not trainer.is_deepspeed_enabled:
        return 0
    return int(trainer.model_wrapped.zero_optimization_stage())


def is_adapter(trainer: Any) -> bool:
    """Tell whether the model is a frozen base with an adapter of peft."""
    return hasattr(trainer.model, "peft_config")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that write checkpoints."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def storage_problem(error: BaseException, root: Path) -> Problem | None:
    """Return the problem when an exception says that the storage is full, else None."""
    if isinstance(error, OSError) and error.errno is not None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    else:
        full = _FULL.search(str(error)) is not None
    if not full:
        return None
    return Problem(
        code="storage-full",
        message=f"a checkpoint could not be written: {str(error)[:300]}; "
        f"{shutil.disk_usage(root).free:,} bytes are free in the workspace",
        fix="enlarge the workspace's volume, lower checkpoint.keep, or remove what else fills it; "
        "older checkpoints are intact and training goes on from the newest",
        field="spec.workspace.size",
    )
