"""SimCLR, MoCo v2, MoCo v3, BYOL: losses against the papers' formulas written out, teachers, queue, heads."""

import math
import secrets

import pytest
import torch
from helpers import finetune_tree, make_shards
from lightly.loss import NTXentLoss
from paired import CONFIGS, TAUGHT, paired_batch, paired_task
from stopping import check_resumed_to_the_bit
from tiny_nets import SIZE, tiny_model
from torch import nn

from cxrdist.config import override
from cxrdist.errors import UsageError
from cxrdist.models.folder import load_model, save_model
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.build import TASKS
from cxrdist.pretrain.byol import distance
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.gathering import gather
from cxrdist.pretrain.moco_v2 import info_nce
from cxrdist.pretrain.moco_v3 import contrast
from cxrdist.pretrain.paired import direction
from cxrdist.pretrain.simclr import nt_xent
from cxrdist.train.dryrun import imagine, profile_pass
from cxrdist.train.pieces import Reader


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def plain_nt_xent(z: torch.Tensor, tau: float) -> torch.Tensor:
    """Algorithm 1 of SimCLR, one pair at a time."""

    def pair(i: int, j: int) -> torch.Tensor:
        others = sum(torch.exp(cosine(z[i], z[k]) / tau) for k in range(len(z)) if k != i)
        return -torch.log(torch.exp(cosine(z[i], z[j]) / tau) / others)

    return sum(pair(2 * k, 2 * k + 1) + pair(2 * k + 1, 2 * k) for k in range(len(z) // 2)) / len(z)


def plain_ctr(q: torch.Tensor, k: torch.Tensor, tau: float) -> torch.Tensor:
    """``ctr`` in algorithm 1 of MoCo v3, one query at a time."""
    losses = []
    for i in range(len(q)):
        exps = [torch.exp(cosine(q[i], k[j]) / tau) for j in range(len(k))]
        losses.append(-torch.log(exps[i] / sum(exps)))
    return 2 * tau * sum(losses) / len(losses)


def plain_info_nce(q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor, tau: float) -> torch.Tensor:
    """Equation 1 of MoCo, one query at a time."""
    losses = []
    for query, key in zip(q, k, strict=True):
        own = torch.exp(cosine(query, key) / tau)
        losses.append(-torch.log(own / (own + sum(torch.exp(cosine(query, other) / tau) for other in queue))))
    return sum(losses) / len(losses)


def plain_distance(q: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Equation 2 of BYOL, one image at a time."""
    return sum(2 - 2 * cosine(one, other) for one, other in zip(q, z, strict=True)) / len(q)


def assert_same(loss, plain, values: torch.Tensor) -> None:
    """`loss` and its gradient by `values` are those of `plain` in float64."""
    single = values.clone().requires_grad_()
    double = values.double().requires_grad_()
    made, expected = loss(single), plain(double)
    made.backward()
    expected.backward()
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_each_loss_and_its_gradient_are_those_of_the_paper(temperature):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    z, k = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    queue = direction(torch.randn(7, 5, generator=generator))
    assert_same(lambda z: nt_xent(z, temperature), lambda z: plain_nt_xent(z, temperature), z)
    lightly = NTXentLoss(temperature=temperature)
    assert_same(lambda z: nt_xent(z, temperature), lambda z: lightly(z[0::2], z[1::2]), z)
    assert_same(lambda q: contrast(q, k, temperature), lambda q: plain_ctr(q, k.double(), temperature), z)
    assert_same(
        lambda q: info_nce(direction(q), direction(k), queue, temperature),
        lambda q: plain_info_nce(q, k.double(), queue.double(), temperature),
        z,
    )
    assert_same(lambda q: distance(q, k), lambda q: plain_distance(q, k.double()), z)


@pytest.mark.parametrize("family", ["densenet", "vit"])
@pytest.mark.parametrize("method", ["simclr", *TAUGHT])
def test_a_task_compares_each_crop_with_the_other_of_its_image(method, family):
    task, batch = paired_task(method, family), paired_batch(method, 4)
    first, second = batch["image"].unbind(1)
    made = task.loss(batch)
    with torch.no_grad():
        if method == "simclr":
            expected = plain_nt_xent(task.embed(batch["image"].flatten(0, 1)), task.temperature)
        elif method == "moco_v2":
            query, key = task.embed(first), task.target(second)
            expected = plain_info_nce(query, key, task.queue, task.config.temperature)
        else:
            queries = task.predict(task.embed(first)), task.predict(task.embed(second))
            keys = task.target(first), task.target(second)
            plain = plain_distance
            if method == "moco_v3":
                plain = lambda q, k: plain_ctr(q, k, task.config.temperature)  # noqa: E731
            expected = plain(queries[0], keys[1]) + plain(queries[1], keys[0])
    torch.testing.assert_close(made.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["densenet", "vit"])
@pytest.mark.parametrize("method", list(CONFIGS))
def test_what_is_trained_gets_a_gradient_and_a_teacher_none(method, family):
    task, batch = paired_task(method, family), paired_batch(method, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    for name, parameter in task.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
        assert not (parameter.requires_grad and ("teacher" in name or "classifier" in name)), name


@pytest.mark.parametrize("method", list(CONFIGS))
def test_a_look_has_what_the_method_compares(method):
    task = paired_task(method).eval()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with torch.no_grad():
        look = task(paired_batch(method, 4) | {"image": torch.zeros(4, 1, SIZE, SIZE)})["look"]
    assert look.features.shape == (4, 32) and look.embedding.shape == (4, 8) and look.patches.shape == (4, 4, 4, 32)
    assert (look.target is not None) == (method in TAUGHT)
    assert look.target is None or look.target.shape == look.embedding.shape
    assert (look.prototypes is not None) == (method == "swav")
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


@pytest.mark.parametrize("method", list(CONFIGS))
def test_a_plan_imagines_the_step(method):
    task = imagine(lambda loaded: paired_task(method, apart=False))

    def example(images: int) -> dict[str, torch.Tensor]:
        shapes = paired_batch(method, images)
        return {name: value.to("meta") if value.ndim > 1 else value for name, value in shapes.items()}

    assert profile_pass(task, example, 2, precision="bf16").flops > 0


@pytest.mark.parametrize("method", TAUGHT)
def test_a_teacher_begins_as_a_copy_and_follows_by_the_momentum_of_the_step(method):
    task = paired_task(method, apart=False)
    for theirs, ours in ((task.teacher, task.model), (task.teacher_head, task.head)):
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    steps, start = 10, task.config.momentum
    for step in (0, 5, 9, 10):
        by_paper = 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2
        assert task.momentum(step, steps) == pytest.approx(start if method == "moco_v2" else by_paper)
    task(paired_batch(method, 2))
    pairs = list(zip(task.teacher.parameters(), task.model.parameters(), strict=True))
    pairs += zip(task.teacher_head.parameters(), task.head.parameters(), strict=True)
    with torch.no_grad():
        for _, ours in pairs:
            ours.add_(1.0)
    task.after_step(5, steps)
    for theirs, ours in pairs:
        torch.testing.assert_close(theirs, ours - task.momentum(5, steps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "densenet"])
@pytest.mark.parametrize("looked", [False, True])
def test_a_teacher_drops_nothing_in_training(family, looked):
    torch.manual_seed(0)
    model = tiny_model(family, drop_path=0.5 if family == "vit" else 0.0)
    for module in model.modules():
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.5  # of the DenseNet's dropout, which is a function
    task = TASKS["byol"](model, CONFIGS["byol"], fresh=True)
    if looked:
        task.eval()
        assert not any(module.training for module in task.modules())
        task.train()
    images = paired_batch("byol", 4)["image"][:, 0]
    assert torch.equal(task.target(images), task.target(images))
    assert not torch.equal(task.embed(images), task.embed(images))


@pytest.mark.parametrize("family", ["densenet", "resnet"])
def test_a_teachers_batch_norm_is_over_its_own_batch_and_learns_from_it(family):
    task, plain = paired_task("byol", family), paired_task("byol", family)
    for module in plain.teacher.modules():
        module.train()  # nothing of these networks is dropped
    images = paired_batch("byol", 4)["image"][:, 0]
    assert torch.equal(task.target(images), plain.target(images))
    for name, value in task.teacher.named_buffers():
        assert torch.equal(value, plain.teacher.get_buffer(name))
        assert "running" not in name or not torch.equal(value, task.model.get_buffer(name)), name


def test_keys_replace_the_oldest_of_the_queue_in_turn():
    task = paired_task("moco_v2")
    queue, written = task.queue, list(task.queue.clone())
    at = 0
    for number in range(7):  # 7 x 6 keys go round twice in a queue of 20
        keys = direction(torch.randn(6, 8, generator=torch.Generator().manual_seed(number)))
        task.enqueue(keys)
        for key in keys:
            written[at % 20] = key
            at += 1
        assert task.queue is queue and torch.equal(queue, torch.stack(written))
        assert int(task.oldest) == at % 20 and task.oldest.dtype == torch.int64


def test_keys_of_a_step_are_no_negatives_in_it_and_go_if_it_is_not_made():
    task, batch = paired_task("moco_v2", "vit"), paired_batch("moco_v2", 4)
    before = task.queue.clone()
    losses = [task.loss(batch).item() for _ in range(2)]
    assert losses[0] == losses[1] and torch.equal(task.queue, before)
    task.at_step(0, 10, None)
    task.loss(batch)
    keys = direction(task.target(batch["image"][:, 1]))
    task.after_step(0, 10)
    assert int(task.oldest) == 4 and torch.equal(task.queue[4:], before[4:])
    torch.testing.assert_close(task.queue[:4], keys)


def test_a_queue_shorter_than_a_global_batch_is_refused():
    tree = {"shards": ["a"], "method": {"name": "moco_v2", "queue": 20}, "train": {"global_batch_size": 24}}
    with pytest.raises(UsageError, match="must hold the keys of a global batch, got 20 for 24 images"):
        PretrainConfig.build(tree, where="t")
    PretrainConfig.build(override(tree, {"method.queue": 24}), where="t")


def test_moco_v3_leaves_the_patch_projection_and_the_positions_of_a_fresh_transformer():
    task, other = paired_task("moco_v3", "vit"), paired_task("moco_v3", "vit", fixed_patches=False)
    assert not any(p.requires_grad for p in task.model.net.patch_embed.parameters())
    assert all(p.requires_grad for p in other.model.net.patch_embed.parameters())
    assert not task.model.net.pos_embed.requires_grad
    positions = task.model.net.pos_embed[0, 1:]  # sine and cosine of the same angles
    halves = positions.unflatten(1, (2, 2, 8))
    torch.testing.assert_close(halves.square().sum(dim=2), torch.ones(16, 2, 8))
    for one in (task, other):
        projection = one.model.net.patch_embed.proj
        wide, _, side, _ = projection.weight.shape
        bound = math.sqrt(6 / (3 * side**2 + wide))
        assert 0.99 * bound < projection.weight.abs().max() <= bound and not projection.bias.any()
        assert float(projection.weight.detach().std()) == pytest.approx(
            bound / math.sqrt(3), rel=0.05
        )  # of a uniform one
    loaded, weights = paired_task("moco_v3", "vit", fresh=False), tiny_model("vit").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())


def test_a_network_with_joint_batch_norm_is_saved_as_the_plain_one(tmp_path):
    task = paired_task("byol", "resnet")
    task(paired_batch("byol", 4))  # running statistics of its own
    facts = {"kind": "pretrain", "image_size": SIZE, "fit": "pad"}
    save_model(task.result, tmp_path, backbone="resnet10t", findings=["a", "b"], facts=facts)
    model, _, _ = load_model(tmp_path)
    assert not any("Joint" in type(module).__name__ for module in model.modules())
    images = paired_batch("byol", 4)["image"][:, 0]
    task.eval()
    assert torch.equal(model(images), task.result(images))


def test_batch_norm_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="batch norm must be torch's or timm's for images, got BatchNorm3d"):
        join_batch_norm(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm3d(2)))


def test_nothing_is_exchanged_without_a_process_group():
    values = torch.randn(3, 2)
    assert gather(values) is values


@pytest.mark.parametrize(
    "method",
    ["moco_v2", "swav", *(pytest.param(name, marks=pytest.mark.slow) for name in ("simclr", "moco_v3", "byol"))],
)
def test_a_run_stopped_and_resumed_is_the_run_to_the_bit(method, shards, tmp_path):
    tree = finetune_tree(shards, steps=4, evaluate_every=4) | {
        "shards": [str(shards)],
        "method": CONFIGS[method].model_dump(mode="json", exclude_unset=True) | {"name": method},
        "model": {"backbone": "densenet121", "args": {"block_config": [2, 2], "growth_rate": 8}},
    }
    if method == "swav":
        tree["method"]["local_crops"] = {"count": 2, "size": 16}
    config = PretrainConfig.build(tree, where="t")
    whole = check_resumed_to_the_bit(config, tmp_path)
    last = Reader(whole / "checkpoints/step-00000004")
    assert last.names("buffer")
    if method == "moco_v2":  # round once
        assert int(last.full("oldest", "buffer")) == 4 * 8 % 20
