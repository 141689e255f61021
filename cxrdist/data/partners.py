"""Other images of the same study or patient, as positives (Vu et al. 2021, "MedAug: Contrastive learning leveraging
patient metadata improves representations for chest X-ray interpretation").  Shapes: N samples, M images, G groups.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cxrdist.data.samples import Samples
from cxrdist.errors import UsageError

GroupBy = Literal["study", "patient"]


class Partners:
    """Which images belong together, in four arrays: a million images take 16 MB, and forked processes share them.

    Studies and patients are those of one shard folder: another folder's never count as the same, whatever their
    pseudonyms.  An image of which there are several samples (a folder named twice) is one image, and no partner of its
    own.  What has no patient or no study is alone.
    """

    def __init__(self, samples: Samples, group_by: GroupBy) -> None:
        """Group the samples.

        Raises:
            UsageError: If each is alone in its group.
        """
        tars, names = pd.factorize(samples.table["tar"])
        folders, _ = pd.factorize(np.array([str(Path(name).parent) for name in names]))
        groups = _groups(folders[tars], samples.table[f"{group_by}_id"])
        offsets = samples.table["image_offset"].to_numpy()
        order = np.lexsort((offsets, tars, groups))
        new_group = np.diff(groups[order], prepend=-1) != 0
        new_image = new_group | (np.diff(tars[order], prepend=-1) != 0) | (np.diff(offsets[order], prepend=-1) != 0)
        image = np.cumsum(new_image) - 1
        self.members = order[new_image].astype(np.int32)
        """One sample of each image, group by group (M,)."""
        self.starts = np.append(image[new_group], len(self.members)).astype(np.int32)
        """Where each group begins in `members`, and its end (G + 1,)."""
        self.group, self.place = np.empty((2, len(order)), np.int32)
        """Of each sample: its group, and where its image is in `members` (N,)."""
        self.group[order] = np.cumsum(new_group) - 1
        self.place[order] = image
        if not self.share:
            raise UsageError(
                f"`method.positives` {group_by!r} must find images of the same {group_by}, got none among "
                f"{len(samples)} training images. Set it to 'image', or let more take part by `input.projection`."
            )

    @property
    def share(self) -> float:
        """Return the share of the samples that have a partner."""
        return float((np.diff(self.starts) > 1)[self.group].mean())

    def choose(self, sample: int, rng: np.random.Generator) -> int:
        """Return a sample of another image of the same group, each equally likely; `sample` itself without one."""
        start, stop = self.starts[self.group[sample] :][:2].tolist()
        others = stop - start - 1
        if not others:
            return sample
        place = start + int(rng.integers(others))
        return int(self.members[place + (place >= self.place[sample])])


def _groups(folders: np.ndarray, ids: pd.Series) -> np.ndarray:
    """Return the number of each sample's group (N,), one of its own for what has no id."""
    numbers, names = pd.factorize(ids)  # -1 where there is none
    groups = folders * np.int64(len(names)) + numbers
    alone = numbers < 0
    groups[alone] = (folders.max(initial=0) + 1) * np.int64(len(names)) + np.arange(alone.sum())
    return groups
