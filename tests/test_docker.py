"""The images and the compose file: what stands in them, and, where an engine can be had, that they build and run."""

import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import container_lab
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
CPU = "localhost/cxrdist:cpu"
COMPOSE = DOCKER / "compose.yaml"
GPU = DOCKER / "compose.gpu.yaml"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return each stage's name -> its instructions, those of the stages it is made from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            found[name] = [*found.get(base, [(word, base)])]
        elif name:
            found[name].append((word, rest))
    return found


def told(stage: str, word: str) -> list[str]:
    return [rest for each, rest in stages()[stage] if each == word]


def copied() -> list[str]:
    """Return what is copied from the top folder."""
    sources = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    return [name for names in sources for name in names]


def let_in(path: str) -> bool:
    """Return whether .dockerignore lets `path` into a build: the last line for it or a folder above it decides."""
    names = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    inside = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, name) for name in names):
            inside = line.startswith("!")
    return inside


def test_every_file_that_the_images_copy_is_there_and_is_let_in() -> None:
    assert copied()
    for name in copied():
        assert (ROOT / name).exists(), name
        assert let_in(name), name


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "runs/demo/private/id.key",
        "id.key",
        "cxrdist/__pycache__/a.pyc",
        "docker/.env",
    ],
)
def test_runs_keys_and_histories_stay_out_of_a_build(path: str) -> None:
    assert not let_in(path)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_images_end_as_a_user_who_is_not_root(target: str) -> None:
    assert told(target, "USER")[-1] == "cxrdist"


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_images_have_a_health_check_and_hand_on_signals(target: str) -> None:
    assert "health.sh" in told(target, "HEALTHCHECK")[-1]
    assert told(target, "ENTRYPOINT") == ['["tini", "--"]']


def test_dependencies_are_pinned_and_installed_before_the_code_is_there() -> None:
    steps = stages()["dependencies"]
    install = next(n for n, (word, rest) in enumerate(steps) if word == "RUN" and "pip" in rest)
    assert "--constraint constraints.txt" in steps[install][1]
    before = {name for word, rest in steps[:install] if word == "COPY" for name in rest.split()[:-1]}
    assert before == {"pyproject.toml", "constraints.txt", "cxrdist/__init__.py"}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_code_is_the_last_layer(target: str) -> None:
    layers = [rest for word, rest in stages()[target] if word in {"RUN", "COPY"}]
    assert layers[-1].startswith("--from=code ")


def test_package_managers_leave_nothing_behind() -> None:
    for word, rest in instructions():
        if word == "RUN" and "apt-get" in rest:
            assert "rm -rf /var/lib/apt/lists/*" in rest
        if word == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest


def test_no_secret_and_no_index_stands_in_an_image() -> None:
    kept = "\n".join(rest for word, rest in instructions() if word in {"ARG", "ENV", "COPY", "LABEL"})
    assert not re.search(r"token|password|secret|pip_|index-url|\.key", kept, re.I)


def test_nothing_is_fetched_to_read_the_dockerfile_itself() -> None:
    assert not re.search(r"^#\s*syntax\s*=", (DOCKER / "Dockerfile").read_text(), re.M)


def test_the_compiler_is_of_the_cuda_that_torch_was_built_with() -> None:
    toolkit = next(rest for word, rest in instructions() if rest.startswith("GPU_BASE="))
    pinned = re.search(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert re.fullmatch(rf"GPU_BASE=nvidia/cuda:{re.escape(pinned)}\.\d+-devel-\S+", toolkit)


@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_can_be_run(script: Path) -> None:
    assert script.stat().st_mode & stat.S_IXOTH
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "-S", "warning", script], check=True)


def test_compose_has_a_head_two_workers_and_a_job_that_waits_for_them() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert set(services) == {"head", "worker1", "worker2", "job"}
    assert set(services["job"]["depends_on"]) == {"head", "worker1", "worker2"}
    assert all(each["environment"] == {"RAY_AUTH_MODE": "token"} for each in services.values())
    assert all({"shm_size", "ulimits", "healthcheck"} <= set(each) for each in services.values())


def test_compose_shows_the_cluster_to_this_machine_alone() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    ports = [port for each in services.values() for port in each.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_has_no_token_in_it() -> None:
    assert "RAY_AUTH_TOKEN" not in COMPOSE.read_text() + GPU.read_text()


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, GPU]], ids=["cpu", "gpu"])
def test_compose_is_as_its_own_program_wants_it(files: list[Path]) -> None:
    words = next(
        (
            words
            for words in (["docker-compose"], ["docker", "compose"])
            if shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0
        ),
        None,
    )
    if words is None:
        pytest.skip("neither docker-compose nor docker compose on this machine")
    named = [word for file in files for word in ("-f", str(file))]
    done = subprocess.run([*words, *named, "config", "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def engine() -> Iterator[container_lab.Engine]:
    """Have an engine with the cpu image: eight gigabytes, and a quarter of an hour on two cores."""
    place = Path(os.environ.get("CXRDIST_CONTAINERS", "/var/tmp"))
    if reason := container_lab.missing(place):
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="cxrdist-", dir=place))
    with container_lab.engine(folder) as made:
        made.build("cpu")
        yield made


def inside(engine: container_lab.Engine, *words: str, image: str = CPU, limit_s: float = 300) -> str:
    """Run `words` in a new container that has no network."""
    alone = ("--rm", "--network=none", "--shm-size=2g", "--pids-limit=-1")
    return engine.podman("run", *alone, image, *words, limit_s=limit_s)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_image_answers_as_its_readme_says(engine: container_lab.Engine) -> None:
    facts = engine.facts(CPU)
    assert facts["User"] == "cxrdist"
    assert facts["Healthcheck"]["Test"][-1].endswith("health.sh")
    assert inside(engine, "id", "-u").strip() == "1000"
    assert "doctor" in inside(engine, "cxrdist", "--help")
    assert inside(engine, "cxrdist", "doctor").splitlines()[-1].startswith("0 problems, ")
    assert "/opt/cxrdist/.venv/bin/ray" in inside(engine, "bash", "-lc", "command -v ray")
    assert inside(engine, "docker/health.sh").strip() == "well"
    left = "cat /run/secrets/* /etc/pip.conf; find /home /opt/cxrdist/runs /run /tmp /var -name '*.whl'"
    assert not inside(engine, "sh", "-c", f"({left}) 2>/dev/null; true")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_demo_runs_in_the_image_without_a_network(engine: container_lab.Engine) -> None:
    assert "checks of rigor passed" in inside(engine, "make", "demo", limit_s=3000)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_cluster_of_the_compose_file_ends_its_job_with_a_report(engine: container_lab.Engine) -> None:
    if shutil.which("podman-compose") is None:
        pytest.skip("no podman-compose on this machine")
    engine.compose("up", "-d", "--no-build", "head", "worker1", "worker2")
    for service in ("head", "worker1", "worker2"):
        engine.wait_until_well(service)
    printed = engine.compose("run", "--rm", "--no-deps", "job", "docker/demo.sh", limit_s=3000)
    assert "checks of rigor passed" in printed
    token = engine.compose("exec", "head", "cat", "/home/cxrdist/.ray/auth_token").split()[-1]
    processes = engine.compose("exec", "head", "ps", "axww", "-o", "args")
    assert token not in processes
    engine.compose("down", "--volumes")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_change_of_the_code_makes_the_last_layer_again_and_no_other(
    engine: container_lab.Engine, tmp_path: Path
) -> None:
    before = engine.facts(CPU)["RootFS"]["Layers"]
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache", ".hypothesis"))
    with (checkout / "cxrdist" / "seeds.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    changed = engine.build("cpu", "--build-arg", "REVISION=other", context=checkout)
    layers = engine.facts(changed)["RootFS"]["Layers"]
    assert layers[:-1] == before[:-1]
    assert layers[-1] != before[-1]
    assert engine.facts(changed)["Labels"]["org.opencontainers.image.revision"] == "other"
