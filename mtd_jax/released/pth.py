"""Reads files of `torch.save` without PyTorch, and without running anything in them.

Such a file is a ZIP archive of stored members: `data.pkl`, a pickle of everything but the numbers, and `data/0`,
`data/1`, …, the numbers. A pickle is a program. This reader runs it with a list of allowed names, each of which
stands for an inert object here; a file with any other name is refused, and so is one whose arrays reach beyond
their numbers. Files of PyTorch's older format are left to PyTorch, which has such a reader itself.
"""

import collections
import dataclasses
import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import ml_dtypes  # noqa: F401 (makes bfloat16 known to NumPy)
import numpy as np

from mtd_jax.errors import UserError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of the current and of the older file format
_MOST_PICKLE = 1 << 24  # bytes; those of the released files are below 1 MB
_MOST_AXES = 8
_STORAGES = {
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}


class _Refused(Exception):
    """A name that is not allowed."""


class _Damaged(Exception):
    """The file contradicts itself."""


# What a pickle gets hold of are tuples and dicts: it may set the fields of any other object.


class StoredArray(NamedTuple):
    """An array that is read when it is asked for.

    Attributes:
      dtype: its name in NumPy and PyTorch alike, such as "float32".
      shape: of the array.
      read: reads it, as a NumPy array of its own.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float16", "bfloat16", "float32", "float64")


class Unsupported(NamedTuple):
    """An array of a kind that no checkpoint of ours has, such as a sparse one."""

    kind: str


class _Ignored:
    """An inert stand-in for an object of the training run that the conversion does not need."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype(NamedTuple):
    """The type of a storage."""

    name: str


class _Storage(NamedTuple):
    """The numbers of one or several arrays."""

    key: str
    dtype: _Dtype
    count: int


class _Stands(NamedTuple):
    """Stands for a function."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def read(path: str | os.PathLike) -> Any:
    """What was given to `torch.save`: dicts, lists, numbers and text, with a `StoredArray` for each tensor.

    The file must stay as it is until its arrays are read.

    Raises:
      UserError: the file is missing or damaged, is of another kind, or needs code to be read.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory; expected a PyTorch checkpoint file (.pth)")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        if start == _ZIP:
            return _read_zip(path)
        if start[:1] == _PICKLE:
            return _read_with_torch(path)
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path}: refused because reading it would run code ({error}); "
            "expected arrays only. If you trust its source, save its state_dict alone with PyTorch"
        ) from error
    except Exception as error:  # a damaged file can raise anything: KeyError, struct.error, EOFError, …
        raise UserError(f"{path}: truncated or damaged; download or copy the file again") from error
    raise UserError(
        f"{path}: not a PyTorch checkpoint, or a truncated or damaged one; expected a file saved by torch.save"
    )


def _read_zip(path: str | os.PathLike) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        described = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(described) != 1 or len(members) != len(archive.infolist()):
            raise _Damaged("expected one data.pkl, and each name once")
        # What is stored as it is cannot become more than the file; what is packed could fill the memory.
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in members.values())
        if packed or sum(info.file_size for info in members.values()) > os.path.getsize(path):
            raise _Damaged("packed, or larger than the file")
        folder = described[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members or any(name.startswith(f"{folder}code/") for name in members):
            raise _Refused("TorchScript")
        if members[described[0]].file_size > _MOST_PICKLE:
            raise _Damaged(f"a description of more than {_MOST_PICKLE} bytes")
        big = f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little"
        program = archive.read(described[0])
        # Python's reader keeps a table as long as the largest number that it is told to remember something by.
        for operation, argument, _ in pickletools.genops(program):
            if "PUT" in operation.name and int(argument or 0) > len(program):
                raise _Damaged("a number out of proportion")
        return _Reader(program, _Archive(path, folder, members, ">" if big else "<")).load()


@dataclasses.dataclass(frozen=True)
class _Archive:
    """Where arrays find their numbers."""

    path: str | os.PathLike
    folder: str
    members: Mapping[str, zipfile.ZipInfo]
    order: Literal["<", ">"]

    def array(self, storage: Any, offset: Any, shape: Any, strides: Any) -> StoredArray | Unsupported:
        """Checked now, so that a file is refused whole, and read later."""
        numbers = [offset, *shape, *strides]
        whole = all(type(number) is int and 0 <= number < 1 << 40 for number in numbers)
        if not isinstance(storage, _Storage) or not whole or len(shape) != len(strides) or len(shape) > _MOST_AXES:
            raise _Damaged("an array with an impossible shape")
        empty = 0 in shape
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if not empty and last >= storage.count:
            raise _Damaged("an array that reaches beyond its numbers")
        # Repeated numbers (a stride of 0) could fill the memory.
        if int(np.prod(shape, dtype=object)) > storage.count:
            return Unsupported("an expanded array")
        name, dtype = f"{self.folder}data/{storage.key}", np.dtype(storage.dtype.name)
        if self.members[name].file_size != storage.count * dtype.itemsize:
            raise _Damaged("more or fewer numbers than were announced")

        def read() -> np.ndarray:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    content = archive.read(name)  # checks its checksum
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path}: truncated or damaged; download or copy the file again") from error
            stored = np.frombuffer(content, dtype.newbyteorder(self.order))
            steps = [stride * dtype.itemsize for stride in strides]
            return np.array(np.lib.stride_tricks.as_strided(stored[offset:], shape, steps), dtype)

        return StoredArray(dtype.name, tuple(shape), read)


class _Reader(pickle.Unpickler):
    """Runs the pickle with stand-ins for the names that files of the public code contain."""

    def __init__(self, program: bytes, archive: _Archive):
        super().__init__(io.BytesIO(program))
        self._allowed: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor": _Stands(archive.array),
            "torch._utils._rebuild_tensor_v2": _Stands(lambda *told: archive.array(*told[:4])),
            "torch._utils._rebuild_parameter": _Stands(lambda array, *_: array),
            "torch._utils._rebuild_sparse_tensor": _Stands(lambda *_: Unsupported("a sparse array")),
            "torch._utils._rebuild_qtensor": _Stands(lambda *_: Unsupported("a quantized array")),
            "torch.serialization._get_layout": str,
            "torch.Size": tuple,
            **{f"torch.{name}Storage": _Dtype(dtype) for name, dtype in _STORAGES.items()},
            **_STAND_INS,
        }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module = module_name.replace("__builtin__", "builtins")  # what older protocols call it
        name = f"{module}.{global_name}"
        if name not in self._allowed:
            raise _Refused(name)
        return self._allowed[name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, _Dtype) or not re.fullmatch(r"\d+", key) or count < 0:
            raise _Damaged("an unknown kind of reference")
        return _Storage(key, dtype, int(count))


# Complete training files of the public code contain their learning-rate scheduler as an object, which refers to
# the optimiser.
_STAND_INS: dict[str, Any] = {
    "torch.optim.lr_scheduler.StepLR": _Ignored,
    "torch.optim.adam.Adam": _Ignored,
    "collections.defaultdict": _Stands(lambda *_: {}),
    "builtins.dict": dict,
}


def _read_with_torch(path: str | os.PathLike) -> Any:
    """A file of the format before PyTorch 1.6, by PyTorch's own reader of that kind."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: a pickle, such as PyTorch wrote before version 1.6; to read it, pip install torch"
        ) from error

    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _Refused(name[1] if name else "in its pickle") from error
    return _from_torch(content, torch)


def _from_torch(value: Any, torch: Any) -> Any:
    """The same content with a `StoredArray` for each tensor."""
    if isinstance(value, Mapping):
        return {key: _from_torch(entry, torch) for key, entry in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return Unsupported(f"{value.layout} on {value.device}")

    def read() -> np.ndarray:  # NumPy has no bfloat16 that PyTorch knows
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy(force=True)

    return StoredArray(str(value.dtype).removeprefix("torch."), tuple(value.shape), read)
