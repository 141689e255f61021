"""Models for others: a folder that timm and the Hugging Face hub read, checked against what it was made from.

Shapes: B images, K findings, S input side.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cxrdist.disk import sync
from cxrdist.errors import UsageError, UserError
from cxrdist.models.bits import same_bits
from cxrdist.models.build import RadiographModel
from cxrdist.models.card import model_card
from cxrdist.models.folder import FACTS, load_model
from cxrdist.models.knn import KnnHead
from cxrdist.models.provenance import known_facts, read_provenance

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FITS = {"pad": "border", "crop": "center", "squash": "squash"}
"""Our ways of making an image square, in timm's words; timm's border is grey where ours is black."""


@dataclass(frozen=True)
class Source:
    """A trained model, and where its weights lie."""

    model: RadiographModel
    """In evaluation mode; a pretrained backbone without the head it never trained."""
    findings: list[str]
    """What its outputs are; empty for a backbone, whose outputs are features."""
    facts: dict[str, Any]
    """Kind, image size and fit: nothing private."""
    config: dict[str, Any]
    """The `config.json` beside the weights."""
    folder: Path
    provenance: dict[str, Any]

    @property
    def image_size(self) -> int:
        """S, pixels."""
        return int(self.facts["image_size"])


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the source."""

    format: str
    out: str
    findings: list[str]
    outputs: str
    """``logits`` of the findings, or ``features``."""
    tensors: int
    parameters: int
    largest_difference: float
    """Largest absolute difference of an output from the source's, over all images of the check."""
    tolerance: float
    """The largest difference that would have passed."""
    checked_images: int
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each."""
    notes: dict[str, Any] = field(default_factory=dict)


def read_source(path: Path) -> Source:
    """Return the model in a model folder or in the run folder around it.

    Raises:
        UserError: If there is none of ours, or if it would take its training images' labels along.
    """
    model, findings, facts = load_model(path)
    if any(isinstance(module, KnnHead) for module in model.modules()):
        raise UserError(
            f"A model must hold no patient's data to be exported, got nearest neighbours [in {path.name}]: their bank "
            "is the features and labels of every training image. Export one that was trained with another protocol."
        )
    folder = path / "model" if (path / "model" / "config.json").is_file() else path
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if facts.get("kind") == "pretrain":
        # Its head has the random weights it began with: pretraining does not use it.
        model.net.reset_classifier(0)
        findings = []
    return Source(model.eval(), findings, known_facts(facts), config, folder, read_provenance(folder.parent))


def export_hf(source: Source, out: Path, *, shard_size: str | None = None) -> Exported:
    """Write `source` as a folder for ``timm.create_model("local-dir:OUT", pretrained=True)``, there once it is checked.

    Args:
        source: The model.
        out: A folder that is not there, or empty.
        shard_size: Largest weight file, as in ``5GB``; above it there are several and an index, as the Hugging Face
            hub has them.  timm reads one file only, so that without it there is one, however large.

    Raises:
        UsageError: If `out` holds something.
        UserError: If the disk refuses, or if what was written is not the source.
    """
    with new_folder(out) as hidden:
        tensors = {name: value.contiguous() for name, value in source.model.net.state_dict().items()}
        limit = shard_size or sum(value.nbytes for value in tensors.values()) + 1
        try:
            huggingface_hub.save_torch_state_dict(tensors, hidden, max_shard_size=limit)
        except ValueError as error:
            raise UsageError(f"`--shard-size` must be a size like 5GB, got {shard_size!r}: {error}.") from None
        in_shards = not (hidden / WEIGHTS).is_file()
        _write_json(hidden / "config.json", hf_config(source))
        card = model_card(
            findings=source.findings, facts=source.facts, config=hf_config(source), provenance=source.provenance,
            name=out.name, in_shards=in_shards,
        )  # fmt: skip
        (hidden / "README.md").write_text(card, encoding="utf-8")
        compare_tensors(read_exported(hidden), source)
        images = check_images(source.image_size)
        difference, tolerance = compare_outputs(source, _timm_outputs(hidden, source, images, in_shards), images)
        files = {file.name: file.stat().st_size for file in sorted(hidden.iterdir())}
    return Exported(
        format="hf",
        out=str(out),
        findings=source.findings,
        outputs=outputs_of(source),
        tensors=len(tensors),
        parameters=sum(parameter.numel() for parameter in source.model.net.parameters()),
        largest_difference=difference,
        tolerance=tolerance,
        checked_images=len(images),
        files=files,
    )


def hf_config(source: Source) -> dict[str, Any]:
    """Return `config.json`: the source's own, what timm needs to prepare images, and none of our private facts."""
    classes = len(source.findings)
    net = source.model.net
    mean, std = constants(source.model)
    config = {
        "architecture": source.config["architecture"],
        "num_classes": classes,
        "num_features": net.num_features,
        "model_args": source.config["model_args"],
        "pretrained_cfg": {
            **source.config["pretrained_cfg"],
            "fixed_input_size": bool(net.pretrained_cfg.get("fixed_input_size", False)),
            "input_size": [len(mean), source.image_size, source.image_size],
            "mean": mean,
            "std": std,
            "num_classes": classes,
            "crop_pct": 1.0,
            "crop_mode": FITS[source.facts["fit"]],
            "interpolation": "bilinear",
        },
        FACTS: source.facts,
    }
    if source.findings:
        config["label_names"] = source.findings
    return config


def constants(model: RadiographModel) -> tuple[list[float], list[float]]:
    """Return (mean, deviation) per channel with no more digits than it takes to read back the same float32."""
    mean, std = ([float(str(value)) for value in held.flatten().numpy()] for held in (model.mean, model.std))
    return mean, std


def outputs_of(source: Source) -> str:
    """Return what the model's outputs are, in a word."""
    return "logits" if source.findings else "features"


def check_images(size: int, *, seed: int = 0) -> torch.Tensor:
    """Return images (B, 1, S, S) uint8 on which two models are compared: noise, and what is far from any radiograph.

    Black, white, a chessboard of both, a ramp, and one white pixel, besides noise of two kinds.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
    coarse = torch.randint(0, 256, (1, 1, 4, 4), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0].to(torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ramp = (255 * (rows + columns) / (2 * max(1, size - 1))).to(torch.uint8)
    point = torch.zeros(size, size, dtype=torch.uint8)
    point[size // 2, size // 3] = 255
    board = ((rows + columns) % 2 * 255).to(torch.uint8)
    plain = [torch.full((size, size), level, dtype=torch.uint8) for level in (0, 255)]
    return torch.cat([noise, smooth, torch.stack([*plain, board, ramp, point])])[:, None]


TOLERANCE = 1e-4
"""Largest difference of two outputs, as a share of the largest output: rounding in another order stays far below."""


def compare_outputs(source: Source, outputs: torch.Tensor, images: torch.Tensor) -> tuple[float, float]:
    """Return (largest absolute difference, tolerance) of `outputs` (B, K) from the source's on `images`.

    Raises:
        UserError: If the difference is above the tolerance.
    """
    expected = source_outputs(source, images)
    tolerance = TOLERANCE * float(expected.abs().max())
    if outputs.shape != expected.shape:
        raise UserError(f"An exported model must give outputs {tuple(expected.shape)}, got {tuple(outputs.shape)}.")
    difference = float((outputs - expected).abs().max())
    if not difference <= tolerance:  # a NaN is above it too
        raise UserError(
            f"An exported model must give the source's outputs to {tolerance:.2g}, got a difference of "
            f"{difference:.2g}. Nothing was written; please report the backbone and the versions of torch and timm."
        )
    return difference, tolerance


@torch.no_grad()
def source_outputs(source: Source, images: torch.Tensor) -> torch.Tensor:
    """Return the source's outputs (B, K), one image at a time: a large model needs no more memory than for one."""
    return torch.cat([source.model(image[None]).float() for image in images])


def compare_tensors(written: Mapping[str, torch.Tensor], source: Source) -> None:
    """Compare what was written with the source's weight file: names, types, shapes and every bit.

    Raises:
        UserError: If they differ, with the first name.
    """
    head = () if source.findings else _classifier(source)
    wanted = {
        name: value
        for name, value in load_file(source.folder / WEIGHTS).items()
        if not any(name.startswith(f"{part}.") for part in head)
    }
    differing = sorted(wanted.keys() ^ written.keys()) or [
        name for name, value in wanted.items() if not same_bits(value, written[name])
    ]
    if differing:
        raise UserError(
            f"An exported model must have the source's {len(wanted)} tensors, got {len(differing)} that differ "
            f"({differing[0]} ...). Nothing was written."
        )


def read_exported(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder in the hub's layout, of one file or several, memory-mapped."""
    index = folder / INDEX
    if not index.is_file():
        return load_file(folder / WEIGHTS)
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    read = {file: load_file(folder / file) for file in sorted(set(files.values()))}
    return {name: read[file][name] for name, file in files.items()}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `out` when the block ends well, and is removed when it does not.

    Raises:
        UsageError: If `out` is there and holds something.
        UserError: If the disk refuses.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"`--out` must be a new or an empty folder, got one with other things in it [{out}].")
    hidden = out.parent / f".partial-{out.name}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        yield hidden
        for file in (*hidden.iterdir(), hidden):
            sync(file)
        hidden.replace(out)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a file cut short (is the disk full?)"
        raise UserError(f"`--out` must be writable, got {reason!r} [{out}].") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@torch.no_grad()
def _timm_outputs(folder: Path, source: Source, images: torch.Tensor, in_shards: bool) -> torch.Tensor:
    net = timm.create_model(f"local-dir:{folder}", pretrained=not in_shards)
    if in_shards:
        huggingface_hub.load_torch_model(net, folder, strict=True)
    net.eval()
    return torch.cat([net(source.model.normalise(image[None])).float() for image in images])


def _classifier(source: Source) -> tuple[str, ...]:
    names = source.model.net.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
