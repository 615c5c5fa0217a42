"""Reasons of conditions and Events beside the failure classes: what they mean, and what to do.

A job that is not accepted has the code of its first problem as reason: ``over-limit`` is
``OverLimit``.
"""

from __future__ import annotations

from collections.abc import Mapping

NORMAL: Mapping[str, str] = {
    "Accepted": "the job was resolved; what it means does not change any more",
    "Preparing": "the preparation reads model and data",
    "DataReady": "data and model are prepared, and the job fits",
    "Queued": "the attempt waits to be admitted by its queue",
    "Admitted": "the queue has let the attempt in",
    "Starting": "the attempt is made, not all of its pods run yet",
    "Training": "all pods of the attempt run",
    "Stopping": "the attempt was told to save and end; the message says why",
    "Restarting": "the next attempt is made",
    "Recovered": "an attempt after the first runs; the message says from which step",
    "NotRecovering": "nothing has to be made up for",
    "BackOff": "the next try waits a little, longer after each in a row that came to nothing",
    "WaitingForLastAttempt": "pods of an earlier try are still ending",
    "WaitingForOtherRestarts": "as many jobs as the operator allows are starting again",
    "Trained": "the last step was reached",
    "Publishing": "the model is merged, verified and written",
    "Published": "the model is where the message says",
    "Succeeded": "the job has ended with success",
    "Suspending": "the job was suspended and its pods save what they have",
    "Suspended": "the job was suspended; the message says what is kept",
    "NotSuspended": "the job may run",
    "Pending": "nothing was started yet",
    "WorkspaceReused": "the claim holds the folders of earlier jobs of this name",
    "NothingToDo": "there is nothing to do before something changes",
}
"""Nobody has to do anything."""

ACTION: Mapping[str, tuple[str, str]] = {
    "WaitingForRoom": (
        "no node has room for a pod; the message is the scheduler's",
        "wait, ask for less, or look for what holds the nodes",
    ),
    "NoNodeFits": (
        "every node has other labels than the pods ask for, or a taint that they do not tolerate",
        "correct resources.nodeSelector or resources.tolerations; where an autoscaler brings such"
        " nodes, wait",
    ),
    "VolumeInOtherZone": (
        "the volume of a claim is in a zone in which no node fits",
        "fix the zones in the profile (platform.zones) and delete the claim, or add nodes there",
    ),
    "Gated": ("a scheduling gate holds the pods", "whoever set the gate removes it"),
    "SuspendedByOthers": (
        "somebody else has suspended the attempt, or set its size to 0",
        "whoever did that takes it back, or deletes the child",
    ),
    "QuotaExceeded": (
        "a ResourceQuota of the namespace is used up",
        "free some of it, ask for less, or have it raised",
    ),
    "ImagePullFailed": (
        "the trainer's image cannot be pulled",
        "correct platform.images.trainer or its pull secret",
    ),
    "WorkspaceUnusable": (
        "the job's folder cannot be made in the workspace",
        "let the pods' group write to the root of the volume",
    ),
    "ContainerConfigInvalid": (
        "the container cannot be configured",
        "mend what the message names",
    ),
    "ContainerNotCreated": ("the node cannot make the container", "look at the node"),
    "ClaimMissing": ("a claim that the job names does not exist", "create it"),
    "ClaimNotBound": (
        "a claim has no volume yet",
        "look at its storage class, or make a volume for it",
    ),
    "SecretMissing": ("a secret that the job names does not exist", "create it"),
    "VolumeInUse": (
        "a volume is attached to another node and can be used by one only",
        "wait until its pods are gone, or use a claim with ReadWriteMany",
    ),
    "VolumeNotMounted": ("a volume cannot be mounted", "mend what the message names"),
    "ResourcesNotNamed": (
        "a ResourceQuota wants requests or limits that the pods do not name",
        "name them in resources, resources.preparation and resources.publishing, of the job or the"
        " profile's defaults; or add a LimitRange to the namespace",
    ),
    "AdmissionRefused": (
        "a policy of the cluster refuses the pods",
        "follow the message, or ask who runs the cluster",
    ),
    "PodsNotCreated": ("the pods cannot be made", "mend what the message names"),
    "CreationForbidden": (
        "the operator may not create what the job needs",
        "grant the right, or change the policy that the message names",
    ),
    "CreationRefused": (
        "the API server refuses what the job needs",
        "mend what the message names",
    ),
    "RightMissing": ("the operator may not read what it needs", "grant the right"),
    "NameTaken": (
        "an object that is not the job's has the name that is needed",
        "remove it, or give the job another name",
    ),
    "BackendMissing": (
        "the cluster has not the kind that spec.backend names",
        "install it, and the job goes on; or leave spec.backend out",
    ),
    "WorkspaceMissing": ("the workspace's claim does not exist", "create it"),
    "WorkspaceNotShared": (
        "the workspace can be used by one node only, and the job has several",
        "name a claim with ReadWriteMany",
    ),
    "WorkspaceTaken": (
        "a claim of the name exists that was not made for a job",
        "name it in workspace.claimName, or remove it",
    ),
    "WorkspaceEnding": ("the workspace's claim is being removed", "wait, or make a new one"),
    "WorkspaceLost": (
        "the volume of the workspace does not exist any more",
        "make the job again; what was saved there is gone",
    ),
    "WorkspaceNotGrown": (
        "the cluster does not let the claim grow to workspace.size; the job goes on",
        "use a storage class with allowVolumeExpansion",
    ),
    "VolumeHeldByLostNode": (
        "an attempt gives no sign and its volume can be used by one node only",
        "once its node is known to be off, remove its pods by force",
    ),
    "PreparationMissing": (
        "somebody took what preparation chose out of the job's status",
        "create the job again",
    ),
    "ResolvedJobLost": (
        "the ConfigMap of the resolved job is gone or was exchanged",
        "bring it back from a copy, or remove what took its place",
    ),
    "ProfileMissing": (
        "the profile with which the job was accepted is gone or not valid",
        "bring it back",
    ),
    "ChangeRefused": (
        "a change of the object has no effect; the message says why",
        "change it again",
    ),
    "StatusUnreadable": (
        "status was written by something else, so nothing is done",
        "restore it, or create the job again",
    ),
}
"""Somebody may have something to do: meaning, and what."""
