"""The chart as helm renders it, without a cluster."""

import csv
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from finetune_api.crd import files
from finetune_api.reasons import ACTION
from finetune_operator import metrics
from finetune_operator.job_counts import NOT_ACCEPTED
from finetune_operator.render.indexed_job import INDEX_ANNOTATION
from finetune_operator.render.pytorch_job import INDEX_LABEL
from finetune_operator.settings import PREFIX, Settings
from harness import chart
from harness.binaries import KUBE_SCORE, binary
from harness.chart import CHART, GOLDEN, ROOT, HelmError, of_kind, rendered
from harness.pod_security import violations
from harness.rendered import templates

RENDERS = ROOT / "tests/unit/finetune_operator/golden"
CASES = sorted(path.name.partition(".")[0] for path in GOLDEN.glob("*.values.yaml"))


def golden(case):
    return chart.objects((GOLDEN / f"{case}.render.yaml").read_text())


def operator_pod(bodies):
    (deployment,) = of_kind(bodies, "Deployment")
    return deployment["spec"]["template"]


def environment(bodies):
    (container,) = operator_pod(bodies)["spec"]["containers"]
    return {one["name"]: one.get("value") for one in container["env"]}


def test_the_renders_are_as_checked_in():
    """After a change that is meant: ``make chart``."""
    assert CASES == ["bare", "cluster-wide", "everything", "namespaced"]
    for path, text in chart.golden_files().items():
        assert path.read_text() == text, f"{path.name} is not current; fix: make chart"


def test_the_table_of_values_is_that_of_the_schema_and_the_defaults():
    assert (CHART / "README.md").read_text() == chart.readme(), "fix: make chart"


def test_helm_lint_has_nothing_to_say():
    said = chart.helm("lint", "--strict", str(CHART), values=chart.IMAGES, kubeconfig=None)
    assert "1 chart(s) linted, 0 chart(s) failed" in said
    assert re.findall(r"\[(?:WARNING|ERROR)\].*", said) == []


NOT_FOR_US = {
    "container-image-pull-policy": "an image by digest, or by a version, is what it was",
    "deployment-replicas": "one operator at a time",
    "deployment-strategy": "one operator at a time: Recreate",
}


EXPECTED = {
    # networkPolicy.enabled is false
    "bare": ["The pod does not have a matching NetworkPolicy"],
    # podSecurity leaves the ids to the platform
    "everything": [
        "(operator) The container is running with a low user ID",
        "(operator) The container running with a low group ID",
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_kube_score_has_nothing_to_say(case):
    """No limit on processor time: it would only slow the reaction to the end of a pod."""
    command = [str(binary(KUBE_SCORE)), "score", "--kubernetes-version", "v1.34"]
    command += ["--ignore-container-cpu-limit", "--output-format", "ci"]
    for name in NOT_FOR_US:
        command += ["--ignore-test", name]
    done = subprocess.run(
        [*command, str(GOLDEN / f"{case}.render.yaml")], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("[OK]")]
    found = [line for line in lines if line.startswith(("[CRITICAL]", "[WARNING]"))]
    words = [line.rpartition(": ")[2] for line in found]
    assert words == EXPECTED.get(case, [])


def test_what_kube_score_is_not_asked_exists():
    command = [str(binary(KUBE_SCORE)), "list"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert set(NOT_FOR_US) <= {row[0] for row in csv.reader(said.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_the_operators_pod_passes_restricted_pod_security_on_a_read_only_root(case):
    pod = operator_pod(golden(case))
    assert violations(pod) == []
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert [(v["name"], v["emptyDir"]) for v in pod["spec"]["volumes"]] == [
        ("tmp", {"sizeLimit": "64Mi"})
    ]
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


@pytest.mark.parametrize("case", CASES)
def test_there_is_never_more_than_one_operator(case):
    (deployment,) = of_kind(golden(case), "Deployment")
    assert deployment["spec"]["replicas"] == (0 if case == "everything" else 1)
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_every_variable_is_a_setting_and_every_setting_can_be_said():
    """But for those that the chart fixes: where it listens, and how the watch is narrowed."""
    schema = chart.schema()["properties"]["settings"]["properties"]
    most = {
        name: node.get("maximum", (node.get("enum") or [True])[-1]) for name, node in schema.items()
    }
    said = environment(rendered({"settings": most, "watch": {"namespaces": ["a", "b"]}}))
    names = {name.removeprefix(PREFIX).lower() for name in said if name.startswith(PREFIX)}
    assert names == set(Settings.model_fields) - {"probe_address", "probe_port"}
    values = {
        name.removeprefix(PREFIX).lower(): text
        for name, text in said.items()
        if name.startswith(PREFIX) and name != f"{PREFIX}NAMESPACES"
    }
    read = Settings.model_validate(values)  # as the operator reads its variables
    assert read.workers == 64
    assert read.looks_per_second == 100000.0
    assert read.log_level == "ERROR"
    assert said[f"{PREFIX}NAMESPACES"] == "a,b"


def test_the_bounds_of_the_settings_are_the_operators_own():
    theirs = Settings.model_json_schema()["properties"]
    for name, node in chart.schema()["properties"]["settings"]["properties"].items():
        other = theirs[name]
        assert node["type"] == other["type"], name
        assert node.get("minimum") == other.get("minimum"), name
        assert node.get("exclusiveMinimum") == other.get("exclusiveMinimum"), name
        if "maximum" in other:
            assert node["maximum"] == other["maximum"], name
        default = other["default"]
        shown = str(default).lower() if default is True else default
        shown = f"{default:g}" if isinstance(default, float) else shown
        assert f"({shown})" in node["description"], name


def test_the_chart_has_the_version_of_the_package():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (package, package)


def test_the_definitions_are_those_of_the_repository_and_stay():
    found = of_kind(rendered(), "CustomResourceDefinition")
    ours = [yaml.safe_load(text) for text in files().values()]
    assert sorted(d["metadata"]["name"] for d in found) == [
        "finetunejobs.finetune.dev",
        "finetuneprofiles.finetune.dev",
    ]
    assert {d["metadata"]["name"]: d["spec"] for d in found} == {
        d["metadata"]["name"]: d["spec"] for d in ours
    }
    for definition in found:
        assert definition["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for definition in of_kind(rendered({"crds": {"keep": False}}), "CustomResourceDefinition"):
        assert "annotations" not in definition["metadata"]
    assert of_kind(rendered({"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def profile(**spec):
    return {"profiles": [{"name": "a", "spec": spec}]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"replicas": 2}, "at '/replicas': value must be one of 0, 1"),
        ({"watch": {"namespaces": "a"}}, "at '/watch/namespaces': got string, want array"),
        ({"watch": {"namespaces": ["A"]}}, "at '/watch/namespaces/0': 'A' does not match pattern"),
        (
            {"watch": {"namespaces": ["a", "a"]}},
            "at '/watch/namespaces': items at 0 and 1 are equal",
        ),
        ({"crds": {"install": True}}, "at '/crds': additional properties 'install' not allowed"),
        ({"settings": {"workers": 0}}, "at '/settings/workers': minimum: got 0, want 1"),
        ({"settings": {"logLevel": "LOUD"}}, "at '/settings/logLevel': value must be one of"),
        ({"image": {"digest": "sha256:abc"}}, "at '/image/digest': 'sha256:abc' does not match"),
        ({"image": {"repository": "Registry/X"}}, "at '/image/repository': 'Registry/X' does not"),
        ({"trainerImage": "trainer"}, "at '/trainerImage': 'trainer' does not match pattern"),
        ({"podSecurity": {"runAsUser": 0}}, "at '/podSecurity/runAsUser': minimum: got 0, want 1"),
        ({"podSecurity": {"privileged": True}}, "additional properties 'privileged' not allowed"),
        ({"networkPolicy": {"apiServerPorts": []}}, "minItems: got 0, want 1"),
        ({"metrics": {"serviceMonitor": {"interval": 30}}}, "got number, want string"),
        ({"resources": {"limits": {"memory": "much"}}}, "'much' does not match pattern"),
        (
            {"tolerations": [{"effect": "Never"}]},
            "at '/tolerations/0/effect': value must be one of",
        ),
        ({"profiles": [{"spec": {}}]}, "at '/profiles/0': missing property 'name'"),
        (profile(limits={"acelerators": 8}), "additional properties 'acelerators' not allowed"),
        (
            profile(limits={"nodes": 0}),
            "at '/profiles/0/spec/limits/nodes': minimum: got 0, want 1",
        ),
        (profile(defaults={"training": {"lr": 1}}), "additional properties 'lr' not allowed"),
        (profile(allow={"methods": ["magic"]}), "at '/profiles/0/spec/allow/methods/0'"),
        (profile(platform={"images": {"trainer": "x:1"}}), "does not match pattern"),
    ],
)
def test_a_wrong_value_is_refused_and_named(values, said):
    with pytest.raises(HelmError) as refused:
        rendered(values)
    assert said in str(refused.value)


def test_an_older_kubernetes_is_refused():
    with pytest.raises(HelmError) as refused:
        chart.render({}, "--kube-version", "1.28.9")
    assert "chart requires kubeVersion: >=1.29.0-0" in str(refused.value)


PINNED = {"images": {"trainer": "r/t@sha256:" + "c" * 64}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {}}, "image.repository is empty: no image of the operator is published."),
        ({"trainerImage": ""}, "trainerImage is empty and there is no profile that names one"),
        (
            {"trainerImage": "", **profile(limits={"nodes": 1})},
            "trainerImage is empty and the profiles a name none either",
        ),
        (
            {"serviceAccount": {"create": False}},
            "serviceAccount.create is false and serviceAccount.name is empty",
        ),
        (
            {"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor.enabled needs metrics.enabled",
        ),
        (
            {"metrics": {"prometheusRule": {"enabled": True}}},
            "metrics.prometheusRule.enabled needs metrics.serviceMonitor.enabled",
        ),
        (
            {"metrics": {"podMonitor": {"labels": {"helm.sh/chart": "x"}}}},
            "metrics.podMonitor.labels: the chart sets helm.sh/chart itself. Leave it out.",
        ),
        (
            {"podLabels": {"a": "b", "app.kubernetes.io/name": "x"}},
            "podLabels: the chart sets app.kubernetes.io/name itself. Leave it out.",
        ),
        (
            {"podAnnotations": {"kubectl.kubernetes.io/default-container": "x"}},
            "podAnnotations: the chart sets kubectl.kubernetes.io/default-container itself.",
        ),
        (
            {"metrics": {"serviceMonitor": {"labels": {"helm.sh/chart": "x"}}}},
            "metrics.serviceMonitor.labels: the chart sets helm.sh/chart itself. Leave it out.",
        ),
        (
            {"profiles": [{"name": "a", "labels": {"helm.sh/chart": "x"}, "spec": {}}]},
            "labels of profile a: the chart sets helm.sh/chart itself. Leave it out.",
        ),
        (
            {"profiles": [{"name": "a", "spec": {}}, {"name": "a", "spec": {}}]},
            "profiles: two are named a. Give each a name of its own.",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_what_to_do(values, said):
    with pytest.raises(HelmError) as refused:
        rendered(values)
    assert said in str(refused.value)


KNOWS_ITS_KINDS = ("--api-versions", "v1/Namespace")
"""As whoever renders with the kinds of a cluster says it, here of one without definitions."""


def test_profiles_wait_for_their_definition_unless_that_is_said_to_come_first():
    values = profile(limits={"nodes": 1})
    with pytest.raises(HelmError) as refused:
        chart.render(values, *KNOWS_ITS_KINDS)
    assert "this cluster does not know FineTuneProfile yet" in str(refused.value)
    unchecked = chart.render({**values, "checks": {"definitions": False}}, *KNOWS_ITS_KINDS)
    (made,) = of_kind(chart.objects(unchecked), "FineTuneProfile")
    assert made["spec"] == {"limits": {"nodes": 1}}


@pytest.mark.parametrize("both", [True, False])
def test_a_tag_that_a_digest_hides_is_told(both, tmp_path):
    """Helm shows notes to a cluster alone, so they are made part of an object here."""
    copied = Path(shutil.copytree(chart.CHART, tmp_path / "chart"))
    (copied / "templates" / "NOTES.txt").rename(copied / "notes")
    said = 'apiVersion: v1\nkind: Told\nnotes: {{ tpl (.Files.Get "notes") . | toJson }}\n'
    (copied / "templates" / "told.yaml").write_text(said)
    image = {**chart.IMAGES["image"], "digest": "sha256:" + "a" * 64}
    values = {**chart.IMAGES, "image": {**image, "tag": "0.2.0" if both else ""}}
    command = ["template", "x", str(copied), "--kube-version", chart.VERSION_OF_CLUSTER]
    (told,) = of_kind(chart.objects(chart.helm(*command, values=values, kubeconfig=None)), "Told")
    assert "Wait until it is ready" in told["notes"]
    assert ("image.tag (0.2.0) has no effect: image.digest wins" in told["notes"]) is both


def test_no_trainer_image_is_needed_where_every_profile_names_one():
    said = environment(rendered({"trainerImage": "", **profile(platform=PINNED)}))
    assert f"{PREFIX}TRAINER_IMAGE" not in said


def test_what_the_pod_gets_from_the_values():
    bodies = golden("everything")
    pod = operator_pod(bodies)
    (container,) = pod["spec"]["containers"]
    assert container["image"] == (
        "registry.example:5000/platform/finetune-operator@sha256:" + "a" * 64
    )
    assert pod["spec"]["serviceAccountName"] == "trainer-of-models"
    assert "runAsUser" not in pod["spec"]["securityContext"]
    assert environment(bodies) == {
        "POD_NAME": None,
        "FINETUNE_OPERATOR_WORKERS": "16",
        "FINETUNE_OPERATOR_LOOKS_PER_SECOND": "12.5",
        "FINETUNE_OPERATOR_RESTARTS_AT_ONCE": "100000",
        "FINETUNE_OPERATOR_PROGRESS_FROM_LOGS": "false",
        "FINETUNE_OPERATOR_LOG_LEVEL": "DEBUG",
    }
    (made,) = of_kind(bodies, "FineTuneProfile")
    assert made["metadata"]["annotations"] == {"finetune.dev/is-default-profile": "true"}
    assert made["spec"]["platform"]["podSecurity"] == {"runAsUser": 1000660000, "fsGroup": 0}
    assert made["spec"]["limits"]["accelerators"] == 1000000


def test_the_policy_lets_through_what_the_operator_needs_and_nothing_else():
    (policy,) = of_kind(golden("cluster-wide"), "NetworkPolicy")
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["podSelector"]["matchLabels"].items() <= (
        operator_pod(golden("cluster-wide"))["metadata"]["labels"].items()
    )
    assert [
        sorted({(p["protocol"], p["port"]) for p in rule["ports"]}) for rule in spec["egress"]
    ] == [
        [("TCP", 53), ("UDP", 53)],
        [("TCP", 443), ("TCP", 6443), ("TCP", 8443), ("TCP", 16443)],
        [("TCP", 8470)],
    ]
    assert spec["ingress"] == [
        {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 8080}]}
    ]
    (peer,) = spec["egress"][2]["to"]
    for backend in ("indexed-job", "pytorch-job"):
        made = json.loads((RENDERS / f"{backend}.json").read_text())
        ((pod, _),) = templates(made)
        assert peer["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        (trainer,) = pod["spec"]["containers"]
        assert {"name": "progress", "containerPort": 8470, "protocol": "TCP"} in trainer["ports"]
    closed = {"networkPolicy": {"metricsFrom": []}}
    (policy,) = of_kind(rendered(closed), "NetworkPolicy")
    assert policy["spec"]["ingress"] == []


def test_the_probes_ask_where_the_operator_answers():
    (container,) = operator_pod(golden("cluster-wide"))["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": Settings().probe_port}]
    assert {
        kind: container[kind]["httpGet"]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    } == {
        "startupProbe": {"path": "/healthz", "port": "http"},
        "livenessProbe": {"path": "/healthz", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
    }


def rules(values):
    (body,) = of_kind(rendered(values), "PrometheusRule")
    (group,) = body["spec"]["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


RULES = {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}


def test_the_alerts_ask_for_metrics_and_labels_that_the_operator_has():
    registered = metrics.REGISTRY._names_to_collectors
    found = rules(RULES)
    asked = {name for text in found.values() for name in re.findall(r"\bfinetune_\w+", text)}
    assert asked == {
        "finetune_ready",
        "finetune_relist_age_seconds",
        "finetune_queue_depth",
        "finetune_api_errors_total",
        "finetune_jobs",
    }
    assert asked <= registered.keys()
    of_the_target = 'namespace="finetune-system",service="finetune-operator-metrics"'
    for text in found.values():
        selectors = re.findall(r"(finetune_\w+)\{(.*?)\}", text)
        assert len(selectors) == text.count("finetune_"), "each has a selector"
        for name, inside in selectors:
            assert inside.startswith(of_the_target)
            labels = set(re.findall(r"(\w+)(?:=|!)", inside)) - {"namespace", "service"}
            assert labels <= set(registered[name]._labelnames), text
    assert f'reason="{NOT_ACCEPTED}"' in found["FineTuneJobsNotAccepted"]
    waits = ("WaitingForRoom", "NoNodeFits", "VolumeInOtherZone")
    assert f'reason=~"{"|".join(waits)}"' in found["FineTuneJobsWaitForRoom"]
    assert set(waits) <= ACTION.keys()


def test_the_alerts_select_what_the_service_monitor_reads():
    bodies = rendered(RULES, release="second", namespace="elsewhere")
    (service,) = of_kind(bodies, "Service")
    (rule,) = of_kind(bodies, "PrometheusRule")
    name = service["metadata"]["name"]
    first = rule["spec"]["groups"][0]["rules"][0]["expr"]
    assert f'finetune_ready{{namespace="elsewhere",service="{name}"}} == 0' in first
    slow = rules({**RULES, "settings": {"relistSeconds": 900}})
    assert slow["FineTuneJobsNotListed"].endswith("> 3 * 900")


def test_of_each_job_the_first_pod_is_read_and_its_series_say_whose_they_are():
    enabled = {"metrics": {"podMonitor": {"enabled": True}}}
    (monitor,) = of_kind(rendered(enabled), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    chosen = monitor["spec"]["selector"]["matchLabels"]
    for backend in ("indexed-job", "pytorch-job"):
        made = json.loads((RENDERS / f"{backend}.json").read_text())
        ((pod, _),) = templates(made)
        assert chosen.items() <= pod["metadata"]["labels"].items()
        assert set(monitor["spec"]["podTargetLabels"]) <= pod["metadata"]["labels"].keys()
        (trainer,) = pod["spec"]["containers"]
        assert endpoint["port"] in {port["name"] for port in trainer["ports"]}
    dropped = {
        rule["sourceLabels"][0]: [n for n in range(12) if re.fullmatch(rule["regex"], str(n))]
        for rule in endpoint["relabelings"]
        if rule["action"] == "drop"
    }
    prefix = "__meta_kubernetes_pod_label_"
    assert dropped == {
        prefix + re.sub(r"\W", "_", label): list(range(1, 12))
        for label in (INDEX_ANNOTATION, INDEX_LABEL)
    }
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    named = {**enabled, "watch": {"namespaces": ["a", "b"]}}
    (monitor,) = of_kind(rendered(named), "PodMonitor")
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_nothing_of_the_prometheus_operator_is_made_unasked():
    assert of_kind(rendered(), "ServiceMonitor", "PodMonitor", "PrometheusRule") == []
