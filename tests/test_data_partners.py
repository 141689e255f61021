"""Partners: another image of the same study or patient, of the same folder, each equally likely."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_shards
from scipy.stats import chisquare

from cxrdist.data.config import CropConfig, InputConfig, LocalCropsConfig
from cxrdist.data.crops import CropImages
from cxrdist.data.order import sample_at
from cxrdist.data.partners import Partners
from cxrdist.data.samples import Samples, read_samples
from cxrdist.data.transforms import fit
from cxrdist.errors import UsageError
from cxrdist.seeds import Purpose, stream

UNCHANGED = CropConfig(
    scale=(1, 1), ratio=(1, 1), rotate=0, brightness=0, contrast=0, gamma=1, blur=0, noise=0
)  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return read_samples([make_shards(tmp_path_factory.mktemp("partners"), patients=20)], "train")


def drawn_table(count: int, *, folders: int = 3, per_patient: int = 4, seed: int = 0) -> pd.DataFrame:
    """Return an index over several folders whose patients and studies have the same names, in a random order."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, max(1, count // per_patient // folders), count)
    study = rng.integers(0, 2, count)
    folder, shard = rng.integers(0, folders, count), rng.integers(0, 5, count)
    return pd.DataFrame(
        {
            "tar": [f"/data/set{f}/x-train-{s:06d}.tar" for f, s in zip(folder, shard, strict=True)],
            "image_offset": rng.permutation(count) * 512,
            "patient_id": [f"p{number}" for number in patient],
            "study_id": [f"s{number}-{which}" for number, which in zip(patient, study, strict=True)],
        }
    )


def chosen(partners: Partners, sample: int, times: int) -> list[int]:
    return [partners.choose(sample, stream(1, Purpose.PARTNER, epoch, sample)) for epoch in range(times)]


@pytest.mark.parametrize("group_by", ["study", "patient"])
def test_a_partner_is_another_image_of_the_same_group_and_folder_if_there_is_one(group_by):
    table = drawn_table(600)
    partners = Partners(Samples(table), group_by)
    groups = list(zip([str(Path(tar).parent) for tar in table["tar"]], table[f"{group_by}_id"], strict=True))
    sizes = pd.Series(groups).value_counts()
    assert sizes.min() == 1  # some are alone
    for sample, group in enumerate(groups):
        found = set(chosen(partners, sample, 12))
        assert {groups[other] for other in found} == {group}
        assert (sample in found) == (sizes[group] == 1)
    assert partners.share == pytest.approx(np.mean([sizes[group] > 1 for group in groups]))


def test_each_other_image_is_equally_likely():
    table = pd.DataFrame({"tar": "/data/a/x.tar", "image_offset": np.arange(9), "patient_id": ["p"] * 7 + ["q"] * 2})
    partners = Partners(Samples(table), "patient")
    for sample in (0, 3, 6):
        counts = np.bincount(chosen(partners, sample, 3000), minlength=9)
        others = [number for number in range(7) if number != sample]
        assert counts.sum() == counts[others].sum()
        assert chisquare(counts[others]).pvalue > 0.01


def test_the_same_draw_gives_the_same_partner_and_another_epoch_another():
    partners = Partners(Samples(drawn_table(60, folders=1, per_patient=10)), "patient")
    assert chosen(partners, 5, 20) == chosen(partners, 5, 20)
    assert len(set(chosen(partners, 5, 20))) > 1


def test_two_folders_with_the_same_pseudonyms_share_no_patient():
    table = pd.DataFrame(
        {
            "tar": ["/data/a/x.tar", "/data/b/x.tar", "/data/b/x.tar"],
            "image_offset": [0, 0, 512],
            "patient_id": ["p"] * 3,
        }
    )
    partners = Partners(Samples(table), "patient")
    assert [set(chosen(partners, sample, 9)) for sample in range(3)] == [{0}, {2}, {1}]


def test_a_folder_named_twice_gives_no_image_itself_as_partner():
    once = drawn_table(80)
    table = pd.concat([once, once], ignore_index=True)
    partners, alone = Partners(Samples(table), "patient"), Partners(Samples(once), "patient")
    assert partners.share == alone.share
    for sample in range(len(table)):
        for other in chosen(partners, sample, 6):
            assert (other % 80 == sample % 80) == (chosen(alone, sample % 80, 1) == [sample % 80])


def test_images_without_a_patient_are_alone():
    table = pd.DataFrame(
        {"tar": "/data/a/x.tar", "image_offset": np.arange(5), "patient_id": [None, None, "p", "p", np.nan]}
    )
    partners = Partners(Samples(table), "patient")
    assert [chosen(partners, sample, 1) for sample in range(5)] == [[0], [1], [3], [2], [4]]


@pytest.mark.parametrize("column", [["p", "q", "r"], [None, None, None]])
def test_a_choice_that_would_change_nothing_is_refused(column):
    table = pd.DataFrame({"tar": "/data/a/x.tar", "image_offset": np.arange(3), "study_id": column})
    with pytest.raises(UsageError) as caught:
        Partners(Samples(table), "study")
    assert str(caught.value) == (
        "`method.positives` 'study' must find images of the same study, got none among 3 training images. Set "
        "it to 'image', or let more take part by `input.projection`."
    )


def test_many_samples_take_four_small_arrays():
    partners = Partners(Samples(drawn_table(100_000)), "patient")
    arrays = [value for value in vars(partners).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == len(vars(partners)) == 4
    assert sum(array.nbytes for array in arrays) <= 16 * 100_000


def test_the_second_crop_is_of_the_partner_and_all_others_of_the_image(samples):
    patients = samples.table["patient_id"].to_numpy()
    config = InputConfig(image_size=36, workers=0)
    local = {**UNCHANGED.model_dump(), "count": 1, "size": 36}
    images = CropImages(samples, config, 3, crops=UNCHANGED, local=LocalCropsConfig(**local), positives="patient")
    alone = 0
    for position in range(len(samples)):
        item = images[position]
        epoch, sample = sample_at(position, len(samples), 3)
        partner = images.partners.choose(sample, stream(3, Purpose.PARTNER, epoch, sample))
        assert patients[partner] == patients[sample]
        assert (partner == sample) == ((patients == patients[sample]).sum() == 1)
        alone += partner == sample
        for crop, shown in zip((*item["image"], item["local"][0]), (sample, partner, sample), strict=True):
            assert np.array_equal(crop[0].numpy(), fit(samples.image(shown), 36, "pad"))
    assert 0 < alone < len(samples)


def test_image_positives_change_only_the_second_crop(samples):
    config = InputConfig(image_size=36, workers=0)
    of_patient, of_image = (
        CropImages(samples, config, 3, crops=CropConfig(), positives=p) for p in ("patient", "image")
    )
    differ = 0
    for position in range(len(samples)):
        one, other = of_patient[position]["image"], of_image[position]["image"]
        assert torch.equal(one[0], other[0])
        differ += not torch.equal(one[1], other[1])
    assert 0 < differ < len(samples)


def test_a_study_of_one_image_each_is_refused(samples):
    with pytest.raises(UsageError, match=r"`method.positives` 'study' must find images of the same study"):
        CropImages(samples, InputConfig(), 0, crops=CropConfig(), positives="study")
