"""What breaks first on a new cluster is told before it breaks, with what to type."""

import os
import re
import resource
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom.uid import JPEG2000Lossless

from cxrdist.doctor import folders, libraries, machine, measure, network, programs
from cxrdist.doctor.finding import look
from cxrdist.world import is_own

GIB = 2**30
ANY = resource.RLIM_INFINITY


def found(probe):
    return {finding.name: finding for finding in look("probe", probe)}


@pytest.mark.parametrize(
    ("soft", "hard", "state", "remedy"),
    [
        (65_536, 65_536, "ok", ""),
        (256, 20_000, "problem", "`ulimit -n 20000`"),
        (1024, ANY, "note", "`ulimit -n 65536`"),
        (256, 256, "problem", "--ulimit nofile=65536:65536"),  # raising it to 256 would be no help
    ],
)
def test_a_limit_of_files_is_raised_where_it_can_be(soft, hard, state, remedy):
    finding = machine.judge_open_files(soft, hard)
    assert finding.state == state and remedy in finding.remedy


def test_a_low_limit_that_cannot_be_raised_is_told_of_a_real_process():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256));"
        "from cxrdist.doctor import machine; print(*machine.limits(), sep='\\n')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "256 (may be raised to 256)" in told and "limits.conf" in told and "problem" in told


@pytest.mark.parametrize("folder", ["", "pids"])
def test_a_containers_limit_of_processes_counts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "GROUPS", tmp_path)
    monkeypatch.setattr(measure, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "pids.max").write_text("2048\n")
    finding = found(machine.limits)["limit of processes"]
    assert finding.state == "note" and "2048" in finding.found and "--pids-limit" in finding.remedy


@pytest.mark.parametrize(
    ("cores", "by_quota", "threads", "state", "told"),
    [
        ((64, 64), False, "", "ok", "64 of 64"),
        ((64, 8), False, "8", "ok", "OMP_NUM_THREADS=8"),
        ((64, 8), True, "", "note", "OMP_NUM_THREADS=8"),
        ((64, 8), True, "4,2", "ok", "OMP_NUM_THREADS=4"),
        ((64, 8), False, "64", "note", "OMP_NUM_THREADS=8"),
        ((64, 8), False, "eight", "note", "OMP_NUM_THREADS=8"),
        ((64, 1), False, "", "note", "--cpus-per-task"),  # what Slurm gives where nobody asks
        ((2, 1), False, "", "ok", "1 of 2"),
    ],
)
def test_threads_fit_the_cores(cores, by_quota, threads, state, told):
    finding = machine.judge_cores(*cores, by_quota=by_quota, threads=threads)
    assert finding.state == state and told in finding.found + finding.remedy


def test_clocks_that_nothing_keeps_right_or_that_are_slow_are_told():
    now = machine.RELEASED + timedelta(days=30)
    assert machine.judge_clock(now, 0.05, 0.05, set_by_network=True, source="tsc").state == "ok"
    assert machine.judge_clock(now, 0.05, 0.05, set_by_network=None, source="").state == "ok"
    assert "set-ntp" in machine.judge_clock(now, 0.05, 0.05, set_by_network=False).remedy
    assert "clocksource=tsc" in machine.judge_clock(now, 0.05, 0.05, source="hpet").remedy
    assert "jumped by +30 s" in machine.judge_clock(now, 0.05, 30.05).found
    assert machine.judge_clock(now, 0.0, 0.05).state == "problem"
    assert machine.judge_clock(machine.RELEASED - timedelta(days=1), 0.05, 0.05).state == "problem"
    assert measure.clock_is_set() in (True, False, None)


@pytest.mark.parametrize(
    ("total", "free", "fault", "state", "remedy"),
    [
        (8 * GIB, 8 * GIB, "", "ok", ""),
        (64 * 2**20, 64 * 2**20, "", "problem", "--shm-size"),
        (1 * GIB, 1 * GIB, "", "note", "--shm-size"),
        (8 * GIB, 1 * GIB, "", "note", "killed have left"),
        (8 * GIB, 1024, "No space left on device", "problem", "killed have left"),
        (8 * GIB, 8 * GIB, "Permission denied", "problem", "chmod 1777"),
    ],
)
def test_shared_memory_that_is_small_full_or_closed_has_each_its_remedy(total, free, fault, state, remedy):
    finding = folders.judge_shared_memory(total, free, fault)
    assert finding.state == state and remedy in finding.remedy


def test_a_file_system_without_room_for_more_files_is_a_problem():
    assert folders.judge_folder("x folder", "X", "", 99 * GIB, None).state == "ok"
    finding = folders.judge_folder("x folder", "X", "", 99 * GIB, 49)
    assert finding.state == "problem" and "only 49 more files" in finding.found and "du --inodes" in finding.remedy


def test_caches_and_temporary_folders_that_refuse_files_are_told_by_their_variable(monkeypatch):
    for name in ("HF_HOME", "TRITON_CACHE_DIR", "TMPDIR"):
        monkeypatch.setenv(name, "/proc/self")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    disk, temporary = found(folders.disk), found(folders.temporary)
    assert disk["disk: TRITON_CACHE_DIR"].state == "problem"
    assert "`unset TRITON_CACHE_DIR`" in disk["disk: TRITON_CACHE_DIR"].remedy
    assert disk["disk: HF_HOME"].state == "note"  # weights may lie where nobody writes
    assert temporary["TMPDIR"].state == "problem" and "export TMPDIR=" in temporary["TMPDIR"].remedy
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(folders, "USUAL", Path("/proc/self"))
    assert "/tmp is not writable" in found(folders.temporary)["temporary folder"].found


def test_a_path_that_leaves_ray_no_room_for_its_sockets_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("a" * 40)))
    assert "RAY_TMPDIR=/tmp" in found(folders.temporary)["temporary folder of Ray"].remedy
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert not found(folders.temporary)
    # The longest of the names below it that Ray makes.
    below = "/ray/session_2026-11-22_19-29-52_540452_4194304/sockets/plasma_store"
    assert folders.LONGEST_TEMPORARY + len(below) <= 107


def test_the_lock_of_a_killed_build_is_found_and_the_remedy_removes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, age in (("cpu_adam", 7200), ("fresh", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        then = (tmp_path / name / "lock").stat().st_mtime - age
        os.utime(tmp_path / name / "lock", (then, then))
    finding = found(folders.building)["torch extensions"]
    assert finding.state == "problem" and str(tmp_path) not in str(finding)
    typed = re.search(r"`(.*)`", finding.remedy).group(1)
    subprocess.run(["bash", "-c", typed], check=True)
    assert "torch extensions" not in found(folders.building) and (tmp_path / "fresh" / "lock").exists()


def test_caches_of_somebody_else_are_findings_with_a_remedy_of_their_own(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "closed"))
    monkeypatch.setattr(Path, "glob", refuse)  # a root user would be let in
    monkeypatch.setattr(Path, "is_dir", refuse)
    assert "building" not in found(folders.building)
    [finding] = found(libraries.weights).values()
    assert finding.state == "problem" and "HF_HOME" in finding.remedy and str(tmp_path) not in str(finding)


@pytest.mark.parametrize(
    ("ours", "state", "told"),
    [
        ({"10.0.0.5": True}, "ok", "an address of this machine"),
        ({"10.0.0.5": True, "127.0.1.1": True}, "ok", ""),
        ({"127.0.1.1": True}, "note", "/etc/hosts"),  # as Debian installs itself
        ({"::1": True, "127.0.0.1": True}, "note", "/etc/hosts"),
        ({"10.0.0.9": False}, "note", "does not have"),
        ({}, "note", "leads to no address"),
    ],
)
def test_a_name_that_others_cannot_use_is_told(ours, state, told):
    finding = network.judge_name(ours)
    assert finding.state == state and told in finding.found + finding.remedy
    assert not any(address in finding.found for address in ours)


def test_addresses_of_this_machine_are_known():
    assert is_own("127.0.0.1") and not is_own("192.0.2.254")
    assert not [*{socket.gethostname()} & set(str(found(network.name)).split())]


@pytest.mark.parametrize(
    ("interfaces", "nccl", "gloo", "state", "told"),
    [
        (["lo", "eth0", "docker0"], "", "", "ok", "eth0"),
        (["lo"], "", "", "ok", "no other"),
        (["lo", "eth0", "ib0"], "", "", "note", "export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0"),
        (["lo", "eth0", "ib0"], "ib", "ib0", "ok", "eth0, ib0"),
        (["lo", "eth0", "ib0"], "ib", "ib", "problem", "`unset GLOO_SOCKET_IFNAME`"),  # gloo takes whole names alone
        (["lo", "eth0"], "=eth", "eth0", "problem", "`unset NCCL_SOCKET_IFNAME`"),
        (["lo", "eth0"], "^docker,lo", "eth0", "ok", "eth0"),
        (["lo", "eth0"], "ib0", "ib0", "problem", "`unset NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME`"),
        (["enxb827eb123456", "eth0"], "", "", "note", "enx..."),
    ],
)
def test_of_several_networks_one_is_named_and_it_is_there(interfaces, nccl, gloo, state, told):
    finding = network.judge_networks(interfaces, {"NCCL_SOCKET_IFNAME": nccl, "GLOO_SOCKET_IFNAME": gloo})
    assert finding.state == state and told in finding.found + finding.remedy
    assert "b827eb" not in str(finding)  # an address in a name


def test_infiniband_may_lock_memory_and_be_opened_or_is_told(tmp_path, monkeypatch):
    def judge(*facts):
        return {finding.name: finding for finding in network.judge_infiniband(*facts)}

    assert set(judge({}, False, 65_536, 65_536)) == {"limit of locked memory"}
    assert {one.state for one in judge({"mlx5_0": True}, True, ANY, ANY).values()} == {"ok"}
    assert "ulimit -l unlimited" in judge({"mlx5_0": True}, True, 65_536, ANY)["limit of locked memory"].remedy
    assert "memlock=-1" in judge({"mlx5_0": True}, True, 65_536, 65_536)["limit of locked memory"].remedy
    # Where TCP is taken, nothing needs the memory.
    for up, opens, state in ((True, True, "problem"), (True, False, "note"), (False, True, "note")):
        assert judge({"mlx5_0": up}, opens, 65_536, 65_536)["limit of locked memory"].state == state
    assert "/dev/infiniband" in judge({"mlx5_0": True}, False, ANY, ANY)["InfiniBand"].remedy
    assert "ibstat" in judge({"mlx5_0": False}, True, ANY, ANY)["InfiniBand"].remedy
    monkeypatch.setattr(network, "INFINIBAND", tmp_path)  # where only the kernel's module is
    assert network._ports() == {}
    for number, state in enumerate(("4: ACTIVE", "1: DOWN")):
        port = tmp_path / f"mlx5_{number}" / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
    assert network._ports() == {"mlx5_0": True, "mlx5_1": False}


def test_launchers_of_another_python_are_told(tmp_path, monkeypatch):
    beside, other = tmp_path / "here", tmp_path / "conda"
    for folder in (beside, other):
        folder.mkdir()
        for name in programs.OWN:
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    for path, state, told in (
        (f"{beside}:{other}", "ok", "torchrun"),
        (f"{other}:{beside}", "note", "another Python"),
        (str(tmp_path), "note", "not in PATH"),
    ):
        monkeypatch.setenv("PATH", path)
        [finding] = found(programs.launchers).values()
        assert finding.state == state and told in finding.found, finding
    (beside / "ray").unlink()
    [finding] = found(programs.launchers).values()
    assert finding.state == "note" and finding.found == "without ray"


def test_operators_cannot_be_built_without_a_compiler():
    fits = {"async_io": False, "cpu_adam": True, "fused_adam": True}
    assert libraries.judge_operators(fits, (), ()).state == "ok"
    finding = libraries.judge_operators(fits, (), ["a C++ compiler"])
    assert finding.state == "note" and "none can be built" in finding.found and "g++" in finding.remedy
    assert libraries.judge_operators(fits, ("cpu_adam",), ["ninja"]).state == "ok"


def test_gpus_without_a_working_driver_are_not_called_none(tmp_path, monkeypatch):
    assert libraries.judge_no_gpus(0, None).found.startswith("none")
    assert "--gpus all" in libraries.judge_no_gpus(8, None).remedy
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding = libraries.judge_no_gpus(8, measure.gpu_fault())
    assert finding.state == "problem" and "version mismatch" in finding.found and "restart" in finding.remedy
    for number, (maker, kind) in enumerate((("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x1a03", "0x030000"))):
        device = tmp_path / "bus" / str(number)
        device.mkdir(parents=True)
        (device / "vendor").write_text(maker)
        (device / "class").write_text(kind)
    monkeypatch.setattr(measure, "DEVICES", tmp_path / "bus")
    assert measure.gpus_on_bus() == 1  # neither its sound nor the server's own screen


@pytest.mark.parametrize("how", ["fails", "zeros"])
def test_a_decoder_that_loads_and_decodes_wrongly_is_a_problem(how, monkeypatch):
    from pydicom.pixels.decoders import pylibjpeg  # noqa: PLC0415

    def broken(src, **options):
        if how == "fails":
            raise RuntimeError("undefined symbol")
        return bytearray(64 * 64 * 2)  # the size of the image

    monkeypatch.setitem(pylibjpeg._DECODERS, JPEG2000Lossless, {"openjpeg": broken})
    [finding] = found(libraries.decoders).values()
    assert finding.state == "problem" and "JPEG 2000" in finding.found and "pip install" in finding.remedy
    assert ("wrong pixels" if how == "zeros" else "undefined symbol") in finding.found and "RLE" not in finding.found
