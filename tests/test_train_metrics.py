"""What a run tells of itself: lines, TensorBoard, throughput, and trackers, which are the real libraries, offline."""

import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from ranks import in_children, on_two_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrdist.config import write_yaml
from cxrdist.errors import UsageError, UserError
from cxrdist.train import trackers
from cxrdist.train.metrics import MetricsLog, read_metrics
from cxrdist.train.run_folder import RunFolder
from cxrdist.train.throughput import Throughput, note, peak_flops
from cxrdist.train.trackers import check_trackers
from cxrdist.world import World

TRAIN = {
    "loss": 0.5,
    "lr": 1e-3,
    "grad_norm": 0.8,
    "loss_scale": 65536.0,
    "samples_per_sec": 812.0,
    "data_wait": 0.01,
    "micro_step_s": 0.02,
    "mfu": 0.43,
    "device_peak_gib": 61.0,
    "host_peak_gib": 3.5,
}
VAL = {"loss": 0.4, "auroc_macro": 0.75, "auroc": {"effusion": 0.8, "pleural_other": None}}
TAGS = {
    "train/loss", "train/lr", "train/grad_norm", "train/loss_scale", "throughput/samples_per_sec",
    "throughput/device/mfu", "time/data_wait", "time/micro_step_s", "memory/device_peak_gib", "memory/host_peak_gib",
    "val/loss", "val/auroc_macro", "val/auroc/effusion",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "runs" / "vit-toy")
    run.path.mkdir(parents=True)
    write_yaml({"seed": 7, "optim": {"lr": 0.001}, "findings": ["effusion"]}, run.config)
    return run


def test_values_stand_under_the_tags_that_people_look_for(folder):
    log = MetricsLog(folder, step=0, enabled=True)
    log.write(1, "train", TRAIN)
    log.write(1, "val", VAL)
    log.close()
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    assert set(board.Tags()["scalars"]) == TAGS
    assert board.Scalars("throughput/device/mfu")[0].value == pytest.approx(0.43)
    lines = [{name: value for name, value in line.items() if name != "time"} for line in read_metrics(folder.metrics)]
    assert lines == [{"step": 1, "kind": "train", **TRAIN}, {"step": 1, "kind": "val", **VAL}]


def test_a_number_that_is_not_finite_is_null_and_no_scalar(folder):
    log = MetricsLog(folder, step=0, enabled=True)
    log.write(1, "train", {"loss": 1.0, "grad_norm": math.inf})
    log.write(1, "val", {"auroc": {"effusion": math.nan}})
    log.close()
    assert "Infinity" not in folder.metrics.read_text() and "NaN" not in folder.metrics.read_text()
    lines = read_metrics(folder.metrics)
    assert lines[0]["grad_norm"] is None and lines[1]["auroc"] == {"effusion": None}
    assert EventAccumulator(str(folder.tensorboard)).Reload().Tags()["scalars"] == ["train/loss"]


def test_only_rank_0_writes(folder):
    log = MetricsLog(folder, step=0, enabled=False, trackers=["wandb"])
    log.write(1, "train", TRAIN)
    log.close()
    assert not folder.metrics.exists() and not folder.tensorboard.exists()


@pytest.mark.parametrize("spare", [0, 1000])
def test_a_full_disk_at_a_line_is_a_sentence_and_the_lines_before_it_are_resumed(folder, spare):
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = MetricsLog(folder, step=0, enabled=True)
        log.write(1, "train", {"loss": 1.0})
        room = folder.metrics.stat().st_size + spare
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with pytest.raises(
            UserError, match=r"must be writable, got 'File too large' \[in vit-toy\]. Make room, then con"
        ):
            for step in range(2, 1000):
                log.write(step, "train", {"loss": 1.0 / step})
        log.close()

    assert in_children(work) == [0]
    assert read_metrics(folder.metrics)[0]["loss"] == 1.0
    log = MetricsLog(folder, step=1, enabled=True)
    log.write(2, "train", {"loss": 0.5})
    log.close()
    assert [line["step"] for line in read_metrics(folder.metrics)] == [1, 2]


TRACKED = """
import json, sys
from pathlib import Path

attempts = []
def watch(event, args):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and not isinstance(args[1], (str, bytes))):
        attempts.append(repr(args[1:] if event == "socket.connect" else args[:1]))
sys.addaudithook(watch)

from cxrdist.train.run_folder import RunFolder
from cxrdist.train.trackers import Trackers

folder, start, stop = RunFolder(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
scalars = json.loads(sys.argv[4])
trackers = Trackers(folder, ["mlflow", "wandb"])
for step in range(start + 1, stop + 1):
    trackers.log(step, scalars | {"train/loss": 1 / step})
trackers.close(finished=stop == 4)
assert not attempts, attempts
"""


def tracked(folder: RunFolder, start: int, stop: int, **environment: str) -> subprocess.CompletedProcess:
    values = json.dumps(dict.fromkeys(TAGS, 0.8))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-c", TRACKED, str(folder.path), str(start), str(stop), values],
        env=inherited | environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Return the folder of a run of steps 1 to 3 that was resumed after step 2, and what called out to a proxy."""
    home = tmp_path_factory.mktemp("home")
    run = RunFolder(tmp_path_factory.mktemp("runs") / "vit-toy")
    run.path.mkdir()
    write_yaml({"seed": 7, "optim": {"lr": 0.001}, "findings": ["effusion"]}, run.config)
    with socket.socket() as proxy:  # the libraries' helpers in other languages would ask it
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), address)
        for start, stop in ((0, 3), (2, 4)):
            done = tracked(run, start, stop, HOME=str(home), NO_PROXY="", no_proxy="", **environment)
            assert done.returncode == 0, done.stderr
            assert "Training goes on without" not in done.stderr
        with pytest.raises(BlockingIOError):
            proxy.accept()
    return run


def test_mlflow_gets_every_value_and_a_resumed_run_goes_on_in_its_own(twice, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # noqa: PLC0415

    client = MlflowClient(tracking_uri=(twice.path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("cxrdist")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "vit-toy"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7", "optim.lr": "0.001", "findings": "['effusion']"}
    assert set(run.data.metrics) == TAGS
    losses = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "train/loss")}
    assert losses == {step: 1 / step for step in (1, 2, 3, 4)}
    assert [one.value for one in client.get_metric_history(run.info.run_id, "val/auroc/effusion")] == [0.8] * 5


def test_wandb_gets_every_value_and_a_resumed_run_goes_on_in_its_own(twice):
    files = sorted((twice.path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # of two processes, for one run
    known = (twice.path / "trackers.json").read_text()
    assert str(twice.path) not in known
    run_id = json.loads(known)["wandb"]["run_id"]
    seen = {}
    for file in files:
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert (record.run.run_id, record.run.display_name, record.run.project) == (
                    run_id,
                    "vit-toy",
                    "cxrdist",
                )
                assert not record.run.host
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert (config["seed"], config["optim"]) == (7, {"lr": 0.001})
            if kind == "history":
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                for name in row.keys() - {"step"}:
                    seen.setdefault(name, {})[row["step"]] = row[name]
    assert {name for name in seen if not name.startswith("_")} == TAGS
    assert seen["train/loss"] == pytest.approx({step: 1 / step for step in (1, 2, 3, 4)})


def wandb_records(path: Path) -> list:
    """Return the records of a W&B file: LevelDB's log format, blocks of 32 KiB, behind 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415

    data, at, records, part = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            record = Record()
            record.ParseFromString(part)
            records.append(record)
            part = b""
    return records


def test_a_tracker_that_is_not_installed_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"got 'wandb'. Install it with `pip install 'cxrdist\[wandb\]'`") as caught:
        check_trackers(["wandb"])
    assert caught.value.exit_code == 2
    check_trackers([])


def test_a_plain_folder_with_a_tracker_s_name_is_not_the_tracker(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert trackers.find_spec("wandb") is not None  # a package without a file, to Python
    with pytest.raises(UsageError, match="got 'wandb'"):
        check_trackers(["wandb"])


def test_a_tracker_gets_the_names_of_paths_and_no_folders_above(folder, monkeypatch):
    tree = {
        "shards": ["/data/alice/nih14", "../shared/mimic/"],
        "model": {"backbone": "timm/vit", "weights": "/home/alice/mae/model.safetensors"},
        "train": {"deepspeed": "mine/ds_config.json", "steps": 3},
        "optim": {"note": "/anything/absolute"},
    }
    write_yaml(tree, folder.config)
    assert trackers._config(folder) == {
        "shards": ["nih14", "mimic"],
        "model": {"backbone": "timm/vit", "weights": "model.safetensors"},
        "train": {"deepspeed": "ds_config.json", "steps": 3},
        "optim": {"note": "absolute"},
    }
    tree["model"]["weights"] = "timm:vit_base_patch16_224/x"
    write_yaml(tree, folder.config)
    assert trackers._config(folder)["model"]["weights"] == "timm:vit_base_patch16_224/x"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    MetricsLog(folder, step=0, enabled=True, trackers=["mlflow"]).close()
    stored = {path.name: path.read_text() for path in folder.path.glob("mlruns/*/*/params/*")}
    assert stored["shards"] == "['nih14', 'mimic']"
    assert stored["train.deepspeed"] == "ds_config.json"
    assert not any("alice" in value for value in stored.values())


def test_credentials_in_a_tracking_address_are_neither_kept_nor_told(folder, caplog, monkeypatch):
    address = "http://alice:s3cr3t@tracker.invalid/api?token=h1dd3n"
    assert trackers._fingerprint(address) == trackers._fingerprint("http://tracker.invalid/api")  # a new password
    assert trackers._fingerprint(address) != trackers._fingerprint("http://other.invalid/api")

    def refuse(folder: RunFolder) -> None:
        raise RuntimeError(f"no answer from {address}, is it there?")

    monkeypatch.setitem(trackers.START, "mlflow", refuse)
    with caplog.at_level("WARNING", logger="cxrdist"):
        MetricsLog(folder, step=0, enabled=True, trackers=["mlflow"]).close()
    assert "which failed: no answer from http://tracker.invalid/api" in caplog.text
    assert "alice" not in caplog.text and "s3cr3t" not in caplog.text and "h1dd3n" not in caplog.text


def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(folder, caplog, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    log = MetricsLog(folder, step=0, enabled=True, trackers=["mlflow"])
    log.write(1, "train", {"loss": 1.0})
    assert [path.read_text().split()[1] for path in folder.path.glob("mlruns/*/*/metrics/train/loss")] == ["1.0"]
    shutil.rmtree(folder.path / "mlruns")
    with caplog.at_level("WARNING", logger="cxrdist"):
        for step in (2, 3):
            log.write(step, "train", {"loss": 1.0})
        log.close()
    assert caplog.text.count("Training goes on without the tracker mlflow, which failed: ") == 1
    assert len(read_metrics(folder.metrics)) == 3


def test_a_tracking_server_that_is_not_there_warns_at_the_start(folder, caplog, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
    with caplog.at_level("WARNING", logger="cxrdist"):
        log = MetricsLog(folder, step=0, enabled=True, trackers=["mlflow"])
        log.write(1, "train", {"loss": 1.0})
        log.close()
    assert caplog.text.count("Training goes on without the tracker mlflow") == 1
    assert not (folder.path / "mlruns").exists()


def test_throughput_counts_steps_and_the_share_of_waiting():
    speed = Throughput(global_batch_size=10, accumulation=2, world_size=1, device=torch.device("cpu"), precision="fp32")
    for _ in range(3):
        with speed.step():
            with speed.waiting():
                time.sleep(0.01)
            time.sleep(0.03)
    time.sleep(0.2)  # a validation
    values = speed.values()
    assert set(values) == {"samples_per_sec", "data_wait", "micro_step_s", "host_peak_gib"}
    assert 0.15 < values["data_wait"] < 0.6
    assert values["samples_per_sec"] < 10 / 0.04
    assert values["micro_step_s"] >= 0.015
    assert 0.05 < values["host_peak_gib"] < 100
    with speed.step():
        time.sleep(0.01)
    assert speed.values()["data_wait"] == 0


def test_mfu_is_the_share_of_all_devices_peak_and_none_on_a_cpu():
    speed = Throughput(
        global_batch_size=100, accumulation=1, world_size=1, device=torch.device("cpu"), precision="bf16",
        flops_per_image=1e9,
    )  # fmt: skip
    assert "mfu" not in speed.values()
    speed.peak = 1e12
    speed.busy_s, speed.steps = 2.0, 10  # 500 images a second
    assert speed.values()["mfu"] == 0.5


def test_the_wait_of_the_slowest_rank_is_told(tmp_path):
    def work(world: World) -> None:
        torch.distributed.init_process_group("gloo", rank=world.rank, world_size=world.world_size)
        speed = Throughput(
            global_batch_size=10, accumulation=1, world_size=world.world_size, device=torch.device("cpu"),
            precision="fp32",
        )  # fmt: skip
        speed.busy_s, speed.waited_s, speed.steps = 1.0, 0.5 * world.rank, 1
        (tmp_path / str(world.rank)).write_text(str(speed.values()["data_wait"]))

    assert on_two_ranks(work) == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["0.5", "0.5"]


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA H100 80GB HBM3", "fp16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA L40", "bf16", 181.05),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", "fp16", 364.2),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-32GB", "fp16", 112),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA H200", "fp32", 66.9),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_name(name, precision, tflops):
    assert peak_flops(name, precision) == tflops * 1e12


def test_no_peak_is_guessed():
    assert peak_flops("NVIDIA H200", "fp32", tf32=True) == 494.7e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None  # has no such unit
    assert peak_flops("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bf16") is None  # a seventh of it
    assert peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16") is None
    assert peak_flops("Some Accelerator 1000", "bf16") is None


def test_the_progress_line_is_short_and_tells_what_is_known():
    assert note(TRAIN) == "loss 0.5000, 812 img/s, MFU 43 %, wait 1 %, grad 0.8, 61.0 GiB"
    assert note({"loss": 0.12345}) == "loss 0.1235"
    assert note({"loss": 2.0, "samples_per_sec": 12345.6, "grad_norm": None}) == "loss 2.0000, 12346 img/s"
    assert note({"samples_per_sec": 3.14159}) == "3.14 img/s"
