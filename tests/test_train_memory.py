"""What a run will take is known before it is started."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from memory_process import Case

from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.dryrun import imagine, profile_pass
from cxrdist.train.host_memory import available_host_memory
from cxrdist.train.memory import GIB, MIB, RankMemory, plan_memory

WITHIN = 0.15
"""Of what is taken."""

EXPERIMENT = {
    "OMP_NUM_THREADS": "1",
    # glibc keeps small freed blocks, and after the first free of a large one larger ones as well: what it keeps is
    # none of the engine's.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def planned(case: Case) -> RankMemory:
    train = case.train_config
    task = imagine(case.task)
    if train.activation_checkpointing:
        task.model.net.set_grad_checkpointing(True)
    passed = profile_pass(task, case.batch, case.micro_batch_size, precision=train.precision)
    return plan_memory(task, passed, train=train, optim=case.optim_config, world_size=case.ranks)


def taken(case: Case) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).parent / "memory_process.py"), json.dumps(asdict(case))]
    world = {"WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | EXPERIMENT | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(case.ranks)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * case.ranks, outputs[0][1][-2000:]
    return int(json.loads(outputs[0][0].splitlines()[-1])["grown"])


def check(case: Case) -> None:
    plan, took = planned(case), taken(case)
    share = plan.on_cpu / took - 1
    print(f"{case.name}: planned {plan.on_cpu / MIB:.0f} MiB, taken {took / MIB:.0f} MiB, {share:+.1%}")
    assert abs(share) <= WITHIN


VIT_B = "vit_base_patch16_224"
LOW = {"precision": "bf16"}
AGAIN = {"activation_checkpointing": True}
MEAN = {"ema_decay": 0.99}
CASES = [
    Case("stage 0, fp32", micro_batch_size=16),
    Case("stage 0, bf16, checkpointing", micro_batch_size=16, train=LOW | AGAIN),
    Case("stage 1, fp32, accumulated", accumulation=2, train={"zero_stage": 1}),
    Case("stage 2, bf16, ViT-B, mean", VIT_B, 2, train={"zero_stage": 2} | LOW | MEAN),
    Case("2 ranks, stage 3, bf16, ViT-B", VIT_B, 4, 1, 2, train={"zero_stage": 3} | LOW),
    Case("stage 3, fp32, ViT-B, parameters offloaded", VIT_B, 4, train={"zero_stage": 3, "offload": "parameters"}),
]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not say what was taken")
def test_what_is_planned_is_what_a_run_takes() -> None:
    check(CASES[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*CASES[:2], *CASES[3:-1], pytest.param(CASES[-1], marks=pytest.mark.long)], ids=lambda case: case.name
)
def test_what_is_planned_is_what_a_run_takes_under_every_stage(case: Case) -> None:
    check(case)


def test_what_is_divided_among_ranks_shrinks_with_them_and_what_is_offloaded_leaves_the_gpu() -> None:
    task = imagine(CASES[0].task)
    passed = profile_pass(task, CASES[0].batch, 2, precision="bf16")

    def on_gpu(ranks: int, **train: object) -> RankMemory:
        config = TrainConfig(global_batch_size=2 * ranks, precision="bf16", ema_decay=0.9, **train)  # type: ignore[arg-type]
        return plan_memory(task, passed, train=config, optim=OptimConfig(), world_size=ranks, on_gpu=True)

    for stage in (1, 2, 3):
        one, eight = (on_gpu(ranks, zero_stage=stage) for ranks in (1, 8))
        for part in ("masters", "optimizer", "ema"):
            assert getattr(eight.device, part) == pytest.approx(getattr(one.device, part) / 8, rel=0.01)
        assert eight.host.snapshot == pytest.approx(one.host.snapshot / 8, rel=0.01)
        assert eight.checkpoint == pytest.approx(one.checkpoint, rel=0.01)
        offloaded = on_gpu(8, zero_stage=stage, offload="optimizer")
        assert offloaded.device.optimizer == offloaded.device.masters == 0
        assert offloaded.host.optimizer == eight.device.optimizer
    assert on_gpu(8, zero_stage=0).device.optimizer == on_gpu(1, zero_stage=0).device.optimizer
    assert on_gpu(8, checkpoint_in_background=False).host.snapshot == 0


def machine(root: Path, *, free: int, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a tree with ``/proc`` and control groups."""
    files = files | {
        "proc/meminfo": f"MemTotal: 999999999 kB\nMemAvailable: {free // 1024} kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SECOND = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST = (
    "31 22 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "32 22 0:29 {} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def test_every_control_group_up_to_the_root_limits_and_cached_files_do_not(tmp_path: Path) -> None:
    def second(job: str, step: str, *, free: int = 64 * GIB) -> int:
        files = {
            f"{place}/{name}": value
            for place, limit, used, cached in (
                ("sys/fs/cgroup/slurm/job", job, 6 * GIB, 2 * GIB),
                ("sys/fs/cgroup/slurm/job/step", step, 5 * GIB, 1 * GIB),
            )
            for name, value in {
                "memory.max": f"{limit}\n",
                "memory.current": f"{used}\n",
                "memory.stat": f"anon 1\nactive_file {GIB}\ninactive_file {cached}\n",
            }.items()
        }
        return available_host_memory(
            machine(tmp_path, free=free, groups="0::/slurm/job/step\n", mounts=SECOND, files=files)
        )

    assert second("max", "max") == 64 * GIB
    assert second(str(10 * GIB), "max") == 6 * GIB
    assert second("max", str(10 * GIB)) == 6 * GIB
    assert second(str(10 * GIB), str(7 * GIB)) == 3 * GIB
    assert second(str(10 * GIB), "max", free=2 * GIB) == 2 * GIB
    assert second(str(3 * GIB), "max") == 0


@pytest.mark.parametrize(
    ("mounted", "path", "folder"),
    [
        ("/", "/slurm/job", "slurm/job"),
        ("/", "/slurm/job", "slurm"),
        ("/docker/abc", "/docker/abc", ""),  # a container without a namespace of groups
        ("/docker/abc", "/docker/abc/step", "step"),
        ("/docker/abc", "/elsewhere", ""),
    ],
)
def test_the_groups_of_version_1_limit_too(tmp_path: Path, mounted: str, path: str, folder: str) -> None:
    files = {
        f"sys/fs/cgroup/memory/{folder}/{name}": value
        for name, value in {
            "memory.limit_in_bytes": str(10 * GIB),
            "memory.usage_in_bytes": str(8 * GIB),
            "memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}\n",
        }.items()
    }
    groups = f"9:cpu:/other\n4:memory:{path}\n0::/\n"
    root = machine(tmp_path, free=64 * GIB, groups=groups, mounts=FIRST.format(mounted), files=files)
    assert available_host_memory(root) == 3 * GIB


def test_a_machine_without_control_groups_gives_what_it_has(tmp_path: Path) -> None:
    root = machine(tmp_path, free=3 * GIB, groups="", mounts="", files={})
    assert available_host_memory(root) == 3 * GIB
    (root / "proc/self/cgroup").unlink()
    assert available_host_memory(root) == 3 * GIB
    assert available_host_memory(tmp_path / "not-linux") > 0
