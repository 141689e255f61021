"""`cxrdist plan`: what a run needs, with nothing but its file."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from cxrdist.cli.main import app, run
from cxrdist.errors import UsageError
from cxrdist.pretrain.build import TASKS
from cxrdist.pretrain.methods import CoupledConfig, Method

FINETUNE = """
shards: nowhere
input: {image_size: 64, workers: 2}
model: {backbone: vit_tiny_patch16_224, args: {embed_dim: 96, depth: 2, num_heads: 3}, weights: not-there.pth}
train: {steps: 100, global_batch_size: 32, precision: bf16, micro_batch_size: auto}
"""
PRETRAIN = """
shards: [nowhere]
method: {name: mae, decoder_width: 64, decoder_depth: 1, decoder_heads: 4}
input: {image_size: 64}
model: {backbone: vit_tiny_patch16_224, args: {embed_dim: 96, depth: 2, num_heads: 3}}
train: {steps: 100, global_batch_size: 32}
"""


def planned(folder: Path, text: str, *options: str) -> dict[str, Any]:
    (folder / "run.yaml").write_text(text)
    arguments = ["plan", str(folder / "run.yaml"), *(options or ("--gpus", "4", "--gpu-memory", "16")), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    tree: dict[str, Any] = json.loads(result.stdout)
    return tree


def ending(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        run(["plan", *arguments])
    return int(end.value.code or 0), capsys.readouterr().err


def test_a_plan_needs_neither_shards_nor_weights_and_says_what_it_assumes(tmp_path: Path) -> None:
    tree = planned(tmp_path, FINETUNE)
    assert [row["zero_stage"] for row in tree["rows"]] == [0, 1, 2, 3]
    assert all(row["fits"] and row["largest"] == 8 and row["accumulation"] == 1 for row in tree["rows"])
    assert any("14 findings are assumed" in note for note in tree["notes"])
    assert "train.micro_batch_size=8" in tree["suggested"]


def test_a_pretraining_is_known_by_its_file(tmp_path: Path) -> None:
    rows = planned(tmp_path, PRETRAIN)["rows"]
    assert len(rows) == 4
    assert rows[0]["flops_per_image"] < planned(tmp_path, FINETUNE)["rows"][0]["flops_per_image"]


TRANSFORMER = "{backbone: vit_tiny_patch16_224, args: {embed_dim: 32, depth: 1, num_heads: 2}}"
CNN = "{backbone: resnet10t}"


def pretraining(method: str, backbone: str, **more: Any) -> str:
    """Return a small pretraining by `method`, with two small crops where it has any."""
    fields = {"name": method, **more}
    if "local_crops" in SETTINGS[method].model_fields:
        fields["local_crops"] = {"count": 2, "size": 16}
    side = 64 if method == "simmim" else 32  # its squares are as wide as a CNN's stride
    described = f"model: {backbone}\ntrain: {{steps: 100, global_batch_size: 32, precision: bf16}}\n"
    return f"shards: [nowhere]\nmethod: {json.dumps(fields)}\ninput: {{image_size: {side}}}\n{described}"


SETTINGS = {kind.model_fields["name"].default: kind for kind in get_args(get_args(Method)[0])}
QUICK = [("dinov2", TRANSFORMER), ("moco_v3", CNN)]
BOTH = [(method, backbone) for method in TASKS for backbone in (TRANSFORMER, CNN) if (method, backbone) != ("mae", CNN)]


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        pytest.param(
            method,
            backbone,
            id=f"{method}-{'cnn' if backbone is CNN else 'vit'}",
            marks=() if (method, backbone) in QUICK else pytest.mark.slow,
        )
        for method, backbone in BOTH
    ],
)
def test_every_method_of_pretraining_is_planned_with_its_teacher(tmp_path: Path, method: str, backbone: str) -> None:
    tree = planned(tmp_path, pretraining(method, backbone))
    assert [row["zero_stage"] for row in tree["rows"]] == [0, 1, 2, 3]
    sizes, whole, *_, divided = tree["weights"], *(row["memory"]["device"]["weights"] for row in tree["rows"])
    assert whole == sizes["weights"] + sizes["buffers"]
    assert divided == pytest.approx(sizes["weights"] / 4 + sizes["buffers"], rel=0.01)
    assert (sizes["trained"] < 0.8 * sizes["weights"]) == ("momentum" in SETTINGS[method].model_fields)
    assert tree["rows"][0]["memory"]["checkpoint"] >= sizes["weights"] + sizes["buffers"] + 2 * sizes["trained"]
    coupled = issubclass(SETTINGS[method], CoupledConfig)
    assert all(row["largest"] == 8 for row in tree["rows"])
    assert any("compares the images of a step with each other" in note for note in tree["notes"]) == coupled


def test_a_method_that_compares_images_is_planned_in_parts_only_where_that_is_asked_for(tmp_path: Path) -> None:
    small = ("--gpus", "4", "--gpu-memory", "16", "--set", "train.micro_batch_size=2")
    assert planned(tmp_path, pretraining("simclr", CNN, accumulate=True), *small)["rows"][0]["accumulation"] == 4
    (tmp_path / "run.yaml").write_text(pretraining("simclr", CNN))
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml"), *small])
    assert isinstance(result.exception, UsageError)
    assert "`train.micro_batch_size` must be all 8 images of a rank and step with method 'simclr'" in str(
        result.exception
    )


def test_small_crops_cost_what_they_cost(tmp_path: Path) -> None:
    many = pretraining("swav", CNN)
    one, two = (planned(tmp_path, many.replace('"count": 2', f'"count": {count}'))["rows"][0] for count in (2, 4))
    none = planned(tmp_path, many.replace('"count": 2, "size": 16', '"count": 0'))["rows"][0]
    per_crop = (two["flops_per_image"] - one["flops_per_image"]) / 2
    assert per_crop > 0
    assert one["flops_per_image"] - none["flops_per_image"] == pytest.approx(2 * per_crop, rel=0.01)


def test_a_micro_batch_that_is_set_is_the_one_that_is_told(tmp_path: Path) -> None:
    text = FINETUNE.replace("auto", "2")
    assert {(row["micro_batch_size"], row["accumulation"]) for row in planned(tmp_path, text)["rows"]} == {(2, 4)}


def test_checkpointing_and_offload_are_planned_where_nothing_fits_without(tmp_path: Path) -> None:
    text = FINETUNE.replace("embed_dim: 96, depth: 2, num_heads: 3", "embed_dim: 768, depth: 4, num_heads: 12")
    tree = planned(tmp_path, text, "--gpus", "2", "--gpu-memory", "1.42")
    ways = [(row["offload"], row["activation_checkpointing"]) for row in tree["rows"]]
    assert ways[0] == ("none", False) and len(set(ways)) > 1
    assert not tree["rows"][0]["fits"] and tree["suggested"]


@pytest.mark.slow
def test_a_run_that_fits_nowhere_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(FINETUNE.replace("embed_dim: 96, depth: 2", "embed_dim: 768, depth: 12"))
    code, sentence = ending(capsys, str(tmp_path / "run.yaml"), "--gpus", "1", "--gpu-memory", "1.05")
    assert code == 1
    assert "must fit into 1.05 GiB on each of 1 GPUs" in sentence


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--mfu", "1.5"), "`--mfu` must be in"),
        (("--gpu", "abacus"), "`--gpu` must be one of"),
        (("--set", "train.micro_batch_size=3"), "`train.micro_batch_size` must divide"),
        (("--set", "train.global_batch_size=33"), "`global_batch_size` must be a multiple"),
        (("--set", "model.backbone=vit_nowhere"), "`model.backbone` must be a timm model"),
    ],
)
def test_wrong_usage_ends_with_a_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], rule: str
) -> None:
    (tmp_path / "run.yaml").write_text(FINETUNE)
    code, sentence = ending(capsys, str(tmp_path / "run.yaml"), "--gpus", "4", "--gpu-memory", "16", *options)
    assert code == 2
    assert rule in sentence


def test_the_table_has_a_line_for_every_stage(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(FINETUNE)
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml"), "--gpus", "2", "--gpu-memory", "16"])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines if len(line) > 10 and line[0].isdigit()] == ["0", "1", "2", "3"]
    assert "Suggested: --set" in result.stdout
