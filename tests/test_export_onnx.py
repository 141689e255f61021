"""An ONNX file is the whole model: grey images in, the source's outputs out, on a runtime that has no torch."""

import importlib.util
import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from test_export import SECRET, SMALL, S, make_model, make_run_facts

from cxrdist.errors import UsageError, UserError
from cxrdist.models import export_onnx as exporting
from cxrdist.models.export import check_images, read_source
from cxrdist.models.export_onnx import export_onnx
from cxrdist.models.folder import load_model


def session(folder) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("family", SMALL)
def test_the_graph_gives_the_logits_of_any_number_of_grey_images(tmp_path, family):
    source = make_model(tmp_path / "run", family)
    result = export_onnx(read_source(source), tmp_path / "out")
    assert result.notes["opset"] >= 18
    runtime = session(tmp_path / "out")
    assert [(one.name, one.shape, one.type) for one in runtime.get_inputs()] == [
        ("image", ["batch", 1, S, S], "tensor(uint8)")
    ]
    model, _, _ = load_model(source)
    images = torch.cat([check_images(S, seed=seed) for seed in (11, 12)])
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.ptp(expected, axis=0).min() > 1e-3  # the images matter
    for batch in (1, 2, 7, len(images)):
        (logits,) = runtime.run(["logits"], {"image": images[:batch].numpy()})
        assert logits.dtype == np.float32
        assert np.abs(logits - expected[:batch]).max() <= 1e-4 * np.abs(expected).max()


def test_images_of_more_bits_go_in_as_floats(tmp_path):
    source = make_model(tmp_path / "run", "convnext")
    export_onnx(read_source(source), tmp_path / "out", pixels="float32")
    deep = torch.rand(3, 1, S, S, generator=torch.Generator().manual_seed(0))
    model, _, _ = load_model(source)
    with torch.no_grad():
        expected = model(deep).numpy()
    (logits,) = session(tmp_path / "out").run(None, {"image": deep.numpy()})
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_backbone_gives_features(tmp_path):
    source = make_model(tmp_path / "run", "dinov2", kind="pretrain")
    result = export_onnx(read_source(source), tmp_path / "out")
    assert result.outputs == "features"
    (output,) = session(tmp_path / "out").get_outputs()
    assert (output.name, output.shape) == ("features", ["batch", 32])


def test_the_file_tells_what_it_needs_and_nothing_of_where_it_was_made(tmp_path):
    source = make_model(tmp_path / "run", how="crop")
    make_run_facts(source)
    export_onnx(read_source(source), tmp_path / "out")
    told = session(tmp_path / "out").get_modelmeta().custom_metadata_map
    assert json.loads(told["findings"]) == ["effusion", "edema"]
    assert json.loads(told["mean"]) == [0.5, 0.5, 0.5] and json.loads(told["std"]) == [0.5, 0.5, 0.5]
    assert told["image_size"] == str(S) and told["fit"] == "crop" and told["pixels"].startswith("uint8")
    assert json.loads(told["provenance"])["chosen step"] == 30
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    packages = str(importlib.util.find_spec("timm").submodule_search_locations[0])
    for private in (SECRET, str(tmp_path), packages, "site-packages", "stack_trace", __file__):
        assert private.encode() not in content


def test_weights_too_large_for_one_file_lie_beside_the_graph(tmp_path):
    source = read_source(make_model(tmp_path / "run"))
    result = export_onnx(source, tmp_path / "out", one_file_bytes=1000)
    assert set(result.files) == {"model.onnx", "model.onnx.data"}
    assert result.files["model.onnx.data"] > result.files["model.onnx"]
    (tmp_path / "out").rename(tmp_path / "elsewhere")  # the graph names it by its place beside it
    images = check_images(S).numpy()
    (logits,) = session(tmp_path / "elsewhere").run(None, {"image": images})
    assert logits.shape == (len(images), 2)


def test_a_graph_that_gives_other_outputs_is_refused_and_vanishes(tmp_path, monkeypatch):
    source = read_source(make_model(tmp_path / "run"))
    right = exporting._run
    monkeypatch.setattr(exporting, "_run", lambda *given: right(*given) + 0.01)
    with pytest.raises(UserError, match="must give the source's outputs to"):
        export_onnx(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_model_that_torch_cannot_export_is_a_sentence(tmp_path, monkeypatch):
    source = read_source(make_model(tmp_path / "run"))

    def by_eigenvalues(image: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(image.float()).real[:, 0, :2]

    monkeypatch.setattr(source.model, "forward", by_eigenvalues)
    with pytest.raises(
        UserError, match=r"needs a backbone that torch can export, got 'vit_tiny_patch16_224': .*--to hf"
    ):
        export_onnx(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", exporting.PACKAGES)
def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch, package):
    source = read_source(make_model(tmp_path / "run"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"got none of {package}\. pip install 'cxrdist\[onnx\]'"):
        export_onnx(source, tmp_path / "out")
