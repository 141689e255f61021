"""Images without a registry of images: podman in a folder of its own, and a Debian base made from Debian's packages.

Nothing of the containers on this machine is touched, and `close` removes all that was made.  Three things are so
because machines for tests are containers themselves: limits are not raised above what is allowed here, runc takes mixed
versions of cgroups, and builds use the host's network, with its certificates and its pip settings.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit

ROOT = Path(__file__).parents[1]
BASE = "localhost/debian:bookworm"
TOOLKIT = "localhost/cuda:stand-in"
NEEDED_BYTES = 25 * 2**30
PROGRAMS = ("podman", "runc", "netavark", "aardvark-dns", "debootstrap", "ip", "nsenter")
PLACES = ("/usr/lib/podman", "/usr/libexec/podman")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
RELEASE = "bookworm"


def missing(folder: Path) -> str | None:
    """Return why no image can be built in `folder`, or None."""
    if os.geteuid() != 0:
        return "not root: debootstrap and network namespaces need it"
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin", *PLACES))
    lacking = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if lacking:
        return f"no {', '.join(lacking)} on this machine"
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        return f"{free / 2**30:.0f} GiB are free where the images would lie, {NEEDED_BYTES / 2**30:.0f} are needed"
    if _mirror() is None:
        return "no Debian mirror is named in /etc/apt"
    return None


def _mirror() -> str | None:
    """Return the address that this machine's own packages come from."""
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if file.is_file() and (found := re.search(r"https?://\S+/debian/?(?=\s)", file.read_text())):
            return found[0]
    return None


def _pip_settings() -> tuple[str, list[str]]:
    """Return a pip.conf with what pip is told here, and the folders of this machine that it names."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^(?:global|user|site|:env:)\.(index-url|extra-index-url|find-links)='(.*)'$", told, re.M))
    lines = ["[global]", "cert = /run/secrets/ca", *(f"{name} = {value}" for name, value in found.items())]
    places = [word.removeprefix("file://") for value in found.values() for word in value.split()]
    parents = {re.sub(r"/simple/?$", "", place) for place in places if place.startswith("/")}
    return "\n".join(lines) + "\n", sorted(place for place in parents if Path(place).is_dir())


class Engine:
    """Podman with storage, settings and networks in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Write the engine's settings; `start` makes the base image."""
        self.folder, self.space = folder, f"cxrdist{os.getpid()}"
        limit = getrlimit(RLIMIT_NOFILE)[1]
        for name in ("networks", "tmp"):
            (folder / name).mkdir(parents=True)
        (folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["nofile={limit}:{limit}", "nproc=20000:20000"]\nnetns = "host"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n'
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
        )
        settings, self.places = _pip_settings()
        (folder / "pip.conf").write_text(settings)
        # An engine that is given one limit sets the others to what it finds right, which is more than is allowed here.
        few = {"ulimits": {"nproc": {"soft": 20000, "hard": 20000}}}
        services = dict.fromkeys(("head", "worker1", "worker2", "job"), few)
        (folder / "limits.json").write_text(json.dumps({"services": services}))
        self.environment = os.environ | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "TMPDIR": str(folder / "tmp"),
            "NOFILE": str(limit),
            "CXRDIST_IMAGE": "localhost/cxrdist:cpu",
        }

    def start(self) -> None:
        """Make the base image, and a network that leads nowhere."""
        self._host(["ip", "netns", "add", self.space], 30)
        self._host(["ip", "-n", self.space, "link", "set", "lo", "up"], 30)
        root = self.folder / "base"
        include = "--include=ca-certificates"
        self._host(["debootstrap", "--variant=minbase", include, RELEASE, str(root), str(_mirror())], 600)
        self._host(["bash", "-c", f"tar -C {root} -c . | podman import -q - {BASE}"], 300)
        shutil.rmtree(root)

    def _host(self, words: Sequence[str], limit_s: float) -> str:
        done = subprocess.run(
            ["nice", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[
            -6000:
        ]
        return done.stdout

    def podman(self, *words: str, limit_s: float = 120) -> str:
        """Return what podman prints; an exit code that is not 0 fails the test and shows all."""
        return self._host(["podman", *words], limit_s)

    def build(self, target: str, *options: str, context: Path = ROOT, limit_s: float = 2400) -> str:
        """Build the Dockerfile's `target` of the checkout `context` on the stand-ins; return the image's name."""
        image = f"localhost/cxrdist:{target}"
        mounts = [word for place in self.places for word in ("-v", f"{place}:{place}:ro")]
        secrets = ["--secret", f"id=pipconf,src={self.folder}/pip.conf", "--secret", f"id=ca,src={CERTIFICATES}"]
        bases = ["--build-arg", f"BASE={BASE}", "--build-arg", f"GPU_BASE={TOOLKIT}"]
        place = [
            "--pull=never",
            "--format",
            "docker",
            "-f",
            f"{context}/docker/Dockerfile",
            "--target",
            target,
            "-t",
            image,
        ]
        self.podman("build", *place, *bases, *secrets, *mounts, *options, str(context), limit_s=limit_s)
        return image

    def compose(self, *words: str, limit_s: float = 120) -> str:
        """Return what podman-compose prints, with docker/compose.yaml, in a network of its own."""
        inside = ["nsenter", f"--net=/run/netns/{self.space}", "env", "-C", str(ROOT)]
        files = ["-f", "docker/compose.yaml", "-f", str(self.folder / "limits.json")]
        return self._host([*inside, "podman-compose", "-p", self.space, *files, *words], limit_s)

    def wait_until_well(self, service: str, limit_s: float = 300) -> None:
        """Ask the health check of `service`; without systemd podman asks nobody by itself."""
        ends = time.monotonic() + limit_s
        words = ["podman", "healthcheck", "run", f"{self.space}_{service}_1"]
        while subprocess.run(words, env=self.environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < ends, f"{service} is not well after {limit_s} s"
            time.sleep(2)

    def facts(self, image: str) -> dict:
        """Return the configuration of `image`."""
        return json.loads(self.podman("image", "inspect", image))[0]

    def close(self) -> None:
        """Remove containers, images, the network and the folder."""
        subprocess.run(["podman", "system", "reset", "-f"], env=self.environment, capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Have an engine for the block; whatever it made is gone afterwards."""
    made = Engine(folder)
    try:
        made.start()
        yield made
    finally:
        made.close()
