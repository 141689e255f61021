"""SLURM on hosts of `lab`: a controller and nodes with GPUs that are none, in a folder of their own.

The machine's own SLURM, if it has one, is never asked: every command here gets the folder's configuration.
"""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lab

START_S = 60
GPUS = 2
CPUS = 16
CONFIGURATION = """
ClusterName=lab
SlurmctldHost=host1(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
FirstJobId={first_job}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=300
MailProg=/bin/true
MpiDefault=none
GresTypes=gpu
NodeName=host[2-{last}] NodeAddr=10.77.0.[2-{last}] CPUs={cpus} CoresPerSocket={cpus} RealMemory=4000 Gres=gpu:{gpus}
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller on the first host and a node on each of the others."""

    def __init__(self, folder: Path, hosts: lab.Lab, nodes: int) -> None:
        """Start it; paths in `folder` must be short: they hold sockets."""
        self.folder, self.hosts, self.nodes = folder, hosts, nodes
        for name in ("munge", "state", *(f"host{number}" for number in range(2, nodes + 2))):
            (folder / name).mkdir()
        key = folder / "munge/key"
        key.write_bytes(random.randbytes(1024))
        key.chmod(0o400)
        for number in range(GPUS):  # nothing but a device will do: these are twins of /dev/null
            subprocess.run(["mknod", folder / f"nvidia{number}", "c", "1", "3"], check=True)
        text = CONFIGURATION.format(
            folder=folder, last=nodes + 1, cpus=CPUS, gpus=GPUS, first_job=random.SystemRandom().randrange(10**5, 10**6)
        )
        (folder / "slurm.conf").write_text(text, encoding="ascii")
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-{GPUS - 1}]\n", encoding="ascii")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="ascii")
        files = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
        self.run("munged", "--force", f"--socket={folder}/munge/sock", *files)
        self.run("slurmctld", "-c")
        for number in range(2, nodes + 2):
            self.start_node(number)
        self.wait(lambda: self.run("sinfo", "-h", "-N", "-t", "idle").count("\n") == nodes)

    def start_node(self, number: int) -> None:
        """Start SLURM's service on a host."""
        self.hosts[number].run("slurmd", env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1", "TMPDIR": "/tmp"}

    def run(self, *command: str | Path) -> str:
        """Run a command on the controller; return what it prints."""
        return self.hosts[1].run(*command, env=self.environment, seconds=START_S)

    def submit(self, *command: str | Path) -> str:
        """Submit a batch script; return the job's number."""
        return self.run("sbatch", "--parsable", f"--output={self.folder}/%j.out", *command).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM tells of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "-o", "show", "job", number)))

    def said(self, number: str) -> str:
        """Return what a job has printed."""
        file = self.folder / f"{number}.out"
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def wait_for_end(self, number: str, seconds: float = 600) -> tuple[str, str]:
        """Wait until a job is over; return its state and its exit code with the signal, ``FAILED`` and ``1:0``."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait(lambda: self.job(number)["JobState"] in over, number, seconds)
        told = self.job(number)
        return told["JobState"], told["ExitCode"]

    def wait_until_queued(self, number: str, seconds: float = 300) -> None:
        """Wait until a job waits for its next start."""
        self.wait(lambda: self.job(number)["JobState"] == "PENDING", number, seconds)

    def start_now(self, number: str) -> None:
        """Let a job that has gone back into the queue start now: SLURM itself would let it wait for minutes."""
        time.sleep(2)  # SLURM counts in seconds what it has revoked: a start in the same second would be refused
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def wait(self, condition: Callable[[], object], number: str = "", seconds: float = START_S) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.run("squeue"), self.run("sinfo"), number and self.said(number))
            time.sleep(0.2)


@contextmanager
def slurm(folder: Path, nodes: int) -> Iterator[Slurm]:
    """Have SLURM with so many nodes for the block."""
    with lab.lab(folder, nodes + 1) as hosts:
        yield Slurm(folder, hosts, nodes)


def why_not() -> str:
    """Return why it cannot be had here; empty if it can."""
    for program in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "mknod"):
        if shutil.which(program) is None:
            return f"SLURM needs the program `{program}`"
    return lab.why_not()
