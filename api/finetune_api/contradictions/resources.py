"""What a job takes of the cluster: nodes, accelerators, tolerations, the workspace."""

from __future__ import annotations

from finetune_api.condition import All, Compare, Either, Eq, Has, Not, StartsWith
from finetune_api.job.resources import QUOTA
from finetune_api.rule import Rule

ROWS: tuple[Rule, ...] = (
    Rule(
        code="min-nodes-above-nodes",
        field="resources.minNodes",
        when=Compare("resources.minNodes", ">", "resources.nodes"),
        message="minNodes must not be above nodes",
        fix="lower minNodes, or raise nodes",
        bad={"resources": {"nodes": 2, "minNodes": 3}},
        good={"resources": {"nodes": 2}},
    ),
    Rule(
        code="accelerator-needed",
        field="resources.accelerator.perNode",
        when=All(
            Eq("resources.accelerator.perNode", 0), Eq("resources.accelerator.device", "cuda")
        ),
        message="device cuda needs at least one accelerator a node",
        fix="set accelerator.perNode to 1 or more, or device: cpu",
        bad={"resources": {"accelerator": {"perNode": 0, "device": "cuda"}}},
        good={"resources": {"accelerator": {"perNode": 0, "device": "cpu"}}},
    ),
    Rule(
        code="resource-of-quota",
        field="resources.accelerator.resource",
        when=StartsWith("resources.accelerator.resource", QUOTA),
        message="a name that begins with requests. is how a quota speaks of a device",
        fix="write the name that nodes give it, such as nvidia.com/gpu",
        bad={"resources": {"accelerator": {"resource": "requests.nvidia.com/gpu"}}},
        good={"resources": {"accelerator": {"resource": "nvidia.com/gpu"}}},
    ),
    Rule(
        code="more-processes-than-accelerators",
        field="resources.processesPerNode",
        when=All(
            Eq("resources.accelerator.device", "cuda"),
            # Without any it is those that are needed.
            Not(Eq("resources.accelerator.perNode", 0)),
            Compare("resources.processesPerNode", ">", "resources.accelerator.perNode"),
        ),
        message="processesPerNode must not be above accelerator.perNode: each has its own",
        fix="leave processesPerNode out",
        bad={
            "resources": {
                "processesPerNode": 2,
                "accelerator": {"perNode": 1, "device": "cuda"},
            }
        },
        good={
            "resources": {
                "processesPerNode": 2,
                "accelerator": {"perNode": 2, "device": "cuda"},
            }
        },
    ),
    Rule(
        code="toleration-exists-value",
        field="@.value",
        each=("resources.tolerations",),
        when=All(Eq("@.operator", "Exists"), Has("@.value")),
        message="a toleration with operator Exists has no value",
        fix="leave value out, or use operator: Equal",
        bad={"resources": {"tolerations": [{"key": "gpu", "operator": "Exists", "value": "yes"}]}},
        good={"resources": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}},
    ),
    Rule(
        code="toleration-of-node-condition",
        field="@.key",
        each=("resources.tolerations",),
        when=StartsWith("@.key", "node.kubernetes.io/"),
        message="a job must not tolerate node.kubernetes.io/*: it would stay on a lost node",
        fix="leave it out; not-ready and unreachable nodes are tolerated for 60 seconds",
        bad={
            "resources": {
                "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists"}]
            }
        },
        good={"resources": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}},
    ),
    Rule(
        code="workspace-claim-or-size",
        field="workspace",
        when=All(
            Has("workspace.claimName"),
            Either(Has("workspace.size"), Has("workspace.storageClassName")),
        ),
        message="a workspace is an existing claim (claimName) or one that is made (size, "
        "storageClassName), not both",
        fix="leave claimName out, or size and storageClassName",
        bad={"workspace": {"claimName": "scratch", "size": "500Gi"}},
        good={"workspace": {"size": "500Gi", "storageClassName": "fast-rwx"}},
    ),
)
