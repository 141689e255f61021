"""What a dry run says of a study's cost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import make_shards, study_tree

from cxrdist.cli.main import run
from cxrdist.config import Tree, write_yaml
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UsageError
from cxrdist.study import cost
from cxrdist.study.config import StudyConfig
from cxrdist.study.cost import JobCost, short_of_images, study_cost
from cxrdist.study.plan import plan_study
from cxrdist.train.throughput import peak_flops

PROTOCOLS = {name: {"set": {"protocol.name": name}} for name in ("full", "probe", "knn", "lora")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cost")
    return {name: make_shards(root / name, patients=20, seed=seed, name=name) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    """Count the operations of one configuration once for all tests: nothing of a count is left behind."""
    kept: dict[str, object] = {}
    count = cost._count

    def once(config):
        name = type(config).__name__ + config.model_dump_json()
        if name not in kept:
            kept[name] = count(config)
        return kept[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_count", once)
        yield


def costs(tree: Tree, *, gpu: str = "H100", mfu: float = 0.4) -> dict[str, JobCost]:
    found = study_cost(plan_study(StudyConfig.build(tree, where="test"), Path("out")).jobs, gpu=gpu, mfu=mfu)
    return {one.name: one for one in found}


def output_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        run([str(one) for one in arguments])
    assert ended.value.code == 0, capsys.readouterr()
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["cell", "stage"])
def test_operations_per_image_are_those_of_the_plan_of_the_same_run(shards, tmp_path, capsys, kind):
    plan = plan_study(StudyConfig.build(study_tree(shards), where="test"), tmp_path)
    job = next(job for job in plan.jobs if job.kind == kind)
    write_yaml(job.tree, tmp_path / "run.yaml")
    planned = json.loads(output_of(capsys, "plan", tmp_path / "run.yaml", "--gpus", 1, "--gpu-memory", 80, "--json"))
    found = costs(study_tree(shards))[job.name].flops_per_image
    # A head of 14 findings stands for all of them.
    assert found == pytest.approx(planned["rows"][0]["flops_per_image"], rel=1e-2 if kind == "cell" else 1e-9)


def test_gpu_hours_are_operations_over_the_rate_that_is_reached(shards):
    found = costs(study_tree(shards, recipe__train__precision="bf16"), gpu="A100", mfu=0.5)
    one = found["random--a--seed0"]
    assert one.gpu_hours == pytest.approx(one.flops / (0.5 * peak_flops("A100", "bf16")) / 3600)
    twice = costs(study_tree(shards, recipe__train__precision="bf16", recipe__train__steps=8), gpu="A100", mfu=0.5)
    assert twice["random--a--seed0"].images == 2 * one.images == 2 * 4 * 8


def test_jobs_of_one_shape_are_counted_once(shards, monkeypatch):
    counted = []
    count = cost._count
    monkeypatch.setattr(cost, "_count", lambda config: counted.append(config) or count(config))
    tree = study_tree(
        shards, seeds=[0, 1], variants={**PROTOCOLS, "few": {"set": {"train_images": 8, "optim.lr": 0.1}}}
    )
    tree["strategies"] |= {f"more{i}": {"set": {"model.weights": f"{i}.pt", "train.steps": 2 + i}} for i in range(5)}
    assert len(costs(tree)) == 1 + 7 * 2 * 5 * 2
    # One pretraining, full and LoRA, and one for the two protocols that train no backbone.
    assert len(counted) == 4


def test_protocols_cost_what_they_compute(shards):
    found = {
        one.name.split("--")[2]: one
        for one in costs(study_tree(shards, targets=["a"], variants=PROTOCOLS)).values()
        if one.kind == "cell"
    }
    assert found["probe"].flops_per_image < found["lora"].flops_per_image < found["full"].flops_per_image
    full, probe, knn = (found[name] for name in ("full", "probe", "knn"))
    counts = read_manifest(shards["a"]).splits
    assert (knn.steps, knn.images) == (0, 0)
    assert knn.evaluated == counts["train"] + 2 * counts["val"] + counts["test"]
    assert full.evaluated == probe.evaluated == 3 * counts["val"] + counts["test"]
    # Looking at an image costs the same, whatever was trained.
    looking = [(one.flops - one.images * one.flops_per_image) / one.evaluated for one in (full, probe, knn)]
    assert looking[0] == pytest.approx(looking[1], rel=0.1) and looking[2] == pytest.approx(looking[1], rel=1e-9)


def test_stages_are_not_tested(shards):
    tree = study_tree(shards, stages__labels={"datasets": ["a"], "train": {}}, strategies__ssl__stage="labels")
    found = costs(tree)
    counts = read_manifest(shards["a"]).splits
    assert found["random--a--seed0"].evaluated - found["labels"].evaluated == counts["test"]


def test_looks_at_a_pretraining_are_forward_passes_over_the_images_that_are_watched(shards):
    def cost_of(images: int, steps: int, **watch) -> JobCost:
        tree = study_tree(shards, targets=["a"])
        looked = {"train.steps": steps, "train.evaluate_every": 4, "watch": {"images": images, **watch}}
        tree["stages"]["ssl"]["pretrain"] |= looked
        return next(iter(costs(tree).values()))

    counts = read_manifest(shards["a"]).splits
    labelled = {"shards": "a"}
    few = cost_of(1000, 9, **labelled, probes=[])
    assert few.evaluated == 4 * counts["val"]  # before the first step, after 4, 8 and 9
    assert cost_of(1000, 8, **labelled).evaluated == 3 * (counts["train"] + counts["val"])
    assert cost_of(32, 8).evaluated == 3 * min(
        32, sum(read_manifest(folder).splits["train"] for folder in shards.values())
    )
    looking = (few.flops - few.images * few.flops_per_image) / few.evaluated
    knn = costs(study_tree(shards, targets=["a"], variants={"knn": PROTOCOLS["knn"]}))["random--a--knn--seed0"]
    # The whole image through the same network, as for neighbours; the masked autoencoder trains on a part of it.
    assert looking == pytest.approx(knn.flops / knn.evaluated, rel=0.02)


@pytest.mark.parametrize("method", ["simclr", "moco_v2", "byol", "swav", "dino", "supervised"])
def test_any_method_is_counted_without_weights(shards, method):
    stage = {"datasets": ["a", "b"], "pretrain": {"method": {"name": method}, "model.weights": "gone.pt"}}
    (one, *_) = costs(study_tree(shards, targets=["a"]) | {"stages": {"ssl": stage}}).values()
    assert one.method == method and one.gpu_hours > 0


def test_dry_run_tells_costs_totals_and_what_is_missing_and_starts_nothing(shards, tmp_path, capsys):
    tree = study_tree(shards, strategies__random={"set": {"model.weights": str(tmp_path / "gone.pt")}})
    write_yaml(tree | {"debug": {"recipe.train.steps": 2}}, tmp_path / "study.yaml")
    command = ["study", "run", tmp_path / "study.yaml", "--out", tmp_path / "out", "--dry-run", "--gpus", 4]
    found = json.loads(output_of(capsys, *command, "--json"))
    assert [job["method"] for job in found["jobs"]] == ["mae", *["full"] * 4]
    assert found["totals"]["all"]["gpu_hours"] == pytest.approx(sum(job["gpu_hours"] for job in found["jobs"]))
    assert found["totals"]["all"]["hours"] == pytest.approx(found["totals"]["all"]["gpu_hours"] / 4)
    assert found["totals"]["left"] == found["totals"]["all"]
    assert found["missing_weights"] == {str(tmp_path / "gone.pt"): ["random--a--seed0", "random--b--seed0"]}
    text = output_of(capsys, *command)
    assert "1 stage, 4 cells" in text and f"no weight file yet at {tmp_path}/gone.pt" in text
    sized = json.loads(output_of(capsys, *command, "--json", "--debug"))
    assert [job["steps"] for job in sized["jobs"]] == [2] * 5
    assert not (tmp_path / "out").exists()


def test_more_training_images_than_a_dataset_has_are_told(shards):
    there = read_manifest(shards["a"]).splits["train"]
    more = {"set": {"train_images": there + 1}}
    tree = study_tree(shards, targets=["a"], strategies__more=more, strategies__most=more)
    (told,) = short_of_images(plan_study(StudyConfig.build(tree, where="test"), Path("out")).jobs)
    assert told.startswith(f"`train_images`={there + 1} is more than the {there} training images of a (for more--a--")
    assert "and 1 more). Lower it" in told
    tree = study_tree(shards, targets=["a"], recipe__train_images=there)
    assert short_of_images(plan_study(StudyConfig.build(tree, where="test"), Path("out")).jobs) == []


def test_unknown_gpu_and_backbone_are_one_sentence(shards):
    with pytest.raises(UsageError, match=r"`--gpu` must be one of .* got 'H1000'"):
        costs(study_tree(shards), gpu="H1000")
    with pytest.raises(UsageError, match=r"`model.backbone` must be a timm model, .* \[in random--a--seed0\]"):
        costs(study_tree(shards, strategies__random={"set": {"model.backbone": "vit_tinny"}}))
    with pytest.raises(UsageError, match=r"`--mfu` must be in \(0, 1\], got 2"):
        costs(study_tree(shards), mfu=2)
