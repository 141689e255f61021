"""`cxrdist plan`: what a run needs, with nothing but its file."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cxrdist.cli.main import app, run

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
