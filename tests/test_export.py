"""Exported models are their source: tensor by tensor, output by output, and nothing else leaves with them."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cxrdist.cli.main import run
from cxrdist.data.transforms import fit
from cxrdist.errors import UsageError, UserError
from cxrdist.models import export as exporting
from cxrdist.models.build import RadiographModel, build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.export import check_images, export_hf, hf_config, read_exported, read_source
from cxrdist.models.folder import load_model, save_model
from cxrdist.models.head import set_classifier
from cxrdist.models.knn import KnnHead
from cxrdist.models.weights import load_weights

S = 32
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "dinov2": ("vit_small_patch14_reg4_dinov2", VIT),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "resnet": ("resnet10t", {}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": [1, 1], "window_size": 4, "num_heads": [2, 2]},
    ),
}
SECRET = "DOE-JANE"


def build(family: str, *, outputs: int = 2) -> RadiographModel:
    backbone, args = SMALL[family]
    model = build_model(ModelConfig(backbone=backbone, args=args), num_classes=outputs, image_size=S, seed=3)
    with torch.no_grad():  # as after training: nothing is zero, and running statistics are not those of the start
        for value in model.net.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand(value.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def make_model(folder: Path, family: str = "vit", *, kind: str = "finetune", how: str = "pad") -> Path:
    """Write a run folder with a model in it; return the run folder."""
    findings = ["effusion", "edema"] if kind == "finetune" else ["pretrained"]
    save_model(
        build(family, outputs=len(findings)),
        folder / "model",
        backbone=SMALL[family][0],
        findings=findings,
        facts={"kind": kind, "image_size": S, "fit": how, "operator": SECRET},
    )
    return folder


def make_run_facts(run_folder: Path) -> None:
    """Write what a run leaves beside its model, with things that must not leave the house."""
    (run_folder / "config.yaml").write_text(
        f"shards: /home/{SECRET}/shards/toy\nmodel: {{weights: /home/{SECRET}/dinov2.pth}}\n"
        "optim: {name: adamw, lr: 0.0003}\ntrain: {steps: 40, precision: bf16}\nseed: 7\n"
    )
    (run_folder / "environment.json").write_text(
        json.dumps(
            {
                "cxrdist": "0.1.0",
                "platform": f"Linux-{SECRET}",
                "libraries": {"torch": "2.15.0"},
                "shard_manifests": [{"name": "toy", "sha256": "ab" * 32, "path": f"/home/{SECRET}"}],
            }
        )
    )
    (run_folder / "result.json").write_text(json.dumps({"chosen_step": 30, "score": 0.8125, "note": SECRET}))


@pytest.mark.parametrize("family", SMALL)
def test_timm_loads_every_tensor_and_the_preprocessing_from_the_folder(tmp_path, family):
    source = make_model(tmp_path / "run", family)
    result = export_hf(read_source(source), tmp_path / "out")
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    before = load_file(source / "model" / "model.safetensors")
    after = net.state_dict()
    assert before.keys() == after.keys() and len(after) == result.tensors
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = timm.data.resolve_model_data_config(net)
    facts = timm.get_pretrained_cfg(SMALL[family][0])
    assert tuple(config["input_size"]) == (3, S, S)
    assert tuple(config["mean"]) == facts.mean and tuple(config["std"]) == facts.std
    model, findings, _ = load_model(source)
    images = check_images(S, seed=5)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(net(model.normalise(images)), expected, rtol=1e-5, atol=1e-6)
    assert net.num_classes == 2 and net.pretrained_cfg["label_names"] == findings == result.findings
    assert result.largest_difference <= result.tolerance <= 1e-4 * float(expected.abs().max()) * 1.5


@pytest.mark.parametrize("family", SMALL)
def test_a_pretrained_backbone_leaves_without_the_head_it_never_trained(tmp_path, family):
    source = make_model(tmp_path / "run", family, kind="pretrain")
    result = export_hf(read_source(source), tmp_path / "out")
    assert result.outputs == "features" and result.findings == []
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert net.num_classes == 0
    with torch.no_grad():
        features = net(torch.rand(2, 3, S, S))
    assert features.shape == (2, net.num_features)
    assert "label_names" not in json.loads((tmp_path / "out" / "config.json").read_text())
    # Others put a head of theirs on it, and our own fine-tuning starts from it.
    new_head = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=5)
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(new_head.state_dict()[name], value) for name, value in exported.items())
    assert load_weights(build(family).net, tmp_path / "out").missing == []


def test_an_exported_folder_is_a_model_of_ours_again(tmp_path):
    for kind in ("finetune", "pretrain"):
        source = make_model(tmp_path / kind, kind=kind)
        export_hf(read_source(source), tmp_path / f"{kind}-once")
        export_hf(read_source(tmp_path / f"{kind}-once"), tmp_path / f"{kind}-twice")
        for file in ("model.safetensors", "config.json"):
            once, twice = ((tmp_path / f"{kind}-{times}" / file).read_bytes() for times in ("once", "twice"))
            assert once == twice


@pytest.mark.parametrize("how", ["pad", "crop", "squash"])
def test_timm_prepares_images_as_we_do(tmp_path, how):
    source = make_model(tmp_path / "run", how=how)
    export_hf(read_source(source), tmp_path / "out")
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8), (160, 120))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    by_timm = transform(Image.fromarray(smooth).convert("RGB"))
    model, _, _ = load_model(source)
    ours = model.normalise(torch.from_numpy(fit(smooth, S, how))[None, None])[0]
    rows = slice(5, -5) if how == "pad" else slice(None)  # timm pads with the mean, we with black
    assert by_timm.shape == ours.shape
    assert float((by_timm - ours)[:, rows].abs().max()) < 0.1  # of a range of 2


def test_weights_above_the_size_asked_for_go_into_several_files_with_an_index(tmp_path):
    source = make_model(tmp_path / "run")
    result = export_hf(read_source(source), tmp_path / "out", shard_size="40KB")
    files = sorted(name for name in result.files if name.startswith("model-"))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    largest = max(value.nbytes for value in load_file(source / "model" / "model.safetensors").values())
    for name in files:
        with safe_open(tmp_path / "out" / name, "pt") as file:
            size = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 - no mapping
        assert size <= max(40_000, largest)
    read = read_exported(tmp_path / "out")
    before = load_file(source / "model" / "model.safetensors")
    assert read.keys() == before.keys() and all(torch.equal(read[name], before[name]) for name in before)
    assert "load_torch_model" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UsageError, match=r"`--shard-size` must be a size like 5GB, got 'big'"):
        export_hf(read_source(source), tmp_path / "other", shard_size="big")


@pytest.mark.parametrize("damage", ["bit", "negative zero", "lost", "more"])
def test_a_folder_that_is_not_its_source_is_refused_and_vanishes(tmp_path, monkeypatch, damage):
    source = read_source(make_model(tmp_path / "run"))
    with torch.no_grad():
        source.model.net.norm.bias[0] = 0.0
    save_file(source.model.net.state_dict(), tmp_path / "run" / "model" / "model.safetensors")
    right = exporting.read_exported

    def wrong(folder: Path) -> dict[str, torch.Tensor]:
        read = right(folder)
        if damage == "bit":
            read["norm.weight"].view(torch.int32)[3] ^= 1
        elif damage == "negative zero":
            read["norm.bias"][0] = -0.0
        elif damage == "lost":
            del read["norm.bias"]
        else:
            read["norm.extra"] = torch.ones(1)
        return read

    monkeypatch.setattr(exporting, "read_exported", wrong)
    with pytest.raises(UserError, match=r"must have the source's \d+ tensors, got 1 that differ \(norm\."):
        export_hf(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_outputs_that_differ_are_refused(tmp_path):
    source = read_source(make_model(tmp_path / "run"))
    images = check_images(S)
    outputs = exporting.source_outputs(source, images)
    largest = float(outputs.abs().max())
    assert exporting.compare_outputs(source, outputs + 0.5e-4 * largest, images)[0] > 0
    for wrong in (outputs + 2e-4 * largest, outputs * math.nan, outputs.flip(0)):
        with pytest.raises(UserError, match="must give the source's outputs to"):
            exporting.compare_outputs(source, wrong, images)
    with pytest.raises(UserError, match=r"must give outputs \(9, 2\), got \(9, 1\)"):
        exporting.compare_outputs(source, outputs[:, :1], images)


def test_nothing_private_leaves_with_a_model_and_its_training_is_told(tmp_path):
    source = make_model(tmp_path / "run")
    make_run_facts(tmp_path / "run")
    export_hf(read_source(source), tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert SECRET.encode() not in content and str(tmp_path).encode() not in content and b"/home" not in content
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    for told in (
        *("| 0 | effusion |", "| 1 | edema |", "mean: 0.5, 0.5, 0.5", "filled with black", "| precision | bf16 |"),
        *("| initial weights | dinov2.pth |", "toy (manifest abababababab)", "| chosen step | 30 |", "0.8125"),
    ):
        assert told in card


def test_nearest_neighbours_stay_with_the_images_they_are_made_of(tmp_path):
    model = build("vit")
    set_classifier(model.net, KnnHead(torch.rand(9, 32), torch.ones(9, 2), k=3, temperature=0.1))
    facts = {"kind": "finetune", "image_size": S, "fit": "pad"}
    save_model(model, tmp_path / "run" / "model", backbone=SMALL["vit"][0], findings=["a", "b"], facts=facts)
    with pytest.raises(UserError, match=r"must hold no patient's data .*features and labels of every training image"):
        read_source(tmp_path / "run")


@pytest.mark.parametrize("environment", ["", "[]", "{", '{"shard_manifests": {}}'])
def test_a_run_folder_that_tells_little_does_not_stop_an_export(tmp_path, environment):
    source = make_model(tmp_path / "run")
    (source / "environment.json").write_text(environment)
    (source / "config.yaml").write_text("model: 3\n")
    export_hf(read_source(source), tmp_path / "out")
    assert "| shards |" not in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    source = read_source(make_model(tmp_path / "run"))
    (tmp_path / "out").mkdir()
    export_hf(source, tmp_path / "out")  # an empty folder is as good as none
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    with pytest.raises(UsageError, match="`--out` must be a new or an empty folder"):
        export_hf(source, tmp_path / "out")
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UsageError, match="`--out` must be a new or an empty folder"):
        export_hf(source, tmp_path / "out" / "README.md")


def test_a_kill_leaves_no_folder_of_that_name_and_the_next_export_goes_through(tmp_path, monkeypatch):
    source = read_source(make_model(tmp_path / "run"))
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "compare_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_hf(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / ".partial-out").mkdir()  # what a kill leaves
    (tmp_path / ".partial-out" / "model-00001-of-00002.safetensors").write_bytes(b"torn")
    export_hf(source, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors"
    ]  # fmt: skip


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    source = read_source(make_model(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="`--out` must be writable, got 'Not a directory'"):
        export_hf(source, tmp_path / "file" / "folder" / "out")


def test_the_constants_are_written_as_short_as_they_read_back(tmp_path):
    source = read_source(make_model(tmp_path / "run", "resnet"))
    config = hf_config(source)["pretrained_cfg"]
    assert config["mean"] == [0.485, 0.456, 0.406] and config["std"] == [0.229, 0.224, 0.225]


def test_the_command_prints_what_was_checked(tmp_path, capsys):
    source = make_model(tmp_path / "run")

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(["export", *map(str, arguments)])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    code, out, _ = command(source, "--to", "hf", "--out", tmp_path / "a", "--json")
    told = json.loads(out)
    assert code == 0 and told["format"] == "hf" and told["findings"] == ["effusion", "edema"]
    assert told["files"]["model.safetensors"] == (tmp_path / "a" / "model.safetensors").stat().st_size
    code, out, _ = command(source, "--to", "hf", "--out", tmp_path / "b")
    assert code == 0 and "tensors equal the source's bit for bit" in out
    for arguments, sentence in (
        ((source, "--to", "tf", "--out", tmp_path / "c"), "`--to` must be one of hf, onnx, got 'tf'."),
        ((source, "--to", "hf", "--out", tmp_path / "a"), "`--out` must be a new or an empty folder"),
        ((source, "--to", "hf", "--out", tmp_path / "c", "--pixels", "float32"), "`--pixels` goes with `--to onnx`"),
        (
            (source, "--to", "onnx", "--out", tmp_path / "c", "--shard-size", "5GB"),
            "`--shard-size` goes with `--to hf`",
        ),
        ((source, "--to", "onnx", "--out", tmp_path / "c", "--pixels", "int4"), "`--pixels` must be one of"),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and sentence in err
    code, _, err = command(tmp_path, "--to", "hf", "--out", tmp_path / "c")
    assert code == 1 and "A model folder must hold" in err
    assert not (tmp_path / "c").exists()
