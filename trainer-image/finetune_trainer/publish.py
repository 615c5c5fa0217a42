"""Publishing: choose, merge, verify, describe, and give the output its name at the very end."""

from __future__ import annotations

import gc
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.checkpoint import FileEntry
from finetune_api.document import digest_of
from finetune_api.exit_codes import ExitCode
from finetune_api.names import MANIFEST, Layout
from finetune_api.problem import Problem, Refused
from finetune_api.reports import CompletionManifest, PrepareReport, Verification
from finetune_api.resolved import StageConfig
from finetune_api.source import parse_uri
from finetune_trainer.checkpoint import durable
from finetune_trainer.errors import StageError
from finetune_trainer.export import card, merge, mergeable, report, verify
from finetune_trainer.export.clean import logits_of
from finetune_trainer.export.place import staged, unwritable
from finetune_trainer.export.prompts import Proof, proof
from finetune_trainer.export.select import Selected, select
from finetune_trainer.fetch import locate, tokenizer_files, tokenizer_folder
from finetune_trainer.hashing import sha256_of, sync_tree, write_json
from finetune_trainer.hub import TERMS
from finetune_trainer.model import attention, load_model_config, load_tokenizer, model_folder

ADAPTER = "adapter"
REPORT = "report.html"
TOKENIZER_SETTINGS = "tokenizer_config.json"


def run(config: StageConfig) -> CompletionManifest:
    """Publish the job's model and return its manifest.

    Publishing again what is published already changes nothing. Raises ``StageError``: the output
    exists (10), a checkpoint is unusable (15), the gate is not met (17; the model is kept under
    ``rejected/``), the proof failed (1).
    """
    target = output_folder(config)
    found = published(config, target)
    if found is not None:
        _leave_reports(config, found, target)
        return found
    chosen = select(config)
    gate = unmet_gate(config, chosen)
    if gate is not None:
        manifest, target = _reject(config, chosen)
        _leave_reports(config, manifest, target)
        raise StageError(ExitCode.GATE_NOT_MET, gate)
    manifest = _make(config, chosen, target)
    _leave_reports(config, manifest, target)
    return manifest


def _make(config: StageConfig, chosen: Selected, target: Path) -> CompletionManifest:
    """Build the output beside its place and give it its name."""
    layout = Layout(Path(config.mounts.workspace))
    rejected = target.is_relative_to(layout.rejected)
    own = target.relative_to(layout.root).as_posix() if target.is_relative_to(layout.root) else ""
    uri = own if rejected else config.job.spec.output.uri or own
    with staged(target, config.job.uid, uri) as staging:
        manifest = build(config, chosen, staging, uri)
        commit(staging, target)
    return manifest


def _reject(config: StageConfig, chosen: Selected) -> tuple[CompletionManifest, Path]:
    """Keep a model that does not meet its gate under ``rejected/``, one folder a checkpoint."""
    target = Layout(Path(config.mounts.workspace)).rejected / f"step-{chosen.manifest.step}"
    target = target.with_name(f"{target.name}-{chosen.ref.digest.removeprefix('sha256:')[:8]}")
    found = published(config, target)
    return found or _make(config, chosen, target), target


# --- where to ------------------------------------------------------------------------------------


def output_folder(config: StageConfig) -> Path:
    """Return the folder of the output: in a claim, or in the job's workspace."""
    uri = config.job.spec.output.uri
    if uri is None:
        return Layout(Path(config.mounts.workspace)).output
    if not parse_uri(uri).path:
        raise _refused(
            "output-without-folder",
            f"{uri} names a claim and no folder in it",
            f"use {uri.rstrip('/')}/{config.job.name}",
        )
    return locate(config, uri)


def check_output(config: StageConfig) -> list[Problem]:
    """Return what would keep publishing from working, for preparation to tell early."""
    problems: list[Problem] = []
    spec = config.job.spec
    try:
        target = output_folder(config)
        if published(config, target) is None and spec.output.uri is not None:
            closed = unwritable(target, config.job.uid, spec.output.uri)
            problems += [closed] if closed else []
    except StageError as error:
        problems += error.problems
    unmergeable = mergeable.refusal(config)
    if unmergeable is not None:
        problems.append(unmergeable)
    if spec.evaluation.gate and config.choices and not config.choices.validation_sequences:
        problems.append(_unmeasured(spec.evaluation.gate.metric))
    return problems


def published(config: StageConfig, target: Path) -> CompletionManifest | None:
    """Return the manifest of an output that this very job published; None where there is nothing.

    Raises ``StageError`` when the folder holds anything else: it is never overwritten.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    uri = config.job.spec.output.uri or str(target)
    try:
        data = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        manifest = CompletionManifest.model_validate(data)
    except (OSError, ValueError):
        manifest = None
    if manifest is None or manifest.job_uid != config.job.uid:
        whose = f"job {manifest.job} ({manifest.job_uid})" if manifest else "something else"
        raise _refused(
            "output-exists",
            f"{uri} exists already and belongs to {whose}; an output is never overwritten",
            "choose another spec.output.uri, or remove the folder",
        )
    for entry in manifest.files:
        path = target / entry.path
        if not path.is_file() or path.stat().st_size != entry.size:
            raise _refused("output-damaged", f"{uri}: {entry.path} is not as published", _REMOVE)
        if sha256_of(path) != entry.sha256:
            raise _refused("output-damaged", f"{uri}: {entry.path} was changed", _REMOVE)
    return manifest


_REMOVE = "remove the folder and publish again"


def commit(staging: Path, target: Path) -> None:
    """Flush everything and give the output its name; nothing with that name is replaced."""
    sync_tree(staging)
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists():
        raise _refused("output-exists", f"{target.name} appeared meanwhile", "publish again")
    staging.rename(target)
    durable.flush_folder(target.parent)


# --- what ----------------------------------------------------------------------------------------


def build(config: StageConfig, chosen: Selected, folder: Path, uri: str) -> CompletionManifest:
    """Write the model, prove it, describe it; returns the manifest, which is written last."""
    spec = config.job.spec
    tokenizer = load_tokenizer(config)
    material = proof(config, tokenizer)
    write_tokenizer(config, tokenizer, folder)
    verification = write_model(config, chosen, material, folder)
    assert config.choices is not None
    manifest = CompletionManifest(
        job=config.job.name,
        job_uid=config.job.uid,
        uri=uri,
        base_model=spec.model.uri,
        base_digest=config.choices.model_digest,
        method=spec.method.kind,
        objective=spec.objective.kind,
        merged=spec.method.kind != "full" and spec.output.merge,
        selected_step=chosen.manifest.step,
        selected_from=chosen.ref,
        steps=chosen.last_step,
        tokens=_tokens_per_step(config) * chosen.last_step,
        evaluation_before=chosen.before,
        evaluation_after=chosen.after,
        verification=verification,
        files=(),
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    (folder / "README.md").write_text(card.render(config, manifest), encoding="utf-8")
    page = report.render(manifest, report.read_curves(Layout(Path(config.mounts.workspace))))
    (folder / REPORT).write_text(page, encoding="utf-8")
    manifest = manifest.model_copy(update={"files": _entries(folder)})
    write_json(folder / MANIFEST, manifest.to_json())
    return manifest


def write_model(
    config: StageConfig, chosen: Selected, material: Proof, folder: Path
) -> Verification:
    """Write weights to ``folder`` and prove them in a clean process.

    In order: reference logits of what was trained; merge; the same logits from the merged model;
    rounding to the base's type; the files compared bit by bit; logits from the files alone. An
    adapter that cannot be merged is refused (10) as preparation does.
    """
    unmergeable = mergeable.refusal(config)
    if unmergeable is not None:
        raise StageError(ExitCode.INVALID_CONFIG, unmergeable)
    spec, base = config.job.spec, model_folder(config)
    working, stored = merge.working_dtype(config), merge.stored_dtype(base)
    model = merge.load_trained(config, chosen.folder, working)
    reference = logits_of(model, material.inputs)
    whole = spec.method.kind == "full" or spec.output.merge
    if whole:
        if spec.method.kind != "full":
            model = merge.merge(model)
            verify.check_merge(reference, logits_of(model, material.inputs), working)
            merge.copy_adapter(config, chosen.folder, folder / ADAPTER)
        merge.save(model, folder, stored, material.end_tokens)
    else:
        merge.copy_adapter(config, chosen.folder, folder)
        settings = model.get_base_model().generation_config
        merge.settled(settings, material.end_tokens).save_pretrained(folder)
    del model
    gc.collect()  # the clean process needs the room
    return verify.check_published(
        folder,
        reference,
        material,
        dtype=stored if whole else working,
        working=working,
        attention=attention(config, load_model_config(config)),
        base=None if whole else base,
    )


def write_tokenizer(config: StageConfig, tokenizer: Any, folder: Path) -> None:
    """Copy the base's tokenizer and terms; the template that was trained with goes beside them."""
    from finetune_trainer.data.template import template_text

    source = tokenizer_folder(config, model_folder(config))
    for path in tokenizer_files(source):
        shutil.copyfile(path, folder / path.name)
    for pattern in TERMS:
        for path in model_folder(config).glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    _name_class(tokenizer, folder / TOKENIZER_SETTINGS)
    chosen = config.job.spec.dataset.chat_template
    if chosen is None:
        return
    try:
        text, _ = template_text(chosen, tokenizer)
    except Refused:  # text data needs none
        return
    settings_file = folder / TOKENIZER_SETTINGS
    if settings_file.is_file():
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        settings.pop("chat_template", None)
        _write_settings(settings_file, settings)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _name_class(tokenizer: Any, path: Path) -> None:
    """Name the tokenizer's class where its settings do not: beside an adapter lies no config.json.

    Without either the library takes its general class, which knows no end token of a GPT-2.
    """
    kind = type(tokenizer)
    if kind.__name__ == "TokenizersBackend" or not kind.__module__.startswith("transformers."):
        return  # the general class, or code of the model that its settings name
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not settings.get("tokenizer_class"):
        _write_settings(path, {**settings, "tokenizer_class": kind.__name__})


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def unmet_gate(config: StageConfig, chosen: Selected) -> Problem | None:
    """Return the problem of a model that does not meet its gate; None: it does, or there is none."""
    gate = config.job.spec.evaluation.gate
    if gate is None:
        return None
    before, after = chosen.before.get(gate.metric), chosen.after.get(gate.metric)
    if before is None or after is None:
        return _unmeasured(gate.metric)
    falls = gate.metric in {"loss", "perplexity"}
    gained = before - after if falls else after - before
    if gained >= gate.must_improve_by and gained > 0:
        return None
    return Problem(
        code="gate-not-met",
        message=f"evaluation {gate.metric} went from {before:.4g} to {after:.4g}; the gate asks for "
        f"an improvement by {gate.must_improve_by:g}"
        + (" at least" if gate.must_improve_by else ""),
        fix="look at the curve in report.html; the model is kept under rejected/ in the workspace",
        field="spec.evaluation.gate",
    )


def _unmeasured(metric: str) -> Problem:
    return Problem(
        code="gate-not-measured",
        message=f"the gate asks for {metric}, and it was not measured before and after training",
        fix="set dataset.validation, or remove evaluation.gate",
        field="spec.evaluation.gate",
    )


def _entries(folder: Path) -> tuple[FileEntry, ...]:
    """Return every file of the output with size and hash."""
    return tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=sha256_of(path),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    )


def output_digest(manifest: CompletionManifest) -> str:
    """Return the digest of an output, for the termination report."""
    return digest_of(manifest.to_json())


def summary(manifest: CompletionManifest) -> str:
    """Return a finished publication in one line, for conditions and consoles."""
    proof = manifest.verification
    text = f"{manifest.uri}  (step {manifest.selected_step}"
    if manifest.merged:
        text += ", merged"
    if proof is not None:
        text += f", logits checked on {proof.prompts} prompts, max diff {proof.max_difference:.0e}"
        text += "" if proof.stops else "; generation did not stop by itself"
    return text + ")"


def _tokens_per_step(config: StageConfig) -> int:
    """Return the tokens of a step that preparation counted; 0 where its report is gone."""
    path = Layout(Path(config.mounts.workspace)).prepare_report
    try:
        return PrepareReport.model_validate_json(path.read_bytes()).tokens_per_step
    except (OSError, ValueError):
        return 0


def _leave_reports(config: StageConfig, manifest: CompletionManifest, target: Path) -> None:
    """Leave the manifest and the page in the job's reports too."""
    layout = Layout(Path(config.mounts.workspace))
    write_json(layout.publish_report, manifest.to_json())
    if (target / REPORT).is_file():
        durable.replace(layout.reports / REPORT, (target / REPORT).read_bytes())


def _refused(code: str, message: str, fix: str) -> StageError:
    """Return the error of an output that cannot be written as the job says."""
    problem = Problem(code=code, message=message[:1024], fix=fix, field="spec.output.uri")
    return StageError(ExitCode.INVALID_CONFIG, problem)
