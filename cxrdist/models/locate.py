"""Where weights lie on this machine.  No torch here: a study hashes its weight files before it starts anything."""

import json
from pathlib import Path

from cxrdist.errors import UsageError, UserError

TIMM = "timm:"
"""What begins the name of weights that timm knows: ``timm:vit_base_patch14_dinov2.lvd142m``."""

FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""What timm, transformers and OpenCLIP call the weights in a model folder; the first that is there is read."""

INDEX = ".index.json"
"""End of the name of a file that says which of several files holds which tensor."""


def is_timm_name(weights: str | Path) -> bool:
    """Return whether `weights` names weights that timm knows, and not a path."""
    return str(weights).startswith(TIMM)


def absolute_weights(weights: str) -> str:
    """Return `weights` in a form that means the same in another working folder."""
    return weights if is_timm_name(weights) else str(Path(weights).absolute())


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a file, a model folder or the run folder around it.

    Raises:
        UserError: If there is none, or if one that an index names is missing.
    """
    for folder in (path, path / "model"):
        for file in (folder / name for name in FOLDER_FILES):
            if file.is_file():
                return _indexed(file) if file.name.endswith(INDEX) else [file]
    if path.is_file():
        return [path]
    raise UsageError(
        f"`weights` must be a weight file, a model folder or a run folder, got {str(path)!r}. "
        "Check the path; there is no download."
    )


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names, all of them beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError):
        raise UserError(
            f"The index of a model folder must map tensors to files, got another content [in {index.name}]. "
            "Copy it again."
        ) from None
    # A name with a folder in it would read outside of the model folder.
    lost = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if lost or not names:
        raise UserError(
            f"A model folder must hold every file that its index names, got none for {', '.join(lost) or 'any tensor'} "
            f"[in {index.name}]. Copy the folder whole."
        )
    return [index.parent / name for name in names]
