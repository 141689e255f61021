"""DINO and DINOv2: losses against lightly's and plain loops, one process and two, centres, schedules, the teacher."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from dino_tasks import NETS, SIDES, SMALL, crop_batch, dino_model, dino_task, plain_koleo, plain_loss, plain_sinkhorn
from engines import alone, engine_of, on_ranks, step_once
from helpers import finetune_tree, make_shards
from lightly.loss import DINOLoss, IBOTPatchLoss
from ranks import forks
from stopping import check_resumed_to_the_bit
from torch import nn

from cxrdist.config import override
from cxrdist.errors import UsageError
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.weights import load_weights
from cxrdist.pretrain.build import build_task, example_batch
from cxrdist.pretrain.centering import Centre, sinkhorn
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.dino import DinoTask, crop_loss
from cxrdist.pretrain.dinov2 import koleo_loss, patch_loss
from cxrdist.pretrain.masks import block_masks
from cxrdist.pretrain.methods import DinoConfig
from cxrdist.train.dryrun import at_size, imagine, profile_pass

METHODS = [("dino", {"centering": "mean"}), ("dinov2", {}), ("dinov2", {"centering": "mean", "shared_head": True})]


def cosines(*shape: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=rng) * 2 - 1


@pytest.mark.parametrize(("rows", "prototypes", "temperature"), [(8, 5, 0.05), (30, 64, 0.07), (6, 6, 0.04)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_papers(rows, prototypes, temperature, iterations):
    logits = cosines(rows, prototypes, seed=rows)
    got = sinkhorn(logits, temperature=temperature, iterations=iterations)
    torch.testing.assert_close(got.double(), plain_sinkhorn(logits, temperature, iterations), rtol=1e-4, atol=1e-6)


def test_sinkhorn_gives_rows_of_sum_one_and_prototypes_of_equal_shares():
    shares = sinkhorn(cosines(60, 12, seed=1), temperature=0.1, iterations=100)
    torch.testing.assert_close(shares.sum(1), torch.ones(60))
    torch.testing.assert_close(shares.sum(0), torch.full((12,), 5.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 100.0])
def test_sinkhorn_is_finite_at_any_temperature_and_in_half_precision(temperature):
    for logits in (cosines(40, 16, seed=2), torch.zeros(40, 16), cosines(40, 16, seed=3).bfloat16()):
        rows = sinkhorn(logits, temperature=temperature)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.sum(1), torch.ones(40))


def test_dinos_loss_and_centre_are_lightlys_over_several_steps():
    theirs = DINOLoss(output_dim=7, teacher_temp=0.06, student_temp=0.1, center_momentum=0.8)
    centre = Centre(7, momentum=0.8)
    for step in range(3):
        taught = cosines(2, 5, 7, seed=step)
        learned = cosines(6, 5, 7, seed=10 + step).requires_grad_()
        expected = theirs(list(taught), list(learned), teacher_temp=0.06)
        (wanted,) = torch.autograd.grad(expected, learned)
        rows = taught.flatten(0, 1)
        target = centre.probabilities(rows, temperature=torch.tensor(0.06)).unflatten(0, (2, -1))
        loss = crop_loss(target, learned, temperature=0.1)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, learned)[0], wanted)
        centre.note(rows[:4])  # in two micro-batches
        centre.note(rows[4:])
        centre.move()
        torch.testing.assert_close(centre.value, theirs.center[0, 0])


def test_ibots_loss_is_lightlys():
    masks = block_masks([1, 2, 3], (4, 4), crops=2, ratio=(0.2, 0.6), share=0.5)
    taught, learned = (cosines(len(masks.index), 7, seed=seed) for seed in (0, 1))
    theirs = IBOTPatchLoss(output_dim=7, teacher_temp=0.05, student_temp=0.1)
    expected = theirs(taught, learned, masks.mask.unflatten(1, (4, 4)))
    target = Centre(7, momentum=0.9).probabilities(taught, temperature=0.05)
    torch.testing.assert_close(patch_loss(target, learned, masks.weight, temperature=0.1), expected)


def test_koleo_is_minus_the_logarithm_of_the_distance_to_the_nearest_row():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(koleo_loss(rows), plain_koleo(rows))


def test_koleo_of_one_image_is_refused():
    with pytest.raises(
        UsageError, match=r"`method.koleo_weight` needs 2 images per rank and micro-step at least, got 1"
    ):
        koleo_loss(torch.ones(1, 4))


@pytest.mark.parametrize("net", ["vit", "convnext"])
@pytest.mark.parametrize(("method", "config"), METHODS)
def test_the_loss_and_its_gradient_are_those_of_plain_loops(method, config, net):
    task, batch = dino_task(method, net, **config), crop_batch(3, net)
    other = copy.deepcopy(task)
    loss, expected = task(batch)["loss"], plain_loss(other, [batch])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    expected.backward()
    check_gradients(task, {name: p.grad for name, p in task.named_parameters()}, other)


def check_gradients(task: nn.Module, got: dict, other: nn.Module) -> None:
    wanted = dict(other.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in wanted.values() if p.grad is not None)
    for name, parameter in task.named_parameters():
        assert (got[name] is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            torch.testing.assert_close(
                got[name].double(), wanted[name].grad, rtol=1e-2, atol=2e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


@forks
def test_on_two_ranks_loss_gradients_and_centres_are_those_of_the_joint_batch():
    batches = [crop_batch(2, seed=rank) for rank in range(2)]

    def work(world, device):
        rows = cosines(7, 5, seed=4)
        shares = sinkhorn(rows[:3] if world.rank else rows[3:], temperature=0.05)
        made = []
        for method, config in METHODS:
            task = dino_task(method, **config)
            loss = task(batches[world.rank])["loss"]
            loss.backward()
            gradients = {name: p.grad for name, p in task.named_parameters()}
            task.after_step(0, 10)
            made.append((loss.item(), gradients, [centre.value for centre in task.centres()]))
        return shares, made

    (last, one), (first, two) = on_ranks(2, work)
    together = plain_sinkhorn(cosines(7, 5, seed=4), 0.05).float()
    torch.testing.assert_close(torch.cat([first, last]), together, rtol=1e-4, atol=1e-6)
    joint = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    for place, (method, config) in enumerate(METHODS):
        task = dino_task(method, **config)
        other = copy.deepcopy(task)
        expected = plain_loss(other, batches)
        expected.backward()
        mean = (one[place][0] + two[place][0]) / 2
        assert mean == pytest.approx(expected.item(), rel=1e-4)
        averaged = {
            name: None if gradient is None else (gradient + two[place][1][name]) / 2
            for name, gradient in one[place][1].items()
        }
        check_gradients(task, averaged, other)
        assert [len(values) for values in (one[place][2], two[place][2])] == [len(task.centres())] * 2
        for ours, theirs in zip(one[place][2], two[place][2], strict=True):
            assert torch.equal(ours, theirs)
        if method == "dino":  # masks and KoLeo are of each rank's own images: DINO alone has one joint loss
            loss = task(joint)["loss"].detach()
            task.after_step(0, 10)
            assert mean == pytest.approx(float(loss), rel=1e-4)
            torch.testing.assert_close(task.centre.value, one[place][2][0])


def test_with_running_means_a_batch_may_be_divided():
    task, batch = dino_task("dino"), crop_batch(4)
    whole = float(task(batch)["loss"].detach())
    task.after_step(3, 10)
    moved = task.centre.value.clone()
    task = dino_task("dino")
    task.at_step(3, 10, None)
    task.temperature.fill_(0.04)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(2), slice(2, 4))]
    assert sum(float(task(half)["loss"].detach()) for half in halves) / 2 == pytest.approx(whole, rel=1e-5)
    task.after_step(3, 10)
    torch.testing.assert_close(task.centre.value, moved)


def test_a_step_that_was_not_made_leaves_nothing_in_the_centre():
    task, batch = dino_task("dino"), crop_batch(2)
    before = task.centre.value.clone()
    task(crop_batch(2, seed=5))
    task.at_step(0, 10, None)  # the step is made again, or the next one
    task(batch)
    task.after_step(0, 10)
    again = dino_task("dino")
    again(batch)
    again.after_step(0, 10)
    assert torch.equal(task.centre.value, again.centre.value)
    assert not torch.equal(task.centre.value, before)


def test_the_teacher_follows_on_a_half_cosine_up_to_standing_still():
    for step, momentum in ((0, 0.9), (50, 0.95), (100, 1.0)):
        task = dino_task("dinov2", momentum=0.9)
        pairs = [(t, s) for one, two in task.pairs() for t, s in zip(one.parameters(), two.parameters(), strict=True)]
        expected = [momentum * teacher + (1 - momentum) * student for teacher, student in pairs]
        task.after_step(step, 100)
        for (teacher, _), value in zip(pairs, expected, strict=True):
            torch.testing.assert_close(teacher.detach(), value.detach())
    teachers = [name for name, p in task.named_parameters() if "teacher" in name]
    assert len(teachers) == sum(
        1 for name, _ in task.named_parameters() if name.startswith(("model", "head", "patch_"))
    )
    assert not any(task.get_parameter(name).requires_grad for name in teachers)


def test_the_teachers_temperature_rises_on_a_line_and_stays():
    task = dino_task("dino", first_teacher_temperature=0.04, teacher_temperature=0.07, temperature_warmup=0.3)
    for step, expected in ((0, 0.04), (15, 0.055), (30, 0.07), (99, 0.07)):
        task.at_step(step, 100, None)
        assert float(task.temperature) == pytest.approx(expected)
    assert "temperature" in task.state_dict()


def test_the_teacher_drops_nothing_while_the_student_does():
    task = dino_task("dino", drop_path=0.5)
    batch = crop_batch(4)
    losses = []
    for network in (task.teacher, task.model):
        made = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            made.append(network.net.forward_features(network.normalise(batch["image"][:, 0])))
        losses.append(torch.equal(*made))
    assert losses == [True, False]
    assert not any(module.training for module in task.eval().modules())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_held_prototypes_stand_still_in_every_stage(stage):
    """Their directions: weight decay changes lengths, which take no part."""

    def directions(task):
        heads = (task.head, task.patch_head)
        if stage == 3:
            import deepspeed  # noqa: PLC0415

            with deepspeed.zero.GatheredParameters([head.prototypes.weight for head in heads]):
                return [nn.functional.normalize(head.prototypes.weight.detach()).clone() for head in heads]
        return [nn.functional.normalize(head.prototypes.weight.detach()).clone() for head in heads]

    with alone() as (world, device):
        task = dino_task("dinov2", freeze_prototypes=0.5)
        batch = crop_batch(8)
        with engine_of(world, device, task=task, zero_stage=stage) as engine:
            seen = [directions(engine.module)]
            for step in range(4):
                engine.module.at_step(step, 4, engine.optimizer)
                assert step_once(engine, world, step, batch) > 0
                engine.module.after_step(step, 4)
                seen.append(directions(engine.module))
    for step, (before, after) in enumerate(pairwise(seen)):
        same = [torch.allclose(one, two, atol=1e-6) for one, two in zip(before, after, strict=True)]
        assert same == [step < 2] * 2


@pytest.mark.parametrize("net", ["vit", "convnext"])
@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_in_bfloat16_loss_and_gradients_are_finite_and_near_those_of_float32(method, net):
    task, batch = dino_task(method, net), crop_batch(4, net)
    with torch.no_grad():
        exact = float(task(batch)["loss"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(batch)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize("net", ["vit_tiny_patch16_224", pytest.param("convnext_atto", marks=pytest.mark.slow)])
def test_memory_can_be_planned(net):
    args = {"embed_dim": 24, "depth": 1, "num_heads": 2} if "vit" in net else {"depths": [1] * 4, "dims": [8] * 4}
    tree = {"shards": ["toy"], "input": {"image_size": 64}, "model": {"backbone": net, "args": args}}
    tree["method"] = {"name": "dinov2", "local_crops": {"count": 2, "size": 32}, "prototypes": 64, "hidden_width": 16}
    config = PretrainConfig.build(tree, where="t")
    task = imagine(lambda **about: build_task(config, **about))
    small, large = (profile_pass(task, lambda n: example_batch(config, n), n, precision="bf16") for n in (2, 4))
    assert at_size(small, large, 4) == large
    assert 0 < small.activations < large.activations


def test_a_look_has_features_of_the_teacher_and_rows_of_both_heads():
    for method, config in METHODS:
        task = dino_task(method, **config).eval()
        images = crop_batch(5)["image"][:, 0]
        with torch.no_grad():
            look = task({"image": images})["look"]
            features = task.teacher.net.forward_features(task.teacher.normalise(images))
        assert torch.equal(look.features, features[:, 0])
        assert torch.equal(look.patches.flatten(1, 2), features[:, 1:])
        torch.testing.assert_close(look.prototypes.sum(1), torch.ones(5))
        assert look.embedding.shape == look.target.shape == (5, 6)
        assert not torch.allclose(look.embedding, look.target)
        assert task.result is task.teacher


def test_student_and_teacher_begin_with_the_loaded_weights():
    model = dino_model()
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    task = DinoTask(model, DinoConfig(**SMALL, local_crops={"size": 16}), fresh=False)
    for net in (task.model.net, task.teacher.net):
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_small_crops_that_are_no_multiple_of_the_patch_are_refused():
    with pytest.raises(
        UsageError, match=r"`method.local_crops.size` must be a multiple .* 8 pixels, got 20. Nearest: 16, 24"
    ):
        DinoTask(dino_model(), DinoConfig(**SMALL, local_crops={"size": 20}), fresh=True)
    DinoTask(dino_model(), DinoConfig(**SMALL, local_crops={"count": 0}), fresh=True)


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_small_crops_are_refused_for_a_backbone_of_one_size(name):
    args = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}

    def task(backbone="beit_base_patch16_224", **local):
        tree = {"shards": ["toy"], "input": {"image_size": 32}, "model": {"backbone": backbone, "args": args}}
        tree["method"] = {"name": name, "prototypes": 10, "local_crops": local}
        return build_task(PretrainConfig.build(tree, where="t"))

    for local in ({"count": 0}, {"count": 2, "size": 32}):
        task(**local)
    task("eva02_tiny_patch14_224", count=2, size=16)
    with pytest.raises(
        UsageError,
        match=r"`method.local_crops.size` must be `input.image_size`=32 .* 'beit_base_patch16_224', .* got 16",
    ):
        task(count=2, size=16)


@pytest.mark.parametrize(
    ("method", "switch", "unused", "value"),
    [
        ("dino", {"centering": "sinkhorn"}, "center_momentum", 0.5),
        ("dinov2", {"centering": "sinkhorn"}, "center_momentum", 0.5),
        ("dino", {"temperature_warmup": 0}, "first_teacher_temperature", 0.03),
        ("dinov2", {"ibot_weight": 0}, "mask_ratio", [0.2, 0.3]),
        ("dinov2", {"ibot_weight": 0}, "mask_share", 0.3),
        ("dinov2", {"ibot_weight": 0}, "shared_head", True),
        ("dinov2", {"mask_share": 0}, "mask_ratio", [0.2, 0.3]),
        ("dinov2", {"mask_share": 0}, "shared_head", True),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_unless_it_is_the_default(method, switch, unused, value):
    tree = {"shards": ["a"], "method": {"name": method, **switch}}
    config = PretrainConfig.build(tree, where="t")
    assert PretrainConfig.build(config.tree(), where="t") == config  # all options written, as in a run's folder
    with pytest.raises(UsageError, match=rf"`method.*` must not set {unused} with .*, which does not use it"):
        PretrainConfig.build(override(tree, {f"method.{unused}": value}), where="t")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), patients=20)


@pytest.mark.parametrize(
    ("method", "net", "drop_path", "evaluate_every"),
    [
        ("dinov2", "vit", 0.0, 2),
        ("dino", "vit", 0.5, 4),  # the continued half begins with no look, which would set modes
        pytest.param("dino", "convnext", 0.0, 2, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_equals_undisturbed(shards, tmp_path, method, net, drop_path, evaluate_every):
    tree = finetune_tree(shards, steps=4, global_batch_size=4, evaluate_every=evaluate_every, checkpoint_every=2)
    tree |= {"shards": [str(shards)], "watch": {"images": 32, "pictures": 0, "collapse": "warn"}}
    tree["model"] = NETS[net] | {"drop_path": drop_path}
    tree["input"]["image_size"], small = SIDES[net]
    tree["method"] = {"name": method, "local_crops": {"count": 1, "size": small}, "freeze_prototypes": 0.5, **SMALL}
    config = PretrainConfig.build(tree, where="t")
    whole = check_resumed_to_the_bit(config, tmp_path)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    losses = [[row.get("loss") for row in map(json.loads, one) if "loss" in row] for one in lines]
    assert losses[0] == losses[1]
    net = build_model(ModelConfig(**NETS[net]), num_classes=3, image_size=SIDES[net][0], seed=9).net
    report = load_weights(net, whole)  # the teacher: nothing of the heads
    assert report.missing == report.unexpected == report.misshapen == []
