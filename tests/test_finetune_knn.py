"""Nearest neighbours against a loop that can be read, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from tiny_nets import SIZE, tiny_model

from cxrdist.errors import UsageError
from cxrdist.finetune.knn import KnnConfig, fit_knn
from cxrdist.models.folder import save_model
from cxrdist.models.head import classifier_name
from cxrdist.models.knn import KnnHead, knn_predict, restore_knn
from cxrdist.models.weights import read_weights


def case(seed: int = 0, *, masked: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a bank (60, 8), its targets (60, 3) and features (17, 8)."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((60, 3)) < 0.4).astype(np.float32)
    targets[rng.random((60, 3)) < masked] = np.nan
    bank, features = rng.standard_normal((60, 8)), rng.standard_normal((17, 8))
    return torch.from_numpy(bank).float(), torch.from_numpy(targets), torch.from_numpy(features).float()


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_neighbours_vote_as_in_a_plain_loop(k, temperature):
    bank, targets, features = case()
    predicted = knn_predict(bank, targets, features, k, temperature).numpy()
    for i, x in enumerate(features.double().numpy()):
        cosines = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in bank.double().numpy()]
        nearest = sorted(range(60), key=lambda j: -cosines[j])[:k]
        for finding in range(3):
            votes = [(math.exp(cosines[j] / temperature), float(targets[j, finding])) for j in nearest]
            known = [(weight, y) for weight, y in votes if not math.isnan(y)]
            if known:
                expected = sum(weight * y for weight, y in known) / sum(weight for weight, _ in known)
            else:
                expected = float(np.nanmean(targets[:, finding].numpy()))
            assert predicted[i, finding] == pytest.approx(expected, abs=1e-5)


def test_without_masks_it_is_scikit_learn_s():
    bank, targets, features = case(masked=0)
    reference = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    reference.fit(bank.numpy(), targets.numpy())
    expected = np.stack([p[:, 1] for p in reference.predict_proba(features.numpy())], axis=1)
    np.testing.assert_allclose(knn_predict(bank, targets, features, 7, 0.1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 16, 17, 100])
def test_chunks_change_nothing(chunk):
    bank, targets, features = case()
    whole = knn_predict(bank, targets, features, 5, 0.07)
    torch.testing.assert_close(knn_predict(bank, targets, features, 5, 0.07, chunk=chunk), whole, atol=1e-6, rtol=0)


def test_a_far_known_neighbour_votes_where_the_near_ones_do_not_know():
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    targets = torch.tensor([[torch.nan], [1.0]])
    assert knn_predict(bank, targets, torch.tensor([[1.0, 0.0]]), 2, 0.01).item() == 1.0


def test_nothing_known_is_the_bank_s_share_and_never_known_is_a_half():
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    targets = torch.tensor([[torch.nan, torch.nan], [1.0, torch.nan], [0.0, torch.nan], [0.0, torch.nan]])
    predicted = knn_predict(bank, targets, torch.tensor([[1.0, 0.0]]), 1, 0.07)
    torch.testing.assert_close(predicted, torch.tensor([[1 / 3, 0.5]]))


def test_logits_are_finite_and_in_full_precision_under_autocast():
    bank, targets, features = case(masked=0)
    head = KnnHead(bank, targets, k=1, temperature=0.07)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features.bfloat16())
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert head(features).abs().min() > 9  # one neighbour is of one mind


@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "densenet"])
def test_a_model_folder_with_neighbours_predicts_by_itself(family, tmp_path):
    model = tiny_model(family, findings=3)
    images = torch.rand(30, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    targets = np.random.default_rng(0).integers(0, 2, (30, 3)).astype(np.float32)
    with torch.no_grad():
        fit_knn(model, targets, KnnConfig(k=5), lambda features: features(images).numpy())
        logits = model(images[:4])
    save_model(model, tmp_path, backbone="any", findings=["a", "b", "c"], facts={"image_size": SIZE})
    tensors = read_weights(tmp_path / "model.safetensors")
    other = tiny_model(family, findings=3, seed=1).eval()
    restore_knn(other.net, tensors)
    other.net.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        assert torch.equal(other(images[:4]), logits)
    # Each image is its own nearest neighbour: it gets a logit of its own side where it alone is asked.
    head = other.net.get_submodule(classifier_name(other.net))
    head.k.fill_(1)
    with torch.no_grad():
        assert torch.equal(other(images) > 0, torch.from_numpy(targets) == 1)


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(UsageError, match=r"`protocol\.knn\.k` must be at most the number of training images, got 20"):
        fit_knn(tiny_model(), np.zeros((4, 2)), KnnConfig(), lambda _: np.zeros((4, 32), np.float32))
