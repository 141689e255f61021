"""What the libraries can do here.  Looked at in a process of its own (`apart`): loading one may fail in any way."""

import importlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrdist.doctor import measure
from cxrdist.doctor.finding import Finding, Probe, size
from cxrdist.doctor.measure import tidy
from cxrdist.doctor.programs import missing_tools

BUSY = 2**30
"""Bytes in use on a GPU, from which on somebody else computes there."""
LIBRARIES = ("lightly", "webdataset", "torchvision", "safetensors", "sklearn", "numba", "pyarrow", "cv2", "fsspec")
"""Beside those that have findings of their own."""
DECODERS = ("python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle")
SAMPLES = ("MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm")
"""One for each library that decodes; all hold the pixels of MR_small.dcm."""


def torch() -> Iterator[Finding]:
    """PyTorch: version, CUDA, NCCL, gloo, bf16."""
    torch = importlib.import_module("torch")
    cuda, there = torch.version.cuda, measure.gpus()
    usable = torch.cuda.is_available()
    text = f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"
    if there and not usable and os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        remedy = "Unset CUDA_VISIBLE_DEVICES, which hides them."
        yield Finding("torch", "note", f"{text}; the {len(there)} GPUs here are hidden from it", remedy)
    elif there and not usable:
        driver = there[0]["driver_version"]
        remedy = f"Install a driver for CUDA {cuda} or later, or a torch built for what driver {driver} can do."
        if not cuda:
            remedy = "Install the default build of torch, which has CUDA: `pip install --force-reinstall torch`."
        yield Finding("torch", "problem", f"{text}; cannot use the {len(there)} GPUs here (driver {driver})", remedy)
    else:
        driver = f", driver {there[0]['driver_version']}" if there and usable else ""
        yield Finding("torch", "ok", f"{text}{driver}")
    yield from _backends(torch, usable)


def _backends(torch: Any, usable: bool) -> Iterator[Finding]:
    distributed = torch.distributed
    gloo = distributed.is_available() and distributed.is_gloo_available()
    nccl = distributed.is_available() and distributed.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else ""
    text = f"gloo {'yes' if gloo else 'no'}, NCCL {version or 'no'}"
    if not gloo or (usable and not nccl):
        yield Finding("backends", "problem", text, "Install a build of torch for Linux with both.")
    else:
        yield Finding("backends", "ok", text)
    if usable:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        remedy = "" if native else "Set `train.precision=fp16`: these GPUs compute bf16 slowly."
        yield Finding("bf16", "ok" if native else "note", "on the GPU" if native else "not on this GPU", remedy)
    else:
        native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
        yield Finding("bf16", "ok", f"on the CPU, {'native' if native else 'emulated: fp32 is faster'}")


def gpus() -> Iterator[Finding]:
    """Each GPU: name, memory, errors, others' work, and whether it computes."""
    there = measure.gpus() or []
    torch = importlib.import_module("torch")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there and not seen:
        yield judge_no_gpus(measure.gpus_on_bus(), measure.gpu_fault())
        return
    if there and 0 < seen < len(there):
        yield Finding("GPUs", "note", f"{seen} of {len(there)} are visible to torch", "See CUDA_VISIBLE_DEVICES.")
    for row in there:
        yield _condition(row)
    for number in range(seen):
        yield _computes(torch, number)


def judge_no_gpus(on_bus: int, fault: str | None) -> Finding:
    """Return the finding where no GPU can be used: how many the machine has, and why nvidia-smi fails (see there)."""
    if fault:
        remedy = (
            "After an update of the driver restart the machine; else install the driver anew. In a container: "
            "`--gpus all`, and as new a driver on the host as CUDA in the image needs."
        )
        return Finding("GPUs", "problem", f"nvidia-smi fails: {fault}", remedy)
    if on_bus:
        remedy = (
            "Install NVIDIA's driver, or ask for them: `docker run --gpus all`, `podman run --device "
            "nvidia.com/gpu=all`, `--gpus-per-node=1` (Slurm), `nvidia.com/gpu: 1` (Kubernetes)."
        )
        return Finding("GPUs", "note", f"the machine has {on_bus}, but this process cannot use them", remedy)
    remedy = "Debug sizes and demos run without; for training, take a machine with GPUs."
    return Finding("GPUs", "note", "none: everything is computed on the CPU", remedy)


def _condition(row: dict[str, str]) -> Finding:
    name = f"GPU {row['index']}"
    total, used = (_mebibytes(row[key]) for key in ("memory.total", "memory.used"))
    text = f"{row['name']}, {size(total) if total else 'memory unknown'}"
    errors = row["ecc.errors.uncorrected.volatile.total"]
    if errors.isdecimal() and int(errors):
        remedy = "Take it out of use until it has been reset: results may be wrong."
        return Finding(name, "problem", f"{text}, {errors} uncorrected memory errors", remedy)
    if used is not None and used > BUSY:
        remedy = "Another program is at work there (`nvidia-smi`): less fits, and both are slower."
        return Finding(name, "note", f"{text}, {size(used)} in use", remedy)
    return Finding(name, "ok", text)


def _computes(torch: Any, number: int) -> Finding:
    name = f"GPU {number} computes"
    try:
        properties = torch.cuda.get_device_properties(number)
        ones = torch.ones(256, 256, device=f"cuda:{number}")
        right = float((ones @ ones).sum().item()) == 256.0**3
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        remedy = (
            f"This torch has code for {' '.join(torch.cuda.get_arch_list())}; take one that fits the GPU and driver."
        )
        return Finding(name, "problem", tidy(f"{type(error).__name__}: {first}"), remedy)
    if not right:
        return Finding(name, "problem", "a product of matrices is wrong", "Take it out of use.")
    return Finding(name, "ok", f"capability {properties.major}.{properties.minor}")


def deepspeed() -> Iterator[Finding]:
    """DeepSpeed: version, accelerator, operators."""
    torch = importlib.import_module("torch")
    # As training does: its own search takes the CPU only after a warning.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    deepspeed = importlib.import_module("deepspeed")
    accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
    yield Finding("deepspeed", "ok", f"{deepspeed.__version__}, accelerator {accelerator._name}")
    builders = importlib.import_module("deepspeed.ops.op_builder.all_ops").ALL_OPS
    installed = importlib.import_module("deepspeed.git_version_info").installed_ops
    fits: dict[str, bool] = {}
    for name, builder in sorted(builders.items()):
        if name == "deepspeed_not_implemented":
            continue
        try:
            fits[name] = bool(builder.is_compatible(False))
        except Exception:  # one that needs a toolkit which is not here raises
            fits[name] = False
    yield judge_operators(fits, {name for name in fits if installed.get(name)}, missing_tools())


def judge_operators(fits: Mapping[str, bool], installed: Collection[str], missing: Sequence[str]) -> Finding:
    """Return the finding for DeepSpeed's operators.

    Args:
        fits: Whether DeepSpeed says that an operator can be built; it does not ask for a compiler.
        installed: Those that were built when it was installed.
        missing: Tools that building takes and that are not here.
    """
    usable = [name for name in fits if name in installed or (fits[name] and not missing)]
    others = [name for name in fits if name not in usable]
    text = f"can be built: {', '.join(usable) or 'none'}; cannot: {', '.join(others) or 'none'}"
    if missing:
        text = f"without {', '.join(missing)} none can be built" + (f"; there are {', '.join(usable)}" * bool(usable))
    if "cpu_adam" not in usable:
        remedy = (
            "Needed for `train.offload` alone: `apt-get install g++ ninja-build python3-dev` (with GPUs, the CUDA "
            "toolkit as well)."
        )
        return Finding("deepspeed operators", "note", text, remedy)
    return Finding("deepspeed operators", "ok", text)


def timm() -> Iterator[Finding]:
    """Timm: version, and how many models it knows."""
    timm = importlib.import_module("timm")
    yield Finding("timm", "ok", f"{timm.__version__}, {len(timm.list_models())} models")


def ray() -> Iterator[Finding]:
    """Ray: version, with Tune and Train."""
    ray = importlib.import_module("ray")
    importlib.import_module("ray.tune")
    yield Finding("ray", "ok", str(ray.__version__))


def others() -> Iterator[Finding]:
    """All other libraries load."""
    for name in LIBRARIES:
        importlib.import_module(name)
    yield Finding("other libraries", "ok", f"{len(LIBRARIES)} load")


def decoders() -> Iterator[Finding]:
    """Transfer syntaxes of DICOM, and whether the decoders of the compressed ones give the pixels that they should."""
    again = f"Files in them become rejects: `pip install --force-reinstall --no-deps {' '.join(DECODERS)}`."
    try:
        taken = importlib.import_module("cxrdist.dicom.decode").installed_decoders()
    except Exception as error:
        text = tidy(f"{type(error).__name__}: {' '.join(str(error).split())}")
        yield Finding("DICOM decoders", "problem", f"do not load: {text}", again)
        return
    missing = [name for name, decoder in taken.items() if not decoder]
    text = f"{len(taken) - len(missing)} of {len(taken)} transfer syntaxes"
    if missing:
        remedy = f"Files in them become rejects: `pip install {' '.join(DECODERS)}`."
        yield Finding("DICOM decoders", "problem", f"{text}; none for {', '.join(missing)}", remedy)
        return
    wrong = _wrong_decoders(taken)
    if wrong:
        yield Finding("DICOM decoders", "problem", "; ".join(wrong), again)
    else:
        yield Finding("DICOM decoders", "ok", f"{text}, by {', '.join(sorted(set(taken.values())))}")


def _wrong_decoders(taken: dict[str, str]) -> list[str]:
    """Decode the small images that pydicom comes with, and return which fail: that a decoder loads says little."""
    pydicom, pixels = importlib.import_module("pydicom"), importlib.import_module("pydicom.pixels")
    find = importlib.import_module("pydicom.data").get_testdata_file
    plain, wrong = find("MR_small.dcm", download=False), []
    for sample in SAMPLES:
        path = find(sample, download=False)
        if not plain or not path:
            continue
        header = pydicom.dcmread(path)
        syntax = header.file_meta.TransferSyntaxUID
        decoder = taken[syntax.name]
        try:
            values = pixels.get_decoder(syntax).as_array(header, raw=True, decoding_plugin=decoder)[0]
            fault = "" if bool((values == pixels.pixel_array(plain)).all()) else "wrong pixels"
        except Exception as error:
            fault = tidy(f"{type(error).__name__}: {' '.join(str(error).split())}")
        if fault:
            wrong.append(f"{syntax.name} by {decoder}: {fault}")
    return wrong


def weights() -> Iterator[Finding]:
    """The Hugging Face cache, which is all that weights by name come from: nothing is downloaded at run time."""
    constants = importlib.import_module("huggingface_hub.constants")
    cache = Path(constants.HF_HUB_CACHE)
    try:
        models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    except OSError as error:
        remedy = "Let HF_HOME name a folder that you may read."
        yield Finding("weights", "problem", f"the Hugging Face cache: {error.strerror}", remedy)
        return
    if models:
        yield Finding("weights", "ok", f"{models} models in the Hugging Face cache")
        return
    remedy = (
        "Weights of files need none. For `timm:NAME`, run `hf download` where there is a network, copy the cache, and "
        "let HF_HOME name it."
    )
    yield Finding("weights", "note", "no model in the Hugging Face cache", remedy)


PROBES: dict[str, Probe] = {
    "torch": torch, "GPUs": gpus, "deepspeed": deepspeed, "timm": timm, "ray": ray, "other libraries": others,
    "DICOM decoders": decoders, "weights": weights,
}  # fmt: skip


def _mebibytes(text: str) -> float | None:
    return float(text) * 2**20 if text.replace(".", "", 1).isdecimal() else None
