"""The demo: phantoms of three sites, packed by three importers, one study, one report."""

import os
from dataclasses import dataclass
from pathlib import Path

from cxrdist.config import override, read_yaml, shipped
from cxrdist.datasets import read_facts
from cxrdist.log import get_logger
from cxrdist.pack import PackOptions
from cxrdist.pack.dataset import pack_dataset
from cxrdist.phantom import write_phantoms
from cxrdist.study.config import StudyConfig
from cxrdist.study.run import run_study

log = get_logger(__name__)

STUDY = "studies/demo.yaml"
DRAWN_SIZE = 128
"""Shorter side of the phantoms, pixels."""
PACKED_SIZE = 96
"""Shorter side in the shards; above the study's 64, so that augmentation has something to crop."""
DIFFICULTY = 0.2
"""Findings that a small network can learn from a few hundred images; 0.5 is a radiograph's."""
HELD_OUT = 0.35
"""Share of the patients in the test split: enough of them for a difference of 0.1 to show."""


@dataclass(frozen=True)
class Site:
    """One phantom hospital."""

    layout: str
    patients: int
    seed: int


ID_KEY = "phantoms-have-no-secret-" + "0" * 40
"""The order of samples is that of their pseudonyms; one key for all gives everybody the same table."""

SITES = (Site("chexpert", 440, 1), Site("nih14", 420, 2), Site("vindr_cxr", 560, 3))


def run_demo(out: Path) -> Path:
    """Run the whole chain into `out` and return the report's page.  What is finished is not done again."""
    id_key = out / "private" / "id.key"
    if not id_key.is_file():
        id_key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        id_key.touch(mode=0o600)
        id_key.write_text(ID_KEY, encoding="utf-8")
    workers = max(1, min(8, os.cpu_count() or 1))
    for site in SITES:
        raw, shards = out / "raw" / site.layout, out / "shards" / site.layout
        if (shards / "manifest.json").is_file():
            continue
        write_phantoms(
            site.layout,
            raw,
            patients=site.patients,
            seed=site.seed,
            difficulty=DIFFICULTY,
            size=DRAWN_SIZE,
            held_out=HELD_OUT,
            workers=workers,
        )
        # One process packs these few small images in the time that several would take to start.
        options = PackOptions(size=PACKED_SIZE, id_key=id_key)
        manifest = pack_dataset(read_facts(site.layout), raw, shards, options)
        rejects = sum(manifest.rejects.values())
        log.info("%s: %d images in = %d samples + %d rejects.", site.layout, manifest.rows, manifest.samples, rejects)
    tree = override(read_yaml(shipped("launch") / STUDY), {"shards_root": str(out / "shards")})
    return run_study(StudyConfig.build(tree, where=STUDY), out / "study")
