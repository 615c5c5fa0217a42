"""Training, as one rank does it: set up, loop, save. Reads top to bottom."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
import transformers

from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.problem import Problem
from finetune_api.reports import Progress
from finetune_api.resolved import StageConfig
from finetune_trainer import (
    arguments,
    devices,
    losses,
    masks,
    model,
    optimizers,
    parallelism,
    trainer_class,
)
from finetune_trainer.callbacks.cadence import Cadence
from finetune_trainer.callbacks.evaluation import Evaluation
from finetune_trainer.callbacks.finite import Finite
from finetune_trainer.callbacks.goodput import Clock
from finetune_trainer.callbacks.hang import Watchdog
from finetune_trainer.callbacks.meter import Meter
from finetune_trainer.callbacks.progress import Reporter, peak_memory
from finetune_trainer.callbacks.signals import Agreement, Signals
from finetune_trainer.checkpoint import restore, rng, trained
from finetune_trainer.checkpoint.gang import PATIENCE, Gang
from finetune_trainer.checkpoint.save import Checkpoints
from finetune_trainer.data import cache
from finetune_trainer.data.collate import Collator
from finetune_trainer.errors import Ending, Signalled, StageError, ending_of
from finetune_trainer.facts import Facts
from finetune_trainer.listener import Listener
from finetune_trainer.order import GlobalBatches

PROGRESS_PORT = "FINETUNE_PROGRESS_PORT"
PROGRESS_HOST = "FINETUNE_PROGRESS_HOST"
TRACE_SAMPLES = "FINETUNE_TRACE_SAMPLES"
POD_UID = "FINETUNE_POD_UID"


def train(
    config: StageConfig, listener: Listener, facts: Facts, scratch: Path, log: Path
) -> Ending:
    """Train one attempt as one rank; return how it ended.

    Raises:
        StageError, Signalled, or whatever went wrong: ``errors`` knows the exit codes.
    """
    began = time.time()
    quiet()
    choices, attempt = arguments.stage(config)
    spec, layout = config.job.spec, Layout(Path(config.mounts.workspace))

    # --- set up: devices and process group, claim, data, model, engine -------------------------
    devices.check(config)
    args = arguments.training_arguments(config, scratch / "transformers")
    devices.assert_in_use(args.device.type, config)
    if spec.parallelism.deepspeed is not None and args.device.type == "cpu":
        parallelism.begin_deepspeed_on_cpu()
    check_world(args.world_size, attempt.world_size)
    gang, talk = gangs(args)
    furthest = furthest_step(layout, config.job.uid) if gang.leads else 0
    start = restore.start(config, talk, pod_uid=os.environ.get(POD_UID) or str(uuid.uuid4()))
    facts.know(claim=start.claim.sequence, resumed_from=start.resume, rejected=start.rejected[:3])
    facts.know(step=start.resume.step if start.resume else 0, checkpoint=start.resume)

    data = datasets(config, gang)
    tokenizer = model.load_tokenizer(config)
    network = trained.network(config, start.folder)
    if start.folder is not None:
        restore.method_state(network, config, start.folder)
    # Counting operations walks over all parameters at every micro-batch; nobody reads it.
    network.floating_point_ops = lambda *_, **__: 0

    checkpoints = Checkpoints(config, start, gang)
    clock = Clock(began, furthest=furthest)
    meter = Meter()
    reporter = Reporter(
        Progress(
            job_uid=config.job.uid,
            attempt=attempt.number,
            claim=start.claim.sequence,
            step=start.resume.step if start.resume else 0,
            total_steps=choices.total_steps,
            resumed_from=start.resume,
        ),
        layout,
        gang,
        clock,
        meter,
        newest=lambda: checkpoints.newest,
        trace_samples=os.environ.get(TRACE_SAMPLES) == "1",
    )
    reporter.update(phase="loading")
    watchdog = Watchdog(log, lambda: clock.step_seconds)
    finite = Finite(gradients=spec.training.precision != "fp16")
    endpoint = serve(reporter) if gang.leads else None

    @contextmanager
    def enter(phase: Literal["training", "evaluating", "saving"]) -> Iterator[None]:
        watchdog.patient(6.0 if phase == "saving" else 1.0)
        with reporter.phase(phase):
            yield
        watchdog.patient(1.0)

    signals = Signals(
        listener,
        Agreement(talk),
        Cadence(spec.checkpoint, step=start.resume.step if start.resume else 0),
        checkpoints,
        every_steps=spec.checkpoint.every_steps,
        enter=enter,
        before_saving=finite.settle,
        evaluation_of=lambda step: evaluation.of(step),  # noqa: PLW0108 - made below
    )
    collate = Collator(pad_token_id=tokenizer.pad_token_id, packing=choices.packing)
    evaluation = Evaluation(
        data.validation,
        collate,
        gang,
        every_steps=choices.evaluation_every_steps,
        batch_size=args.per_device_eval_batch_size,
        max_rows=spec.evaluation.max_rows,
        early_stopping=spec.evaluation.early_stopping,
        stop_now=signals.poll,
        beat=watchdog.beat,
        enter=enter,
        save_best=checkpoints.save_best,
        report=reporter.evaluated,
    )
    proof = EngineProof(config, attempt.world_size, listener, watchdog)
    trainer = trainer_class.of(transformers.Trainer)(
        parts=trainer_class.Parts(gang, data.batches, meter, finite, signals, evaluation),
        model=network,
        args=args,
        train_dataset=data.train,
        data_collator=collate,
        compute_loss_func=losses.training_loss(spec.training.label_smoothing),
        callbacks=[
            proof,
            watchdog,
            clock,
            reporter,
            evaluation,
            signals,
        ],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    evaluation.attach(trainer)
    proof.wrapped = lambda: trainer.model_wrapped
    transformers.set_seed(spec.training.seed + gang.rank)  # ranks draw different dropout masks

    # --- loop ----------------------------------------------------------------------------------
    evaluation.resume(start.folder)
    if start.folder is not None:  # what is saved before the next step goes on as that one did
        rng.load(start.folder, gang.rank)
        checkpoints.mark()
    done_before = (
        start.resume is not None
        and (start.resume.step >= choices.total_steps or evaluation.exhausted)
        and not evaluation.lacks(start.resume.step)
    )
    try:
        if not done_before:
            with masks.decided_on_host(choices.packing):
                loop(trainer, start.folder)
                finish(trainer)
    finally:
        watchdog.stop()
        clock.switch("saving")
        facts.know(goodput=clock.goodput(), peak_memory_bytes=peak_memory())
        facts.know(loss=reporter.last_loss)
        reached = trainer.state.global_step
        facts.know(step=start.resume.step if done_before and start.resume else int(reached))
        facts.know(checkpoint=checkpoints.newest, evaluation=evaluation.standing.latest)

    # --- end -----------------------------------------------------------------------------------
    checkpoints.close()
    gang.all(None)  # nobody leaves while another still writes
    if endpoint is not None:
        endpoint.close()
    if signals.stopping:
        reporter.update()
        return ending_of(Signalled())
    reporter.update(phase="done")
    if dist.is_initialized():
        dist.destroy_process_group()
    step = int(facts.values["step"])
    if step < choices.total_steps:
        stale = evaluation.standing.stale
        return Ending(
            int(ExitCode.DONE),
            f"stopped early at step {step} of {choices.total_steps}: no improvement in "
            f"{stale} evaluations",
        )
    return Ending(int(ExitCode.DONE), f"{step} steps done")


def loop(trainer: Any, folder: Path | None) -> None:
    """Train from a checkpoint, or from the beginning."""
    if folder is None:
        trainer.train()
        return
    with restore.plain(folder) as name:
        trainer.train(resume_from_checkpoint=str(name))


def finish(trainer: Any) -> None:
    """Evaluate and save the last step, unless all ranks agreed to stop."""
    parts = trainer.parts
    signals, evaluation = parts.signals, parts.evaluation
    if not signals.stopping:
        parts.finite.end(trainer.state.global_step)
    if not signals.stopping and evaluation.lacks(trainer.state.global_step):
        trainer.evaluate()
    signals.save(trainer, None if signals.stopping else "end")


def quiet() -> None:
    """Keep the libraries' remarks out of the log; their errors stay."""
    import logging
    import warnings

    transformers.logging.set_verbosity_error()
    for name in ("DeepSpeed", "deepspeed", "accelerate", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


def check_world(found: int, wanted: int) -> None:
    """Refuse to train with fewer ranks than were asked for: each would train alone."""
    if found != wanted:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            Problem(
                code="engine-not-in-force",
                message=f"{found} ranks found each other, and the attempt has {wanted}",
                fix="start the trainer as the operator does, or run the job with finetune run",
                field="spec.resources",
            ),
        )


def gangs(args: Any) -> tuple[Gang, Gang]:
    """Return this rank's view of all ranks, twice: for objects, and for the agreement on signals.

    Both use gloo, so that what is exchanged never waits for an accelerator. In the first one ranks
    wait for the writes of others, under the eye of the watchdog; in the second one nobody writes.
    """
    if args.world_size == 1:
        return Gang(), Gang()
    patience = (PATIENCE, arguments.COLLECTIVE_TIMEOUT)
    first, second = (
        dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)) for seconds in patience
    )
    rank, world = dist.get_rank(), dist.get_world_size()
    return Gang(rank, world, first), Gang(rank, world, second)


@dataclass(frozen=True)
class Data:
    """Prepared data and the order in which it is trained."""

    train: Any
    validation: Any
    batches: GlobalBatches


def datasets(config: StageConfig, gang: Gang) -> Data:
    """Open the prepared data.

    Raises:
        StageError: it is not there or not what preparation said (11).
    """
    choices, attempt = arguments.stage(config)
    training = config.job.spec.training
    folder = cache.folder_of(Layout(Path(config.mounts.workspace)).prepared, choices.fingerprint)
    try:
        rows = cache.PreparedDataset(folder / "train")
        held_out = choices.validation_sequences > 0
        validation = cache.PreparedDataset(folder / "validation") if held_out else None
    except FileNotFoundError as error:
        raise _not_prepared(str(error)) from error
    batches = GlobalBatches(
        samples=len(rows),
        seed=training.seed,
        global_batch=choices.global_batch_size,
        micro_batch=attempt.micro_batch_size,
        rank=gang.rank,
        world_size=gang.world_size,
        sampling=training.sampling,
        lengths=rows.sequence_lengths() if training.sampling == "GroupByLength" else None,
    )
    if len(rows) != choices.train_sequences or batches.steps != choices.steps_per_epoch:
        raise _not_prepared(
            f"{len(rows)} sequences make {batches.steps} steps an epoch; preparation said "
            f"{choices.train_sequences} and {choices.steps_per_epoch}"
        )
    return Data(rows, validation, batches)


def _not_prepared(message: str) -> StageError:
    return StageError(
        ExitCode.INVALID_DATA,
        Problem(
            code="prepared-data-missing",
            message=message,
            fix="run prepare again; nothing may be changed below prepared/ in the workspace",
        ),
    )


def furthest_step(layout: Layout, job_uid: str) -> int:
    """Return the furthest step that an earlier claim told; 0 when none did."""
    try:
        told = Progress.model_validate_json(layout.progress.read_bytes())
    except (OSError, ValueError):
        return 0
    return told.step if told.job_uid == job_uid else 0


def serve(reporter: Reporter) -> Any:
    """Serve progress and metrics where a port is given; None otherwise."""
    port = os.environ.get(PROGRESS_PORT)
    if not port:
        return None
    from finetune_trainer.callbacks.endpoint import Endpoint

    host = os.environ.get(PROGRESS_HOST, "")  # a pod is asked from outside
    try:
        return Endpoint(host, int(port), lambda: reporter.progress)
    except OSError as error:  # progress is never needed for correctness
        sys.stderr.write(f"progress is not served on port {port}: {error.strerror}\n")
        return None


class EngineProof(transformers.TrainerCallback):  # type: ignore[misc]
    """Before the first step: the engine that was asked for is the one that runs."""

    def __init__(
        self, config: StageConfig, world_size: int, listener: Listener, watchdog: Watchdog
    ) -> None:
        """Hold what was asked for."""
        self._spec, self._world_size = config.job.spec, world_size
        self._listener, self._watchdog = listener, watchdog
        self.wrapped: Callable[[], Any] = lambda: None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Look at the wrapped model; from here on signals are agreed on by all ranks."""
        parallelism.assert_in_force(self.wrapped(), self._spec, self._world_size)
        if self._spec.parallelism.deepspeed is None:
            optimizers.count_on_host(optimizer)
        self._listener.loaded()
        self._watchdog.start()
