"""Tensors out of weight files.  Nothing is unpickled: safetensors, or `torch.load(weights_only=True)`.

Training scripts save more than weights: arguments, settings, counters.  Of what is known to be harmless, an empty
stand-in takes the place (`Leftover`), so that no class of the file is looked up, imported or called; any other class
or function refuses the file.
"""

import pickle
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # how pickles of Python 2 call what moved
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cxrdist.errors import UserError
from cxrdist.models.locate import weight_files

Weights = dict[str, torch.Tensor]

SKIPPED = re.compile(
    r"(optim\w*|optimizers?_states?|(lr_)?schedulers?|scaler|amp|loss|callbacks|hyper_parameters|loops)$"
)
"""Parts of a training checkpoint that hold tensors which are no weights."""

HARMLESS = re.compile(
    r"(argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|typing\.\w+|collections\.\w+|datetime\.\w+"
    r"|builtins\.(list|dict|tuple|int|float|str|bool|object|slice)"
    r"|numpy\.(ndarray|dtype|dtypes\.\w+|_?core\.multiarray\.(scalar|_reconstruct)|(int|float|bool)_?\d*)"
    r"|(omegaconf|pytorch_lightning|lightning|lightning_fabric|yacs|easydict|addict|ml_collections|fvcore|mmengine|mmcv)"
    r"\.[\w.]+)"
)
"""Classes of settings and of plain values that frameworks save beside weights."""

TENSOR = re.compile(
    r"torch\._(utils|tensor)\.\w+|torch\.(\w*Storage|Size)|torch\.nn\.parameter\.Parameter|_codecs\.encode"
)
"""What tensors themselves are made of in files of torch before 1.6."""

LIKE_A_DICT = re.compile(r".*\.(AttributeDict|CfgNode|EasyDict|ConfigDict|Dict|defaultdict)")
"""Those of them whose pickle sets items."""

OLD_FORMAT_PICKLES = 5
"""Pickles at the head of a file of torch before 1.6: magic number, protocol, system, content, names of storages."""


class Leftover:
    """Stands for an object that was saved beside weights; holds nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Leftover":
        """Return one, whatever the object was made of."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class LeftoverDict:
    """Stands for a class like `dict`; what is made of it is a plain mapping."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Return the mapping, empty: unpickling fills it."""
        return OrderedDict()


def read_weights(path: Path) -> Weights:
    """Return the tensors in a weight file, a model folder or a run folder, by name; nested names are joined by dots.

    Raises:
        UserError: If there is no such file, or it is not a weight file that can be read safely.
    """
    weights: Weights = {}
    for file in weight_files(path):
        weights |= _read_file(file)
    return weights


def _read_file(file: Path) -> Weights:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = dict(_flat(_read_pickle(file)))
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AttributeError,
            TypeError, AssertionError) as error:  # fmt: skip
        raise _refusal(file, error) from None
    if not tensors:
        raise _refusal(file, None)
    return tensors


def _read_pickle(file: Path) -> Any:
    allowed: list[Any] = [(_stand_in(name), name) for name in _classes(file) if HARMLESS.fullmatch(name)]
    with torch.serialization.safe_globals(allowed):
        # Mapped, a file of 4 GB needs no second 4 GB; files of torch before 1.6 cannot be.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))


def _classes(file: Path) -> list[str]:
    """Return the names of the classes and functions in a file that torch does not allow by itself; none is loaded."""
    if _is_zip(file):
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    names = set()
    with file.open("rb") as stream:
        for _ in range(OLD_FORMAT_PICKLES):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    module, name = str(argument).split(" ", maxsplit=1)
                    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                    names.add(f"{module}.{name}")
    return sorted(names)


def _named_classes(file: Path) -> list[str]:
    """Return `_classes`, or none where the file cannot be scanned either."""
    try:
        return _classes(file)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
            AssertionError, SafetensorError):  # fmt: skip
        return []


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _stand_in(name: str) -> type:
    return LeftoverDict if LIKE_A_DICT.fullmatch(name) else Leftover


def _flat(tree: Any, prefix: str = "") -> Any:
    """Yield (dotted name, tensor) of the mappings in `tree`, the parts in `SKIPPED` left out."""
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value.detach()
        elif not SKIPPED.match(str(name)):
            yield from _flat(value, f"{prefix}{name}.")


def _refusal(file: Path, error: Exception | None) -> UserError:
    what, way_out = "", "Fetch it again if it was cut off; else convert it: `torch.save(model.state_dict(), FILE)`."
    if error is not None and "torchscript" in str(error).lower():
        what, way_out = ", a TorchScript archive", "Convert it: `torch.save(torch.jit.load(FILE).state_dict(), NEW)`."
    else:
        strange = [name for name in _named_classes(file) if not HARMLESS.fullmatch(name) and not TENSOR.fullmatch(name)]
        if strange:
            what = f" with {', '.join(f'`{name}`' for name in sorted(strange)[:3])}"
            way_out = "Convert it with the library that wrote it: `torch.save(model.state_dict(), FILE)`."
    return UserError(
        f"A weight file must hold tensors only (safetensors, or a plain `.pth`), got {file.name!r}{what}. {way_out}"
    )
