"""Environment variables of the trainer's processes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from finetune_api.names import PROGRESS_PORT, TERMINATION_LOG
from finetune_api.problem import Problem
from finetune_api.profile import Platform
from finetune_api.resolved import ResolvedJob, Stage
from finetune_api.source import parse_uri
from finetune_operator.render import Object
from finetune_operator.render.claims import data_sources, model_uris

TMP = "/tmp"  # noqa: S108 - an emptyDir of the pod, which nobody else sees
SCRATCH: Mapping[str, str] = {
    "HOME": f"{TMP}/home",
    "TMPDIR": TMP,
    "XDG_CACHE_HOME": f"{TMP}/cache",
    "HF_HOME": f"{TMP}/cache/huggingface",
    "TRITON_CACHE_DIR": f"{TMP}/cache/triton",
    "TORCH_EXTENSIONS_DIR": f"{TMP}/cache/torch-extensions",
    "TORCHINDUCTOR_CACHE_DIR": f"{TMP}/cache/inductor",
    "MPLCONFIGDIR": f"{TMP}/cache/matplotlib",
    "USER": "finetune",
    "LOGNAME": "finetune",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""The root file system is read-only and the user has no entry in /etc/passwd."""
SILENT: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
RANKS = frozenset(
    {
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "NODE_RANK",
        "PMI_RANK",
        "MPI_LOCALRANKID",
        "JOB_COMPLETION_INDEX",
    }
)
"""Who is who in the gang."""
DEVICES = frozenset(
    {
        "NVIDIA_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "GPU_DEVICE_ORDINAL",
        "ZE_AFFINITY_MASK",
        "HABANA_VISIBLE_DEVICES",
        "DS_ACCELERATOR",
        "ACCELERATE_USE_CPU",
    }
)
"""Accelerators beyond those that the pod was given."""
CODE = frozenset(
    {
        "PATH",
        "LD_PRELOAD",
        "LD_AUDIT",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONINSPECT",
        "PYTHONUSERBASE",
        "PYTHONSAFEPATH",
    }
)
"""What runs is fixed by the image's digest."""
SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "WANDB_API_KEY"})
"""Secrets are files, and only where a stage needs them."""
PREFIXES = (
    "FINETUNE_",
    "PET_",
    "TORCHELASTIC_",
    "KUBERNETES_",
    "OMPI_COMM_WORLD_",
    "MV2_COMM_WORLD_",
    "NVIDIA_MIG_",
)
DENIED = frozenset({*SCRATCH, *SILENT, *OFFLINE, *RANKS, *DEVICES, *CODE, *SECRETS})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def denied(name: str) -> bool:
    """Tell whether a profile must not set a variable."""
    return name.upper() in DENIED or name.upper().startswith(PREFIXES)


def problems(platform: Platform) -> list[Problem]:
    """Return one problem for each variable that a profile must not set; no pod ever gets one."""
    return [
        Problem(
            code="variable-not-allowed",
            field=f"spec.platform.environment[{index}].name",
            message=f"{variable.name} is set by the operator, or would reach beyond the pod's share",
            fix="remove it",
        )
        for index, variable in enumerate(platform.environment or [])
        if denied(variable.name)
    ]


def variables(
    job: ResolvedJob, stage: Stage, platform: Platform, gang: list[Object] | None = None
) -> list[Object]:
    """Return the variables of one container, the profile's first, each name once.

    ``gang`` holds what the backend alone knows: the node's rank and the address of the first node.
    """
    allowed: dict[str, Object] = {}
    for variable in platform.environment or []:
        if not denied(variable.name) and _NAME.fullmatch(variable.name):
            # Kubernetes would expand $(NAME); a doubled dollar is a dollar.
            value = variable.value.replace("$", "$$")
            allowed[variable.name] = {"name": variable.name, "value": value}
    offline = "0" if _goes_to_a_hub(job, stage, platform) else "1"
    fixed = {
        **SCRATCH,
        **SILENT,
        **dict.fromkeys(OFFLINE, offline),
        "FINETUNE_TERMINATION_LOG": TERMINATION_LOG,
    }
    if stage == "train":
        fixed["FINETUNE_PROGRESS_PORT"] = str(PROGRESS_PORT)
    if stage != "train" or not job.spec.resources.accelerator.per_node:
        # Images made for CUDA ask for all devices, and some runtimes give them to whoever asks.
        fixed["NVIDIA_VISIBLE_DEVICES"] = "void"
    own: list[Object] = [{"name": name, "value": value} for name, value in fixed.items()]
    uid: Object = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}
    own.append({"name": "FINETUNE_POD_UID", "valueFrom": uid})
    return [*allowed.values(), *own, *(gang or [])]


def _goes_to_a_hub(job: ResolvedJob, stage: Stage, platform: Platform) -> bool:
    """Preparation alone fetches, where the profile's network lets it and the job names a hub."""
    if stage != "prepare" or platform.network == "Offline":
        return False
    uris = [*model_uris(job.spec), *(source.uri for source in data_sources(job.spec))]
    return any(parse_uri(uri).scheme in ("hf", "modelscope") for uri in uris)
