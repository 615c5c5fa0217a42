"""``finetune-trainer``: one command a stage, one configuration file, one exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.names import CONFIG_PATH, Layout
from finetune_api.problem import Problem
from finetune_api.reports import TerminationReport
from finetune_api.resolved import Stage, StageConfig
from finetune_trainer import errors, termination
from finetune_trainer.errors import StageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; return its exit code (``finetune_api.exit_codes``)."""
    options = _parser().parse_args(arguments)
    stage: Stage = options.stage
    config: StageConfig | None = None
    try:
        config = read(options.config, stage, options.config_digest)
        if stage == "generate":
            report = _generate(config, options.prompts)
        else:
            report = _STAGES[stage](config, options.config)
    except BaseException as error:
        report = _failed(error, stage, config)
    for problem in report.problems:
        sys.stderr.write(errors.rendered(problem) + "\n")
    if report.exit_code and not report.problems:
        sys.stderr.write(f"{report.message}\n")
    try:
        termination.write(report, os.environ)
    except OSError as error:
        sys.stderr.write(f"the termination message could not be written: {error}\n")
    return report.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune-trainer", description=__doc__)
    parser.add_argument("stage", choices=get_args(Stage))
    parser.add_argument("--config", type=Path, default=Path(CONFIG_PATH), metavar="FILE")
    parser.add_argument(
        "--config-digest", metavar="SHA256", help="refuse a configuration with another digest"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="for generate: one prompt a line"
    )
    return parser


def read(path: Path, stage: Stage, digest: str | None) -> StageConfig:
    """Return the configuration of a stage.

    Raises:
        StageError: it cannot be read, is another stage's, or has another digest (10).
    """
    try:
        config = StageConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _refused(
            path, "config-unreadable", f"the configuration cannot be read: {error.strerror}"
        ) from error
    except ValidationError as error:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            *(
                Problem(
                    code="config-invalid",
                    message=f"{_dotted(detail['loc'])}: {detail['msg']}"[:1024],
                    fix="write the configuration with the same version of finetunejob",
                    field=_dotted(detail["loc"])[:512],
                    file=str(path),
                )
                for detail in error.errors()[:3]
            ),
        ) from error
    if config.stage != stage:
        raise _refused(
            path, "config-of-another-stage", f"it is the configuration of {config.stage}"
        )
    if digest is not None and digest != config.digest:
        raise _refused(
            path,
            "config-digest",
            f"its digest is {config.digest}, and this process was started for {digest}",
        )
    return config


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "."


def _refused(path: Path, code: str, message: str) -> StageError:
    return StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code=code,
            message=message,
            fix="start the stage with the configuration that was written for it",
            file=str(path),
        ),
    )


def _failed(error: BaseException, stage: Stage, config: StageConfig | None) -> TerminationReport:
    """Return the report of a stage that an exception ended; the traceback goes to the log."""
    ending = errors.ending_of(error, config)
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        ending = errors.Ending(error.code, f"exit {error.code}")
    attempt = config.attempt.number if config and config.attempt else 0
    if config is not None:
        log = Layout(Path(config.mounts.workspace)).logs / f"{stage}-{attempt}.log"
        errors.log_traceback(error, log)
    return TerminationReport(
        stage=stage,
        job_uid=config.job.uid if config else "",
        attempt=attempt,
        exit_code=int(ending.exit_code),
        message=ending.message[:512],
        problems=ending.problems[:3],
    )


def _train(config: StageConfig, file: Path) -> TerminationReport:
    from finetune_trainer import launch, supervisor

    if not launch.under_mpi(os.environ):
        return supervisor.run(config, file)
    ranks = launch.mpi_environment(os.environ)
    launch.apply(config)
    os.environ.update(ranks)
    from finetune_trainer import rank
    from finetune_trainer.listener import Listener

    listener = Listener()
    listener.install()
    with tempfile.TemporaryDirectory(prefix="finetune-ends-") as ends:
        number = int(ranks["RANK"])
        rank.run(config, listener, number, Path(ends))
        text = (Path(ends) / f"{number}.json").read_text(encoding="utf-8")
    report = TerminationReport.model_validate(json.loads(text))
    if number == 0:
        supervisor.leave(report, config)
    return report


def _prepare(config: StageConfig, _: Path) -> TerminationReport:
    from finetune_trainer import prepare

    report = prepare.run(config)
    memory = report.memory
    if memory is not None:
        memory = memory.model_copy(update={"parts": (), "message": ""})
    return TerminationReport(
        stage="prepare",
        job_uid=report.job_uid,
        exit_code=int(ExitCode.DONE),
        message=prepare.summary(report)[:512],
        problems=report.problems[:3],
        choices=report.choices,
        data=report.train,
        memory=memory,
    )


def _publish(config: StageConfig, _: Path) -> TerminationReport:
    from finetune_trainer import publish

    manifest = publish.run(config)
    return TerminationReport(
        stage="publish",
        job_uid=config.job.uid,
        exit_code=int(ExitCode.DONE),
        message=publish.summary(manifest)[:512],
        step=manifest.selected_step,
        checkpoint=manifest.selected_from,
        output_digest=publish.output_digest(manifest),
        evaluation=manifest.evaluation_after,
    )


def _generate(config: StageConfig, prompts: Path | None) -> TerminationReport:
    from finetune_trainer import generate

    answers = generate.run_stage(config, prompts)
    return TerminationReport(
        stage="generate",
        job_uid=config.job.uid,
        exit_code=int(ExitCode.DONE),
        message=f"{len(answers)} answers",
    )


_STAGES: dict[Stage, Callable[[StageConfig, Path], TerminationReport]] = {
    "prepare": _prepare,
    "train": _train,
    "publish": _publish,
}


if __name__ == "__main__":
    from finetune_trainer.start import leave_out

    leave_out()
    sys.exit(main())
