"""The files of ``ray up``: Ray takes them as they are and with a run filled in, and nobody needs no token."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lab
import pytest
import ssh_lab
import yaml
from helpers import make_shards, study_tree
from ray.autoscaler._private.command_runner import _with_environment_variables, _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config

from cxrdist.config import shipped, write_yaml
from cxrdist.errors import UsageError
from cxrdist.launch.autoscaler import render_ray_aws, render_ray_gcp, render_ray_local
from cxrdist.launch.request import Request

BIN = Path(sys.executable).parent
REQUEST = Request(
    kind="study",
    file=Path("studies/small one.yaml"),
    text="title: Small\n",
    out=Path("runs/small"),
    here=Path("/home/me/project"),
    bin=Path("/opt/venv/bin"),
    nodes=3,
    gpus_per_node=8,
    ranks_per_node=8,
    cpus_per_node=64,
)
LOCAL = replace(REQUEST, hosts=("gpu1", "gpu2", "gpu3"), ssh_user="me", ssh_key="~/.ssh/lab")
CLOUD = replace(REQUEST, image="registry.example/cxrdist:gpu", nfs="10.0.0.2:/export")
GCP = replace(CLOUD, project="chest-lab", region="europe-west4-b")
RENDERED: dict[str, tuple[Callable[[Request], str], Request]] = {
    "local": (render_ray_local, LOCAL),
    "aws": (render_ray_aws, replace(CLOUD, instance="p5.48xlarge", region="eu-central-1")),
    "gcp": (render_ray_gcp, GCP),
}


def texts(name: str) -> list[str]:
    render, request = RENDERED[name]
    return [(shipped("launch") / "ray" / f"{name}.yaml").read_text(encoding="utf-8"), render(request)]


@pytest.mark.parametrize("name", RENDERED)
def test_ray_takes_the_file_as_it_is_and_with_a_run_filled_in(name: str) -> None:
    for text in texts(name):
        config = prepare_config(yaml.safe_load(text))
        validate_config(config)
        # `prepare_config` fills in what a file leaves out, and would hide a misspelt name of a command list.
        assert config["head_start_ray_commands"][-1].count("--head") == 1
        assert set(config) >= {"idle_timeout_minutes", "max_workers", "file_mounts"}


@pytest.mark.parametrize("name", RENDERED)
def test_nothing_of_ray_starts_without_its_token(name: str) -> None:
    for text in texts(name):
        tree = yaml.safe_load(text)
        starts = [one for key in ("head", "worker") for one in tree[f"{key}_start_ray_commands"] if "ray start" in one]
        assert len(starts) == 2
        assert all("RAY_AUTH_MODE=token" in one and "RAY_USAGE_STATS_ENABLED=0" in one for one in starts)
        (there,) = tree["file_mounts"]
        assert tree["file_mounts"][there] == "~/.ray/auth_token"
        if there != "~/.ray/auth_token":  # where Ray looks unless it is told
            assert all(f"RAY_AUTH_TOKEN_PATH={there} " in one for one in starts)
        # From outside the dashboard is reached through ssh alone.
        assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_machines_of_the_lab_are_all_there_with_what_each_has() -> None:
    tree = yaml.safe_load(render_ray_local(LOCAL))
    assert tree["provider"] == {"type": "local", "head_ip": "gpu1", "worker_ips": ["gpu2", "gpu3"]}
    assert tree["auth"] == {"ssh_user": "me", "ssh_private_key": "~/.ssh/lab"}
    assert (tree["min_workers"], tree["max_workers"]) == (2, 2)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all("PATH=/opt/venv/bin:" in command for command in tree[key])
        assert tree[key][-1].endswith("--num-cpus=64 --num-gpus=8")


@pytest.mark.parametrize(("name", "kind"), [("aws", "InstanceType"), ("gcp", "machineType")])
def test_a_cloud_has_the_gpus_that_were_asked_for_and_a_head_without(name: str, kind: str) -> None:
    render, request = RENDERED[name]
    tree = yaml.safe_load(render(request))
    types = tree["available_node_types"]
    workers = types["gpu"]
    assert (tree["max_workers"], workers["min_workers"], workers["max_workers"]) == (3, 3, 3)
    assert workers["resources"]["GPU"] * workers["max_workers"] == 24
    assert workers["node_config"][kind] == {"aws": "p5.48xlarge", "gcp": "a2-highgpu-8g"}[name]
    assert types[tree["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert tree["docker"]["image"] == "registry.example/cxrdist:gpu"
    before = " ".join(tree["initialization_commands"])
    assert " 10.0.0.2:/export /shared" in before
    assert f"/tmp/ray_tmp_mount/{tree['cluster_name']}/run/cxrdist/auth_token" in before
    assert "nobody" not in before and "example:/" not in before


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_shared_storage_is_seen_where_it_is_asked_for(name: str) -> None:
    render, request = RENDERED[name]
    text = render(replace(request, mount="/mnt/cxr"))
    assert "--out /mnt/cxr/runs/small" in text
    tree = yaml.safe_load(text)
    assert "--volume=/mnt/cxr:/mnt/cxr" in tree["docker"]["run_options"]
    assert " 10.0.0.2:/export /mnt/cxr" in " ".join(tree["initialization_commands"])
    assert "/shared" not in text


def test_a_study_that_waits_for_machines_gets_them_on_demand() -> None:
    for grows, fewest in ((True, 0), (False, 3)):
        tree = yaml.safe_load(render_ray_gcp(replace(GCP, grows=grows)))
        assert tree["available_node_types"]["gpu"]["min_workers"] == fewest


@pytest.mark.parametrize(("name", "instance"), [("aws", "m6i.16xlarge"), ("gcp", "n2-standard-64")])
def test_a_container_without_gpus_asks_docker_for_none(name: str, instance: str) -> None:
    render, request = RENDERED[name]
    docker = yaml.safe_load(render(replace(request, gpus_per_node=0, instance=instance)))["docker"]
    assert not [one for one in docker["worker_run_options"] if one.startswith("--gpus")]
    # What a head without GPU needs, a machine without needs as well.
    runtime = [one for one in docker["head_run_options"] if one.startswith("--runtime")]
    assert [one for one in docker["worker_run_options"] if one.startswith("--runtime")] == runtime
    assert "--gpus=all" in yaml.safe_load(render(request))["docker"]["worker_run_options"]


def test_setup_that_ends_with_a_comment_hides_nothing_of_what_comes_behind_it(tmp_path: Path) -> None:
    program = tmp_path / "ray"
    program.write_text('#!/bin/sh\necho "ray $1 of $SET"\n', encoding="utf-8")
    program.chmod(0o755)
    setup = ("export SET=setup # 12", "# nothing")

    def said(command: str) -> str:
        """Return what a command says, given as Ray gives it to ssh."""
        words = ["bash", "-c", " ".join(_with_interactive(_with_environment_variables(command, {"A": "b c"})))]
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        (tmp_path / ".bashrc").touch()
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tree = yaml.safe_load(render_ray_local(replace(LOCAL, setup=setup, bin=tmp_path)))
    for key, count in (("head_start_ray_commands", 2), ("worker_start_ray_commands", 2)):
        assert len(tree[key]) == count
        assert said(tree[key][0]).endswith("ray stop of setup\n")
        assert said(tree[key][1]).endswith("ray start of setup\n")
    for line in yaml.safe_load(render_ray_gcp(replace(GCP, setup=setup)))["initialization_commands"][:2]:
        said(line)


def test_both_clouds_have_the_same_container_secret_and_start() -> None:
    aws, gcp = (yaml.safe_load(texts(name)[0]) for name in ("aws", "gcp"))
    assert aws["docker"].pop("head_run_options") == [*gcp["docker"].pop("head_run_options"), "--runtime=runc"]
    ends = [one for one in aws["initialization_commands"] if "docker" in one or "/runs" in one or "auth_token" in one]
    assert [one for one in gcp["initialization_commands"] if one in ends] == ends and len(ends) == 3
    same = ("docker", "file_mounts", "head_start_ray_commands", "worker_start_ray_commands", "auth", "max_workers")
    for key in (*same, "idle_timeout_minutes", "upscaling_speed", "head_node_type"):
        assert aws[key] == gcp[key], key
    for key in ("resources", "min_workers", "max_workers"):
        for kind in ("head", "gpu"):
            assert aws["available_node_types"][kind].get(key) == gcp["available_node_types"][kind].get(key), key


def test_only_the_machines_user_and_the_containers_group_read_the_secret(tmp_path: Path) -> None:
    for name in ("aws", "gcp"):
        tree = yaml.safe_load(texts(name)[0])
        (command,) = [one for one in tree["initialization_commands"] if "auth_token" in one]
        secret = tmp_path / name
        secret.touch()
        secret.chmod(0o600)
        command = command.replace("/tmp/ray_tmp_mount/cxrdist/run/cxrdist/auth_token", str(secret))
        group = os.getgid()  # nobody but root may give a file to another
        subprocess.run(["sh", "-c", command.replace("sudo ", "").replace("chgrp 1000", f"chgrp {group}")], check=True)
        assert secret.stat().st_mode & 0o777 == 0o640
        # As Ray does before the next copy.
        subprocess.run(["chown", "-R", str(os.getuid()), str(secret)], check=True)


def test_a_training_is_given_all_ranks_of_the_cluster() -> None:
    training = replace(CLOUD, kind="train", file=Path("vit.yaml"), nodes=2, instance="g5.12xlarge", gpus_per_node=4)
    text = render_ray_aws(replace(training, ranks_per_node=4, cpus_per_node=32))
    command = next(line for line in text.splitlines() if line.startswith("#   cxrdist"))
    assert command.startswith(
        "#   cxrdist train vit.yaml --out /shared/runs/small --resume auto --address http://127.0.0.1:8265 "
        "--workers 8 --cpus-per-worker 8 --gpus-per-worker 1"
    )


@pytest.mark.parametrize(
    ("render", "request_", "sentence"),
    [
        (render_ray_local, replace(LOCAL, hosts=()), "`--host` must name each of 3 hosts once, got none"),
        (render_ray_local, replace(LOCAL, hosts=("a", "b")), "each of 3 hosts once, got a, b. Example"),
        (render_ray_local, replace(LOCAL, hosts=("a", "b", "a")), "each of 3 hosts once, got a, b, a"),
        (render_ray_local, replace(LOCAL, hosts=("a", "b", "$(id)")), r"got '\$\(id\)'"),
        (render_ray_aws, replace(CLOUD, image=None), "got none. Example: --image registry.example/"),
        (render_ray_aws, replace(CLOUD, nfs=None), "`--nfs` must be SERVER:/PATH"),
        (render_ray_aws, replace(CLOUD, nfs="10.0.0.2:/a;id"), "`--nfs` must be SERVER:/PATH"),
        (render_ray_aws, replace(CLOUD, region="frankfurt"), "got 'frankfurt'. Example: --region us-east-1a"),
        (render_ray_aws, replace(CLOUD, instance="g5.12xlarge"), "got 8 for g5.12xlarge with 4"),
        (render_ray_aws, replace(CLOUD, cpus_per_node=97), "got 97 for p4d.24xlarge with 96"),
        (render_ray_aws, replace(CLOUD, gpus_per_node=3), "got none for 3 GPUs"),
        (render_ray_aws, replace(CLOUD, out=Path("/home/me/runs/small")), "below /shared/runs"),
        (render_ray_gcp, replace(GCP, project=None), "`--project` must be the ID"),
        (
            render_ray_gcp,
            replace(GCP, region="europe-west4"),
            "a zone, got 'europe-west4'. Example: --region us-central1-a",
        ),
        (render_ray_gcp, replace(GCP, instance="a3-highgpu-4g"), "got 8 for a3-highgpu-4g with 4"),
        (render_ray_gcp, replace(GCP, file=Path("a\nb.yaml")), "must be one line"),
    ],
)
def test_what_is_missing_or_cannot_be_is_said(
    render: Callable[[Request], str], request_: Request, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        render(request_)


def test_a_machine_that_is_not_known_is_taken_at_its_word() -> None:
    tree = yaml.safe_load(render_ray_aws(replace(CLOUD, instance="p9.96xlarge", gpus_per_node=16)))
    assert tree["available_node_types"]["gpu"]["resources"] == {"CPU": 64, "GPU": 16}


SECONDS = 400
"""What a shared machine may need for what takes it half a minute alone."""
OVERLAY = """mkdir $0/upper $0/work &&
mount -t overlay overlay -o lowerdir=/root,upperdir=$0/upper,workdir=$0/work /root && cd /root &&
rm -f .profile .bash_profile .bash_login && : > .bashrc"""
"""The home of the user that ssh lets in is the host's own from now on, and a login shell there has no settings."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[lab.Lab]:
    """Two hosts with sshd, and a third that is the laptop."""
    folder = tmp_path / "lab"
    folder.mkdir()
    with lab.lab(folder, 3) as hosts:
        for number in (1, 2):
            hosts[number].run("sh", "-c", OVERLAY, hosts[number].home)
        ssh_lab.start_sshd(tmp_path / "ssh", hosts[1], hosts[2])
        yield hosts


def commands(text: str) -> dict[str, str]:
    """Return the commands in the head of a rendered file by their first words."""
    lines = [line[4:].split("  # ")[0] for line in text.splitlines() if line.startswith("#   ")]
    return {" ".join(line.split()[:2]): line for line in lines}


def rays(host: lab.Host) -> int:
    """Return how many raylets live on a host."""
    return int(host.run("sh", "-c", "pgrep -c raylet || true"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(lab.why_not() or ssh_lab.why_not()), reason=lab.why_not() or ssh_lab.why_not())
def test_who_follows_the_head_of_the_file_gets_a_study_from_a_laptop_done_on_two_machines(
    tmp_path: Path, site: lab.Lab
) -> None:
    changes: dict[str, Any] = {
        "strategies": {"random": {}},
        "stages": {},
        # More than one machine has: both must be there, and train together.
        "resources": {"workers": 2, "cpus_per_worker": 2, "placement": "spread"},
    }
    tree = study_tree({"a": make_shards(tmp_path / "a", patients=20)})
    study = tmp_path / "small.yaml"
    write_yaml(tree | changes, study)
    request = Request(
        kind="study", file=study, text=study.read_text(encoding="utf-8"), out=tmp_path / "out", here=tmp_path, bin=BIN,
        nodes=2, gpus_per_node=0, ranks_per_node=1, cpus_per_node=2,
        hosts=("host1", "host2"), ssh_user="root", ssh_key=str(tmp_path / "ssh/id"),
    )  # fmt: skip
    text = render_ray_local(request)
    (tmp_path / f"{request.name}.yaml").write_text(text, encoding="utf-8")
    to_do = commands(text)
    laptop = site[3]

    def start(command: str, **options: Any) -> subprocess.Popen[str]:
        settings = {"PATH": f"{BIN}:{os.environ['PATH']}", "TMPDIR": str(laptop.home), "RAY_USAGE_STATS_ENABLED": "0"}
        script = f"cd {tmp_path} && export RAY_AUTH_MODE=token && {command}"
        return laptop.start("bash", "-c", script, env=settings, stdin=subprocess.DEVNULL, **options)

    def run(command: str, code: int = 0) -> str:
        # Into a file: ssh's connections stay open for the next command, and would hold a pipe.
        with (tmp_path / "said").open("w+", encoding="utf-8") as said:
            ended = start(command, stdout=said, stderr=subprocess.STDOUT).wait(timeout=SECONDS)
            said.seek(0)
            text = said.read()
        assert ended == code, (command, text)
        return text

    run(to_do["(umask 077;"])
    run(to_do["ray up"])
    tunnel = start(to_do["ray dashboard"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    while "0.0/4.0 CPU" not in (said := run(to_do["ray exec"])):
        assert time.monotonic() < deadline, said
        time.sleep(2)
    # Without the token nobody gets in.
    assert "must be given its token, got none" in run(f"HOME={tmp_path} {to_do['cxrdist study']}", 1)
    run(to_do["cxrdist study"])
    assert (tmp_path / "out/cells/random--a--seed0/predictions/test.parquet").is_file()
    run(to_do["ray down"])
    assert rays(site[1]) == 0
    deadline = time.monotonic() + SECONDS
    while rays(site[2]):
        assert time.monotonic() < deadline
        time.sleep(2)
    tunnel.terminate()
    tunnel.wait()
