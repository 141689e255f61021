"""Losses over many findings: by their papers' formulas, masked, soft, and finite at any logit."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torchvision.ops import sigmoid_focal_loss

from cxrdist.errors import UsageError
from cxrdist.train.loss_config import LossConfig
from cxrdist.train.losses import MultiLabelLoss, multilabel_losses, shifted

LOSSES = {
    "bce": LossConfig(),
    "focal": LossConfig(name="focal", gamma=2),
    "focal below 1": LossConfig(name="focal", gamma=0.5),
    "asymmetric": LossConfig(name="asymmetric"),
    "asymmetric below 1": LossConfig(name="asymmetric", gamma_positive=0.5, gamma_negative=0.5, margin=0.2),
    "asymmetric without margin": LossConfig(name="asymmetric", gamma_negative=2, margin=0),
    "smoothed": LossConfig(label_smoothing=0.2),
}
ONES = torch.ones(3)


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and hard targets (50, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(50, 3, generator=generator), torch.randint(0, 2, (50, 3), generator=generator).float()


def test_cross_entropy_is_scikit_learn_s():
    logits, targets = random_case()
    ours = multilabel_losses(LossConfig(), logits, targets, ONES)
    for k in range(3):
        p = torch.sigmoid(logits[:, k].double()).numpy()
        assert ours[:, k].mean().item() == pytest.approx(log_loss(targets[:, k].numpy(), p), rel=1e-5)


def test_focal_loss_is_torchvision_s():
    logits, targets = random_case()
    ours = multilabel_losses(LossConfig(name="focal", gamma=1.7), logits, targets, ONES)
    torch.testing.assert_close(ours, sigmoid_focal_loss(logits, targets, alpha=-1, gamma=1.7))


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
def test_asymmetric_loss_is_the_paper_s(margin):
    logits, targets = random_case()
    config = LossConfig(name="asymmetric", gamma_positive=1, gamma_negative=4, margin=margin)
    p = torch.sigmoid(logits.double())
    p_m = (p - margin).clamp(min=0)
    expected = torch.where(targets == 1, -(1 - p) * p.log(), -(p_m**4) * (1 - p_m).log())
    torch.testing.assert_close(multilabel_losses(config, logits, targets, ONES), expected.float())


@pytest.mark.parametrize("margin", [1e-12, 1e-8, 9e-7, 1e-6, 1e-3])
def test_a_margin_that_float32_does_not_tell_from_none_gives_no_infinite_loss(margin):
    logits = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0], requires_grad=True)
    loss = shifted(logits, 2.0, margin)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()


def test_without_focus_and_margin_all_are_cross_entropy():
    logits, targets = random_case()
    weight = torch.tensor([1.0, 4.0, 0.5])
    plain = multilabel_losses(LossConfig(), logits, targets, weight)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")
    torch.testing.assert_close(plain, bce)
    for config in (LossConfig(name="focal", gamma=0), LossConfig(name="asymmetric", gamma_negative=0, margin=0)):
        torch.testing.assert_close(multilabel_losses(config, logits, targets, weight), bce)


@pytest.mark.parametrize("name", LOSSES)
def test_a_soft_target_is_the_mean_of_yes_and_no(name):
    logits, _ = random_case()
    weight = torch.tensor([1.0, 4.0, 0.5])
    yes, no = (multilabel_losses(LOSSES[name], logits, torch.full((50, 3), value), weight) for value in (1.0, 0.0))
    soft = multilabel_losses(LOSSES[name], logits, torch.full((50, 3), 0.3), weight)
    torch.testing.assert_close(soft, 0.3 * yes + 0.7 * no)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_any_finite_logit_has_a_finite_loss_and_gradient(name, target):
    # 0.05 and 0.2 are margins: exactly there the probability less the margin is 0.
    edges = torch.logit(torch.tensor([0.05, 0.2, 0.5]))
    logits = torch.cat([torch.tensor([-1e6, -200.0, -50.0, -1e-3, 1e-3, 50.0, 200.0, 1e6]), edges])[:, None]
    logits.requires_grad_(True)
    losses = multilabel_losses(LOSSES[name], logits, torch.full_like(logits, target), torch.ones(1))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert (losses >= 0).all()
    assert torch.isfinite(logits.grad).all()
    if target == 1:
        assert (logits.grad[:-3] <= 1e-6).all() or LOSSES[name].label_smoothing


def test_smoothing_is_of_the_known_targets_only():
    logits, targets = random_case()
    targets[0, 0] = torch.nan
    smooth = MultiLabelLoss(LossConfig(label_smoothing=0.2), pos_weight=np.ones(3), known_share=1.0)
    plain = MultiLabelLoss(LossConfig(), pos_weight=np.ones(3), known_share=1.0)
    assert smooth(logits, targets).item() == pytest.approx(plain(logits, targets * 0.8 + 0.1).item())


@pytest.mark.parametrize("name", LOSSES)
def test_masked_targets_change_nothing_and_have_no_gradient(name):
    logits, targets = random_case()
    masked = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) < 0.4
    targets[masked] = torch.nan
    loss = MultiLabelLoss(LOSSES[name], pos_weight=np.array([1.0, 4.0, 0.5]), known_share=0.6)
    logits.requires_grad_(True)
    value = loss(logits, targets)
    value.backward()
    assert (logits.grad[masked] == 0).all()
    silent = (targets == 0) & (torch.sigmoid(logits) <= LOSSES[name].margin)
    assert (logits.grad[~masked & ~silent] != 0).all()
    elsewhere = logits.detach().clone()
    elsewhere[masked] = 17.0
    assert loss(elsewhere, targets).item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_over_micro_batches_is_the_loss_of_the_batch(name):
    logits, targets = random_case()
    targets[::3, 1] = torch.nan
    loss = MultiLabelLoss(LOSSES[name], pos_weight=np.ones(3), known_share=0.9)
    parts = [loss(logits[i : i + 10], targets[i : i + 10]).item() for i in range(0, 50, 10)]
    assert np.mean(parts) == pytest.approx(loss(logits, targets).item(), rel=1e-5)


def test_logits_that_are_not_finite_are_not_hidden_by_a_mask():
    loss = MultiLabelLoss(LossConfig(), pos_weight=np.ones(1), known_share=1.0)
    assert torch.isnan(loss(torch.tensor([[torch.nan], [0.0]]), torch.tensor([[torch.nan], [1.0]])))


def test_settings_of_another_loss_are_refused():
    with pytest.raises(UsageError, match="must not set gamma, margin with `name` 'bce'"):
        LossConfig.build({"gamma": 3, "margin": 0.1}, where="a.yaml")
    resolved = LossConfig(name="focal", gamma=3).tree()
    assert LossConfig.build(resolved, where="a.yaml") == LossConfig(name="focal", gamma=3)
