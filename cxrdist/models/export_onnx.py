"""Models as one ONNX graph that takes grey images as they are packed; compared with the source by ONNX Runtime.

Shapes: B images (free), K findings, S input side.
"""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cxrdist import __version__
from cxrdist.errors import UsageError, UserError
from cxrdist.models.export import (
    Exported,
    Source,
    check_images,
    compare_outputs,
    constants,
    new_folder,
    outputs_of,
)

Pixels = Literal["uint8", "float32"]
PIXELS: dict[str, str] = {
    "uint8": "grey levels 0 to 255",
    "float32": "grey levels in [0, 1]: divided by the largest one, 255 for 8 bits",
}
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MODEL = "model.onnx"
ONE_FILE_BYTES = 2 * 1024**3 - 64 * 1024**2
"""Largest weights in the graph's own file: protobuf ends at 2 GiB, and the graph needs room too."""


def check_extra() -> None:
    """Check that the packages of the extra are there.

    Raises:
        UsageError: If one is not.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"`--to onnx` needs {', '.join(PACKAGES)}, got none of {', '.join(missing)}. pip install 'cxrdist[onnx]'"
        )


def export_onnx(
    source: Source, out: Path, *, pixels: Pixels = "uint8", one_file_bytes: int = ONE_FILE_BYTES
) -> Exported:
    """Write `source` as ``model.onnx`` in the folder `out`, which appears when the outputs have been compared.

    Input ``image``: (B, 1, S, S), grey, of type `pixels`; normalisation is inside.  Output ``logits`` (B, K), or
    ``features`` (B, D) of a backbone.  Findings, constants and what an input must be stand in the file's metadata.

    Args:
        source: The model.
        out: A folder that is not there, or empty.
        pixels: Type of the input.
        one_file_bytes: Weights above it go into a second file beside the graph.

    Raises:
        UsageError: If `out` holds something, or the extra is not installed.
        UserError: If torch cannot export the model, the disk refuses, or the outputs differ.
    """
    check_extra()
    images = check_images(source.image_size)
    program = _program(source, images, pixels)
    tensors, size = _clean(program.model)
    program.model.metadata_props.update(metadata(source, pixels))
    with new_folder(out) as hidden:
        program.save(hidden / MODEL, external_data=size > one_file_bytes)
        given = images if pixels == "uint8" else images.float() / 255
        # Together and each alone: the batch is free, and some graphs are right at the size they were traced with only.
        found = [_run(hidden / MODEL, batch) for batch in (given, given[:1])]
        difference, tolerance = compare_outputs(source, found[0], images)
        difference = max(difference, compare_outputs(source, found[1], images[:1])[0])
        files = {file.name: file.stat().st_size for file in sorted(hidden.iterdir())}
    return Exported(
        format="onnx",
        out=str(out),
        findings=source.findings,
        outputs=outputs_of(source),
        tensors=tensors,
        parameters=sum(parameter.numel() for parameter in source.model.net.parameters()),
        largest_difference=difference,
        tolerance=tolerance,
        checked_images=len(images),
        files=files,
        notes={"opset": program.model.opset_imports[""], "ir_version": program.model.ir_version, "input": pixels},
    )


def metadata(source: Source, pixels: Pixels) -> dict[str, str]:
    """Return the file's own metadata: what a program needs that has nothing but the file.  Lists are JSON."""
    mean, std = constants(source.model)
    return {
        "architecture": str(source.config["architecture"]),
        "findings": json.dumps(source.findings),
        "outputs": "logits; the sigmoid of each is its finding's probability" if source.findings else "features",
        "image_size": str(source.image_size),
        "fit": str(source.facts["fit"]),
        "pixels": f"{pixels}, one channel, bright where tissue is dense, {PIXELS[pixels]}",
        "normalisation": "inside the graph",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "cxrdist": __version__,
        "provenance": json.dumps(source.provenance),
    }


def _program(source: Source, images: torch.Tensor, pixels: Pixels) -> Any:
    example = images[:2] if pixels == "uint8" else images[:2].float() / 255
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about torch
            program = torch.onnx.export(
                _Float(source.model),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["image"],
                output_names=[outputs_of(source)],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise UserError(
            f"`--to onnx` needs a backbone that torch can export, got {source.config['architecture']!r}: "
            f"{cause[0] if cause else 'no reason given'}. Use --to hf."
        ) from None
    assert program is not None
    return program


class _Float(nn.Module):
    """Gives float32, whatever the weights are in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.model(image)
        return outputs.float()


def _clean(model: Any) -> tuple[int, int]:
    """Take out where each node's code lies on this machine; return (number, bytes) of the weights."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        graph.metadata_props.clear()
    model.metadata_props.clear()
    weights = [value.const_value for value in model.graph.initializers.values()]
    return len(weights), sum(weight.nbytes for weight in weights if weight is not None)


def _run(path: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime  # noqa: PLC0415 - of the extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
