"""Manifests for KubeRay: what a server would take, what pods would have, and their command, run for real."""

import copy
import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers import finetune_tree, make_shards

import cxrdist.launch.kuberay
from cxrdist.config import load_yaml, read_yaml, shipped, write_yaml
from cxrdist.errors import UsageError
from cxrdist.launch.kuberay import FILES, render_raycluster, render_rayjob
from cxrdist.launch.request import Request

KUBERAY = shipped("launch") / "kuberay"
TEXT = "# a run\nshards: runs/shards/toy\n"
KINDS = {"train": "train", "pretrain": "pretrain", "study": "study run", "sweep": "sweep"}
RENDERERS = {"RayJob": render_rayjob, "RayCluster": render_raycluster}


CLUSTER = """
import json, os, socket, sys
from ray.cluster_utils import Cluster

def node(cpus):
    ports = []
    for _ in range(2):
        there = socket.socket()
        there.bind(("127.0.0.1", 0))
        ports.append(there)
    numbers = [there.getsockname()[1] for there in ports]
    for there in ports:
        there.close()
    store = {"num_cpus": cpus, "object_store_memory": 10**8, "include_dashboard": True}
    return store | {"dashboard_port": numbers[0], "dashboard_agent_listen_port": numbers[1]}

head, machine = json.loads(sys.argv[1])
cluster = Cluster(True, head_node_args=node(head))
cluster.add_node(**node(machine))
print(cluster.head_node.webui_url, cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
"""A head and a machine of so many CPUs, whose processes start in this one's working folder, as in a pod."""


def make_request(**changes: Any) -> Request:
    request = Request(
        kind="train", file=Path("my run.yaml"), text=TEXT, out=Path("runs/mine"), here=Path("/home/me"),
        bin=Path("/home/me/bin"), nodes=2, gpus_per_node=4, ranks_per_node=4, cpus_per_node=32,
        image="reg:5000/cxr:gpu", claim="lab-data",
    )  # fmt: skip
    return replace(request, **changes)


def trees_of(text: str) -> dict[str, dict[str, Any]]:
    return {tree["kind"]: tree for tree in yaml.safe_load_all(text)}


def cluster_of(tree: dict[str, Any]) -> dict[str, Any]:
    return tree["spec"].get("rayClusterSpec", tree["spec"])


def pods_of(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the specs of a machine and of the head."""
    cluster = cluster_of(tree)
    return [cluster["workerGroupSpecs"][0]["template"]["spec"], cluster["headGroupSpec"]["template"]["spec"]]


def rendered(manifest: str, /, **changes: Any) -> dict[str, Any]:
    return trees_of(RENDERERS[manifest](make_request(**changes)))[manifest]


def words_of(job: dict[str, Any]) -> list[str]:
    return shlex.split(job["spec"]["entrypoint"])


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses fields that it does not know; a server would pass over them."""
    schema = {name: value for name, value in schema.items() if name != "description"}
    for name in ("properties", "patternProperties"):
        schema |= {name: {key: strict(value) for key, value in schema[name].items()}} if name in schema else {}
    for name in ("items", "additionalProperties"):
        schema |= {name: strict(schema[name])} if isinstance(schema.get(name), dict) else {}
    for name in ("anyOf", "allOf", "oneOf"):
        schema |= {name: [strict(each) for each in schema[name]]} if name in schema else {}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.fixture(scope="module")
def faults() -> Callable[[dict[str, Any]], list[str]]:
    """A check against KubeRay's own definitions: tells what is wrong in a RayJob or a RayCluster."""
    folder = os.environ.get("CXRDIST_SCHEMAS")
    if not folder:
        pytest.skip("CXRDIST_SCHEMAS names no folder with KubeRay's definitions, so manifests are not checked by them")
    checks = {}
    for kind in RENDERERS:
        path = Path(folder) / "kuberay" / f"ray.io_{kind.lower()}s.yaml"
        with path.open(encoding="utf-8") as file:
            versions = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
        schema = next(one for one in versions if one["name"] == "v1")["schema"]["openAPIV3Schema"]
        schema = strict(schema)
        schema["properties"]["metadata"] = {"type": "object"}  # it is Kubernetes' own
        checks[kind] = jsonschema.Draft7Validator(schema)

    def look(tree: dict[str, Any]) -> list[str]:
        errors = checks[tree["kind"]].iter_errors(tree)
        return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]

    return look


def check_object(tree: dict[str, Any]) -> None:
    """What holds for every manifest, with or without the definitions."""
    name = tree["metadata"]["name"]
    assert len(name) <= 53  # a cluster's; a job's, of which one is made, has six less
    assert name.replace("-", "").isalnum() and name.islower() and name[0].isalpha()
    for spec in pods_of(tree):
        (container,) = spec["containers"]
        held = container["resources"]
        assert held["limits"] == held["requests"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert {"runAsUser", "fsGroup"} <= spec["securityContext"].keys()
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert volumes.keys() == mounts.keys() == {"shared", "run", "memory"}
        assert mounts["memory"] == "/dev/shm" and mounts["run"] == FILES
        assert volumes["memory"]["emptyDir"]["medium"] == "Memory"
        assert Path(container["workingDir"]).is_relative_to(mounts["shared"])
    machine, head = pods_of(tree)
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert cluster_of(tree)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster_of(tree)["authOptions"] == {"mode": "token"}
    assert [port["name"] for port in head["containers"][0]["ports"]] == ["gcs-server", "dashboard", "client"]
    store = int(cluster_of(tree)["workerGroupSpecs"][0]["rayStartParams"]["object-store-memory"])
    assert store < int(spec_of(machine, "memory")["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


def spec_of(pod: dict[str, Any], volume: str) -> dict[str, Any]:
    return next(one for one in pod["volumes"] if one["name"] == volume)


@pytest.mark.parametrize("kind", RENDERERS)
def test_a_shipped_file_is_a_whole_manifest(kind):
    trees = trees_of((KUBERAY / f"{kind.lower()}.yaml").read_text(encoding="utf-8"))
    assert trees.keys() == {"ConfigMap", kind}
    check_object(trees[kind])
    assert trees["ConfigMap"]["metadata"]["name"] == trees[kind]["metadata"]["name"]
    locked = (Path(__file__).parent.parent / "constraints.txt").read_text().split()
    assert f"ray=={cluster_of(trees[kind])['rayVersion']}" in locked


def test_a_job_has_the_cluster_of_the_file_that_stays():
    job, stays = (trees_of((KUBERAY / f"{kind}.yaml").read_text("utf-8")) for kind in ("rayjob", "raycluster"))
    cluster = yaml.safe_dump(cluster_of(stays["RayCluster"]))
    assert yaml.safe_load(cluster.replace("name: cxrdist-cluster", "name: cxrdist")) == cluster_of(job["RayJob"])


@pytest.mark.parametrize("kind", RENDERERS)
def test_a_server_takes_the_shipped_file(kind, faults):
    trees = trees_of((KUBERAY / f"{kind.lower()}.yaml").read_text(encoding="utf-8"))
    assert faults(trees[kind]) == []


@pytest.mark.parametrize("kind", RENDERERS)
@pytest.mark.parametrize("run", KINDS)
@pytest.mark.parametrize(("gpus", "queue"), [(8, "team-a"), (0, None)])
def test_a_server_takes_what_is_rendered(kind, run, gpus, queue, faults):
    assert faults(rendered(kind, kind=run, gpus_per_node=gpus, ranks_per_node=gpus or 2, queue=queue)) == []


@pytest.mark.parametrize("kind", RENDERERS)
def test_a_misspelt_field_and_a_wrong_type_are_found(kind, faults):
    tree = rendered(kind)
    worse = copy.deepcopy(tree)
    group = cluster_of(worse)["workerGroupSpecs"][0]
    group["replicas"] = "two"
    group["template"]["spec"]["tolerance"] = []
    group["template"]["spec"]["containers"][0]["workDir"] = "/shared"
    assert len(faults(worse)) == len(faults(tree)) + 3


@pytest.mark.parametrize("kind", RENDERERS)
@pytest.mark.parametrize("run", KINDS)
def test_machines_have_what_was_asked_and_the_head_is_one_more(kind, run):
    tree = rendered(kind, kind=run, nodes=3, gpus_per_node=8, ranks_per_node=8, cpus_per_node=96)
    check_object(tree)
    group = cluster_of(tree)["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)
    machine, head = pods_of(tree)
    limits = machine["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "8"
    assert (limits["cpu"], group["rayStartParams"]["num-cpus"]) == ("97", "96")
    for pod in (machine, head):
        assert pod["containers"][0]["image"] == "reg:5000/cxr:gpu"
        assert spec_of(pod, "shared")["persistentVolumeClaim"]["claimName"] == "lab-data"
        assert spec_of(pod, "run")["configMap"]["name"] == tree["metadata"]["name"]


@pytest.mark.parametrize("kind", RENDERERS)
def test_machines_without_gpus_ask_for_none(kind):
    tree = rendered(kind, gpus_per_node=0, ranks_per_node=1)
    check_object(tree)
    assert "nvidia.com/gpu" not in yaml.safe_dump(tree)


@pytest.mark.parametrize("kind", RENDERERS)
def test_only_a_job_with_a_queue_waits_for_it(kind):
    queued, free = rendered(kind, queue="team-a"), rendered(kind)
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in free["spec"]
    assert not any(label.startswith("kueue") for label in free["metadata"]["labels"])


def test_a_job_ends_its_cluster_is_tried_again_and_has_the_time_that_it_was_given():
    spec = rendered("RayJob", time="1-02:03:04")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] == ((24 + 2) * 60 + 3) * 60 + 4
    assert spec["submitterPodTemplate"]["spec"]["containers"][0]["image"] == "reg:5000/cxr:gpu"
    assert "activeDeadlineSeconds" not in rendered("RayJob")["spec"]


@pytest.mark.parametrize("run", KINDS)
def test_the_command_is_that_of_the_run_with_its_paths_in_the_pods(run):
    options = ("--debug", "--set", 'title=it\'s a "$HOME" `x`; -- |\n* é')
    request = make_request(kind=run, text=f"{TEXT}debug: {{}}\n", options=options)
    words = words_of(trees_of(render_rayjob(request))["RayJob"])
    assert words == ["cxrdist", *request.ray_words_for(f"{FILES}/my_run.yaml", "/shared/runs/mine")]
    assert words[1:].count("--address") == 1
    assert " ".join(words[1:]).startswith(KINDS[run])


@pytest.mark.parametrize("value", ["$(hostname)", "$$"])
def test_words_that_kubernetes_would_replace_are_refused(value):
    with pytest.raises(UsageError, match=r"must have neither `\$\(` nor `\$\$`"):
        render_rayjob(make_request(options=("--set", f"title={value}")))


def test_a_cluster_says_how_its_run_is_started_in_lines_that_a_shell_takes():
    request = make_request(kind="study", options=("--set", "title=it's"))
    text = render_raycluster(request)
    (line,) = [line for line in text.splitlines() if " ray job submit " in line]
    words = shlex.split(line.removeprefix("#"))
    (split,) = [at for at, word in enumerate(words) if word == "--no-wait"]
    assert words[:2] == ["kubectl", "exec"]
    asked = request.ray_words_for(f"{FILES}/my_run.yaml", "/shared/runs/mine")
    assert words[split + 1 :] == ["--", "cxrdist", *asked]
    with pytest.raises(UsageError, match="one line"):
        render_raycluster(make_request(kind="study", options=("--set", "title='a\n\n b'")))


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "a: |\n  b\n---\n",
        "# ---\n--- # é ü 影 \U0001f9e0\n%a: 'x: y # z'\n...\n",
        "a:\t1 \t\nb: \"\\x41\"\t\n\n\n",
        "  \n\n  a: 1\n no: yes\n'on': off\n",
        "a: 1",
        "a: {{ template }} ${x} $(x) $$ @x `y`\r\nb: 2\n",
        "a: '\u2028 \x85 \ufeff'\n",
        "- x\n" * 2000,
    ],
)  # fmt: skip
def test_any_text_of_a_run_arrives_in_the_pods_as_it_was(text, monkeypatch):
    monkeypatch.setattr(cxrdist.launch.carried, "load_yaml", lambda _: {})
    data = trees_of(render_rayjob(make_request(text=text)))["ConfigMap"]["data"]
    assert data == {"my_run.yaml": text}


def test_random_text_arrives_as_it_was(monkeypatch):
    monkeypatch.setattr(cxrdist.launch.carried, "load_yaml", lambda _: {})
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(8):
        text = "".join(rng.choices("ab:-#|>'\"{}[]&*!%@`\\ \t\n\n\u00e9\u2028\U0001f600", k=rng.randint(0, 60)))
        assert trees_of(render_rayjob(make_request(text=text)))["ConfigMap"]["data"] == {"my_run.yaml": text}


def test_nothing_is_written_that_a_newer_yaml_reads_in_another_way():
    """Kubernetes ends no line at U+2028, as ours does: a document after it would be lost. And 1e3 is a number."""
    text = render_rayjob(make_request(text="a: 'b\u2028'\n# \x85 \u2029", claim="1e3", queue="0o17"))
    assert not set("\x85\u2028\u2029") & set(text)
    assert 'claimName: "1e3"' in text and 'queue-name: "0o17"' in text
    assert trees_of(text)["ConfigMap"]["data"]["my_run.yaml"] == "a: 'b\u2028'\n# \x85 \u2029"


def test_deepspeed_files_travel_and_nothing_else_in_the_run_changes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "ds.json").write_text('{"steps_per_print": 1}')
    (tmp_path / "a" / "ds.json").write_text('{"steps_per_print": 2}')
    text = "# first\nrecipe:\n  train: {deepspeed: ds.json, steps: 3}   # 3\n  findings: [ds.json]\nstrategies:\n" \
           "  x: {set: {train.deepspeed: 'a/ds.json'}}\n  y: {set: {train.deepspeed: null}}\n" \
           "  z: {set: {train.deepspeed: /shared/ds.json}}\n"  # fmt: skip
    request = make_request(kind="study", text=text, here=tmp_path)
    data = trees_of(render_rayjob(request))["ConfigMap"]["data"]
    (first, second), run = [key for key in data if key.endswith(".json")], data["my_run.yaml"]
    assert (data[first], data[second]) == ('{"steps_per_print": 1}', '{"steps_per_print": 2}')
    changed = {"deepspeed: ds.json": f'deepspeed: "{FILES}/{first}"', "'a/ds.json'": f'"{FILES}/{second}"'}
    for old, new in changed.items():
        text = text.replace(old, new)
    assert run == text


def test_a_deepspeed_file_named_on_the_command_line_travels_and_replaces_the_files_own(tmp_path):
    (tmp_path / "ds.json").write_text("{}")
    setting = "train.deepspeed=ds.json"
    request = make_request(text="train: {deepspeed: nowhere.json}\n", here=tmp_path, options=("--set", setting))
    trees = trees_of(render_rayjob(request))
    assert trees["ConfigMap"]["data"] == {"my_run.yaml": request.text, "ds.json": "{}"}
    words = words_of(trees["RayJob"])
    name, _, value = words[words.index("--set") + 1].partition("=")
    assert (name, load_yaml(value)) == ("train.deepspeed", f"{FILES}/ds.json")
    with pytest.raises(UsageError, match=r"`train.deepspeed` must be a JSON file that can be read, got 'nowhere.json'"):
        render_rayjob(replace(request, options=()))


@pytest.mark.parametrize("kind", RENDERERS)
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": "shards: /data/nih\n"}, "`shards` '/data/nih'"),
        ({"text": "shards: [runs/a, /data/nih]\n"}, "`shards` '/data/nih'"),
        ({"text": "run: {shards: ../../nih}\n"}, "`run.shards` '/shared/../../nih'"),
        ({"text": "datasets: {a: {shards: /d}}\nledger: file:///e\n"}, "`datasets.a.shards` '/d', `ledger` '/e'"),
        ({"options": ("--set", "model.weights=/w.pth")}, "`model.weights` '/w.pth'"),
        ({"text": f"{TEXT}debug: {{shards: /d}}\n", "options": ("--debug",)}, "`shards` '/d'"),
        ({"out": Path("/home/me/runs")}, "its folder '/home/me/runs'"),
        ({"out": Path("../runs")}, "its folder '../runs'"),
        ({"out": Path("/shared")}, "its folder '/shared'"),
    ],
)
def test_a_path_that_pods_do_not_see_is_told_with_a_way_out(kind, changes, told):
    with pytest.raises(UsageError) as error:
        RENDERERS[kind](make_request(**changes))
    assert f"must be below '/shared', where they see shared storage, got {told}. Give" in str(error.value)
    assert "--mount" in str(error.value)


def test_paths_that_pods_see_are_left_as_they_are():
    text = "shards_root: /shared/shards\nledger: s3://bucket/x\nrun: {model: {weights: 'timm:vit.x'}}\nshards: ../b\n" \
           "debug: {shards: /nowhere}\n"  # fmt: skip
    trees = trees_of(render_rayjob(make_request(text=text, here=Path("/shared/me"), out=Path("/shared/runs"))))
    assert trees["ConfigMap"]["data"] == {"my_run.yaml": text}
    assert words_of(trees["RayJob"])[3:5] == ["--out", "/shared/runs"]
    assert all(pod["containers"][0]["workingDir"] == "/shared/me" for pod in pods_of(trees["RayJob"]))


@pytest.mark.parametrize("kind", RENDERERS)
def test_another_mount_is_where_everything_is_seen(kind):
    text = RENDERERS[kind](make_request(mount="/mnt/lab/", text="shards: /mnt/lab/nih\n"))
    assert "/shared" not in text
    check_object(tree := trees_of(text)[kind])
    assert pods_of(tree)[0]["containers"][0]["workingDir"] == "/mnt/lab"


@pytest.mark.parametrize("kind", RENDERERS)
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": None, "claim": None}, "must be given an image and a claim, got none. Add `--image"),
        ({"claim": None}, "an image and a claim, got one of them. Add `--claim"),
        ({"image": "a b"}, "`--image` must be one word"),
        ({"image": "a\n# b"}, "`--image` must be one word"),
        ({"claim": "Lab_Data"}, "`--claim` must be a name of Kubernetes"),
        ({"queue": "team a"}, "`--queue` must be a name of Kubernetes"),
        ({"mount": "shared"}, "`--mount` must be a folder of its own"),
        ({"mount": "/"}, "`--mount` must be a folder of its own"),
        ({"mount": f"{FILES}/x"}, "`--mount` must be a folder of its own"),
        ({"mount": "/tmp"}, "`--mount` must be a folder of its own"),
        ({"text": "a: '" + 200_000 * "x" + "'\n"}, "must have 200,000 bytes at most"),
    ],
)
def test_what_kubernetes_would_refuse_is_told_before(kind, changes, told):
    with pytest.raises(UsageError) as error:
        RENDERERS[kind](make_request(**changes))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("time", ["1h", "00:00:00", "1:2:3", "-1:00:00", "1:99", "0", "1-2:3"])
def test_a_time_that_is_none_is_told(time):
    with pytest.raises(UsageError, match="`--time` must be"):
        render_rayjob(make_request(time=time))


@pytest.mark.parametrize("name", ["1.yaml", "Ü.yaml", ".hidden.yaml", "a" * 90 + ".yaml", "..yaml", "Run_2 (b).yaml"])
def test_any_name_of_a_file_becomes_names_that_kubernetes_takes(name):
    trees = trees_of(render_raycluster(make_request(file=Path("/home/me") / name)))
    check_object(trees["RayCluster"])
    (key,) = trees["ConfigMap"]["data"]
    assert set(key) <= set("-._" + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    assert not key.startswith(".") and len(key) <= 253


def test_every_shipped_study_renders():
    for file in sorted((shipped("launch") / "studies").glob("*.yaml")):
        request = make_request(kind="study", file=file, text=file.read_text(encoding="utf-8"), here=Path("/shared"))
        data = trees_of(render_rayjob(request))["ConfigMap"]["data"]
        assert data == {file.name: request.text}


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Callable[[str], subprocess.CompletedProcess[str]]]]:
    """What stands for the pods of a RayJob: the cluster that it asks for, and the pod that submits its command."""
    running = []

    def start(job: dict[str, Any]) -> Callable[[str], subprocess.CompletedProcess[str]]:
        cluster = cluster_of(job)
        machine, _ = pods_of(job)
        cpus = [
            int(one["rayStartParams"]["num-cpus"]) for one in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        ]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "HOME": str(tmp_path), "PATH": path,
               "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}  # fmt: skip
        command = [sys.executable, "-c", CLUSTER, json.dumps(cpus)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(tmp_path / "errors").open("w"), text=True,
            env=os.environ | own, cwd=machine["containers"][0]["workingDir"],
        )  # fmt: skip
        running.append(process)
        line = process.stdout.readline()
        assert line, (tmp_path / "errors").read_text()
        dashboard, _ = line.split()

        def submit(entrypoint: str) -> subprocess.CompletedProcess[str]:
            # As KubeRay pastes it: a shell of the submitting pod reads it, and one of the head what Ray makes of it.
            pasted = f"ray job submit --address http://{dashboard} --submission-id one -- {entrypoint.strip()} ;"
            words = ["/bin/bash", "-ce", "--", pasted]
            return subprocess.run(words, env=os.environ | own, cwd="/", capture_output=True, text=True, check=False)

        return submit

    yield start
    for process in running:
        process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.long
def test_the_command_of_a_job_trains_on_its_machines(tmp_path, pods):
    mount, seen = tmp_path / "mount", tmp_path / "etc"
    make_shards(mount, patients=30)
    tree = finetune_tree(Path("shards/toy"), steps=2, evaluate_every=2, deepspeed="ds.json")
    write_yaml(tree, tmp_path / "a run.yaml")
    (tmp_path / "ds.json").write_text('{"steps_per_print": 7}')
    request = make_request(
        file=Path("a run.yaml"), text=(tmp_path / "a run.yaml").read_text(), here=tmp_path, mount=str(mount), nodes=1,
        gpus_per_node=0, ranks_per_node=2, cpus_per_node=2, out=Path("runs/it's \"$HOME\""),
        options=("--set", "optim={lr: 0.002, betas: [0.9, 0.99]}"),
    )  # fmt: skip
    trees = trees_of(render_rayjob(request))
    seen.mkdir()
    for name, text in trees["ConfigMap"]["data"].items():
        (seen / name).write_text(text.replace(FILES, str(seen)), encoding="utf-8")
    done = pods(trees["RayJob"])(trees["RayJob"]["spec"]["entrypoint"].replace(FILES, str(seen)))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = mount / "runs" / 'it\'s "$HOME"'
    assert (folder / "model" / "model.safetensors").is_file()
    ran = read_yaml(folder / "config.yaml")
    assert ran["optim"]["lr"] == 0.002
    assert ran["train"]["deepspeed"] == str(seen / "ds.json")
