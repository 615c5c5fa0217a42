"""Names of labels, children and files: one place, so that two programs never disagree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_api import GROUP

MAX_JOB_NAME = 40
"""So that ``<job>-<attempt>-worker-<n>`` and its Services stay below 63 characters."""

LABEL_JOB = f"{GROUP}/job"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "finetune-operator"
ANNOTATION_DEFAULT_PROFILE = f"{GROUP}/is-default-profile"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY = "kueue.x-k8s.io/priority-class"

CONFIG_PATH = "/etc/finetune/job.json"
WORKSPACE_MOUNT = "/workspace"
VOLUMES_MOUNT = "/volumes"
TERMINATION_LOG = "/dev/termination-log"
PROGRESS_PORT = 8470

MANIFEST = "manifest.json"


def attempt_name(job: str, attempt: int) -> str:
    """Return the name of the training child of an attempt (counted from 1)."""
    return f"{job}-{attempt}"


def prepare_name(job: str) -> str:
    """Return the name of the preparation Job."""
    return f"{job}-prepare"


def publish_name(job: str) -> str:
    """Return the name of the publishing Job."""
    return f"{job}-publish"


def workspace_claim(job: str) -> str:
    """Return the name of a workspace claim that is made for a job."""
    return f"{job}-workspace"


def workspace_folder(job: str, uid: str) -> str:
    """Return the folder of one job in its workspace claim: ``<job>-<first 8 of the uid>``."""
    return f"{job}-{uid.replace('-', '')[:8]}"


@dataclass(frozen=True)
class Layout:
    """Paths of one job's folder. Nothing here touches the disk."""

    root: Path

    @property
    def prepared(self) -> Path:
        """Prepared data, one folder a fingerprint."""
        return self.root / "prepared"

    @property
    def model(self) -> Path:
        """Models that prepare fetched or initialised, one folder a digest."""
        return self.root / "model"

    @property
    def claims(self) -> Path:
        """One file a claim, numbered from 1."""
        return self.root / "claims"

    def claim(self, sequence: int) -> Path:
        """The file of one claim."""
        return self.claims / f"{sequence}.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a claim."""
        return self.root / "checkpoints"

    def checkpoint(self, sequence: int, step: int) -> Path:
        """The folder of one checkpoint; it exists if and only if its manifest verifies."""
        return self.checkpoints / str(sequence) / f"step-{step}"

    def best(self, sequence: int, step: int) -> Path:
        """The weights-only snapshot of the best evaluation that a claim has seen."""
        return self.checkpoints / str(sequence) / f"best-{step}"

    @property
    def output(self) -> Path:
        """The published model, when ``output.uri`` is absent."""
        return self.root / "output"

    @property
    def rejected(self) -> Path:
        """The model that did not meet its gate."""
        return self.root / "rejected"

    @property
    def logs(self) -> Path:
        """Logs of the processes, one file a stage and attempt."""
        return self.root / "logs"

    @property
    def reports(self) -> Path:
        """Reports of the stages."""
        return self.root / "reports"

    @property
    def prepare_report(self) -> Path:
        """What preparation found and chose (``PrepareReport``)."""
        return self.reports / "prepare.json"

    def end_report(self, sequence: int, node: int) -> Path:
        """What the supervisor of one node saw at the end of a claim (``TerminationReport``)."""
        return self.reports / str(sequence) / f"end-{node}.json"

    @property
    def progress(self) -> Path:
        """The newest ``Progress``, replaced as a whole."""
        return self.reports / "progress.json"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step or evaluation."""
        return self.reports / "metrics.jsonl"

    @property
    def publish_report(self) -> Path:
        """What publishing did (``CompletionManifest``)."""
        return self.reports / "publish.json"

    @property
    def status(self) -> Path:
        """The ledger of a job that runs without a cluster."""
        return self.root / "status.json"
