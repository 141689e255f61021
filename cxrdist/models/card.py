"""The `README.md` of an exported model: what it predicts, what it must be given, and where it comes from."""

from collections.abc import Sequence
from typing import Any

FITS = {
    "pad": "scaled by its longer side, centred, the rest filled with black",
    "crop": "its centre square, scaled",
    "squash": "scaled to a square, its aspect ignored",
}

FRONT = """---
library_name: timm
pipeline_tag: {pipeline}
tags:
- timm
- chest-x-ray
- medical
---
"""


def model_card(
    *,
    findings: Sequence[str],
    facts: dict[str, Any],
    config: dict[str, Any],
    provenance: dict[str, Any],
    name: str,
    in_shards: bool,
) -> str:
    """Return the card as Markdown with the hub's front matter; `config` is the `config.json` beside it."""
    side, mean, std = (config["pretrained_cfg"][key] for key in ("input_size", "mean", "std"))
    purpose = f"Logits of {len(findings)} findings" if findings else f"Features of width {config['num_features']}"
    parts = [
        FRONT.format(pipeline="image-classification" if findings else "image-feature-extraction"),
        f"# {name}\n\n{purpose} from a chest radiograph, by `{config['architecture']}`. Trained with cxrdist. "
        "For research: it is no medical device.\n",
    ]
    if findings:
        rows = "\n".join(f"| {number} | {finding} |" for number, finding in enumerate(findings))
        parts.append(
            "## Outputs\n\nOne logit per finding; each finding's probability is the sigmoid of its own logit.\n\n"
            f"| output | finding |\n|---:|---|\n{rows}\n"
        )
    else:
        parts.append("## Outputs\n\nPooled features of a backbone pretrained without labels; there is no classifier.\n")
    parts.append(
        f"## Input\n\nA grey image, bright where tissue is dense, {FITS[facts['fit']]}, to "
        f"{side[1]} x {side[2]} pixels (antialiased). Grey levels are divided by the largest one (255 for 8 bits), "
        f"repeated over {side[0]} channel{'s' if side[0] > 1 else ''}, less the mean, divided by the standard "
        f"deviation:\n\n- mean: {_numbers(mean)}\n- standard deviation: {_numbers(std)}\n"
    )
    parts.append(f"## Use\n\n```python\n{_usage(bool(findings), in_shards)}```\n")
    if provenance:
        rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in provenance.items())
        parts.append(f"## Training\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _usage(classifies: bool, in_shards: bool) -> str:
    lines = ["import timm"]
    if in_shards:
        lines += [
            "from huggingface_hub import load_torch_model",
            "",
            'model = timm.create_model("local-dir:THIS_FOLDER")',
            'load_torch_model(model, "THIS_FOLDER", strict=True)  # several weight files: timm reads one only',
            "model.eval()",
        ]
    else:
        lines += ["", 'model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()']
    result = "probabilities = model(images).sigmoid()" if classifies else "features = model(images)"
    return "\n".join([*lines, f"{result}  # images: (B, 3, H, W) float32, normalised as above", ""])


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(f"{one['name']} (manifest {one['sha256'][:12]})" for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
