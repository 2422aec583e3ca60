"""Reads files of `torch.save` without PyTorch, and without running anything in them.

Such a file is a ZIP archive of stored members: `data.pkl`, a pickle of everything but the numbers, and `data/0`,
`data/1`, …, the numbers. A pickle is a program for a machine with a stack. The machine here knows the operations
and names that files of the public code contain, makes nothing but numbers, text, lists, tuples and dicts of them,
and refuses a file with any other name, as well as one whose arrays reach beyond their numbers. Files of PyTorch's
older format are left to PyTorch, which has such a reader itself.
"""

import dataclasses
import math
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
_LARGEST_PICKLE = 1 << 21  # bytes; those of the released files are a tenth of it
_MOST_AXES = 8
_STORAGES = {
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
_DICTS = ("collections.OrderedDict", "collections.defaultdict")
_REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = "torch._utils._rebuild_parameter"
_UNSUPPORTED = {
    "torch._utils._rebuild_sparse_tensor": "a sparse array",
    "torch._utils._rebuild_qtensor": "a quantized array",
}
# Complete training files of the public code contain their learning-rate scheduler as an object, which refers to
# the optimiser. Neither is needed.
_IGNORED = ("torch.optim.lr_scheduler.StepLR", "torch.optim.adam.Adam")
_SIZE, _LAYOUT, _DICT = "torch.Size", "torch.serialization._get_layout", "builtins.dict"
_ALLOWED = {*_STORAGES, *_DICTS, *_REBUILD, _PARAMETER, *_UNSUPPORTED, *_IGNORED, _SIZE, _LAYOUT, _DICT}


class StoredArray(NamedTuple):
    """An array that is read when it is asked for.

    Attributes:
      dtype: its name in NumPy and PyTorch alike, such as "float32".
      shape: of the array.
      read: reads it, as a NumPy array of its own; raises `UserError` if the file is damaged.
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


class NotACheckpoint(UserError):
    """The content of a file is of no use, so that another copy of it may be."""


class _Refused(Exception):
    """A name that is not allowed."""


class _Damaged(Exception):
    """The file contradicts itself."""


class _Name(NamedTuple):
    """A name that the pickle has looked up."""

    name: str


class _Object(NamedTuple):
    """An object that is not needed. Attributes: of: the name of its class."""

    of: str


class _Storage(NamedTuple):
    """The numbers of one or several arrays."""

    key: str
    dtype: str
    count: int


def read(path: str | os.PathLike) -> Any:
    """What was given to `torch.save`: dicts, lists, numbers and text, with a `StoredArray` for each tensor.

    The file must stay as it is until its arrays are read.

    Raises:
      NotACheckpoint: the file is damaged, is of another kind, or needs code to be read.
      UserError: the file is missing, or needs PyTorch to be read.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory; expected a PyTorch checkpoint file (.pth)")
    try:
        with open(path, "rb") as file:
            start = file.read(256)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        if start[:4] == _ZIP:
            return _read_zip(path)
        if start[:1] == _PICKLE:
            return _read_with_torch(path)
    except UserError:
        raise
    except _Refused as error:
        raise NotACheckpoint(
            f"{path}: refused because reading it would run code ({error}); "
            "expected arrays only. If you trust its source, save its state_dict alone with PyTorch"
        ) from error
    except Exception as error:  # a damaged file can raise anything: KeyError, struct.error, EOFError, …
        raise _damaged(path, error) from error
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise NotACheckpoint(f"{path}: a web page, not a PyTorch checkpoint; expected a file saved by torch.save")
    raise NotACheckpoint(
        f"{path}: not a PyTorch checkpoint, or a truncated or damaged one; expected a file saved by torch.save"
    )


def _damaged(path: str | os.PathLike, error: Exception) -> NotACheckpoint:
    why = f" ({error})" if isinstance(error, _Damaged) else ""
    return NotACheckpoint(f"{path}: truncated or damaged{why}; download or copy the file again")


def _read_zip(path: str | os.PathLike) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        described = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(described) != 1 or len(members) != len(archive.infolist()):
            raise _Damaged("expected one data.pkl, and each name once")
        # What is stored as it is cannot become more than the file; what is packed could fill the memory.
        for info in members.values():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise _Damaged(f"{info.filename} is packed")
        if sum(info.file_size for info in members.values()) > os.path.getsize(path):
            raise _Damaged("its parts are larger than the file")
        folder = described[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members or any(name.startswith(f"{folder}code/") for name in members):
            raise _Refused("TorchScript")
        if members[described[0]].file_size > _LARGEST_PICKLE:
            raise _Damaged(f"a description of more than {_LARGEST_PICKLE} bytes")
        order: Literal["<", ">"] = "<"
        if f"{folder}byteorder" in members:
            orders: dict[bytes, Literal["<", ">"]] = {b"little": "<", b"big": ">"}
            order = orders[archive.read(f"{folder}byteorder")]
        return _run(archive.read(described[0]), _Archive(path, folder, members, order))


@dataclasses.dataclass(frozen=True)
class _Archive:
    """Where arrays find their numbers."""

    path: str | os.PathLike
    folder: str
    members: Mapping[str, zipfile.ZipInfo]
    order: Literal["<", ">"]

    def array(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredArray | Unsupported:
        """Checked now, so that a file is refused whole, and read later."""
        if not isinstance(storage, _Storage) or not (isinstance(shape, tuple) and isinstance(strides, tuple)):
            raise _Damaged("an array of unknown form")
        whole = all(type(number) is int and 0 <= number < 1 << 40 for number in (offset, *shape, *strides))
        if not whole or len(shape) != len(strides) or len(shape) > _MOST_AXES:
            raise _Damaged("an array with an impossible shape")
        size = math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if size and last >= storage.count:
            raise _Damaged("an array that reaches beyond its numbers")
        # Repeated numbers (a stride of 0) could fill the memory.
        if math.prod(length for length in shape if length) > max(storage.count, 1):
            return Unsupported("an expanded array")
        name, dtype = f"{self.folder}data/{storage.key}", np.dtype(storage.dtype)
        if self.members[name].file_size != storage.count * dtype.itemsize:
            raise _Damaged("more or fewer numbers than were announced")

        def read() -> np.ndarray:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    content = archive.read(name)  # checks its checksum
                if len(content) != storage.count * dtype.itemsize:
                    raise _Damaged("numbers are missing")
                steps = [stride * dtype.itemsize for stride in strides]
                first = offset * dtype.itemsize if size else 0
                ordered = dtype.newbyteorder(self.order)
                return np.array(np.ndarray(shape, ordered, content or bytes(8), first, steps), dtype)
            except Exception as error:  # the file has changed, or its directory of parts lies
                raise _damaged(self.path, error) from error

        return StoredArray(dtype.name, shape, read)


def _run(program: bytes, archive: _Archive) -> Any:
    """What a pickle makes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        found = stack[start:]
        del stack[start:]
        return found

    def pop(count: int) -> list[Any]:
        if len(stack) < count or (marks and len(stack) - count < marks[-1]):
            raise _Damaged("its description takes what is not there")
        found = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return found

    def look_up(module: Any, name: Any) -> _Name:
        full = f"{str(module)[:100]}.{str(name)[:100]}".replace(
            "__builtin__.", "builtins."
        )  # as it was in Python 2
        if full not in _ALLOWED:
            raise _Refused(full)
        return _Name(full)

    for operation, argument, _ in pickletools.genops(program):
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (made,) = stack
                return made
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[int(argument or 0)])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(operation.name[-1]))))
            case "APPEND" | "APPENDS":
                items = since_mark() if operation.name == "APPENDS" else pop(1)
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if operation.name == "SETITEMS" else pop(2)
                target = _expect(stack[-1], dict)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    if isinstance(key, StoredArray):  # an optimiser's state, by parameter: not needed
                        continue
                    if type(key) not in (str, int):
                        raise _Damaged("a dict with keys that are neither text nor numbers")
                    target[key] = value
            case "GLOBAL":
                module, _, name = str(argument).partition(" ")
                stack.append(look_up(module, name))
            case "STACK_GLOBAL":
                stack.append(look_up(*pop(2)))
            case "BINPERSID":
                stack.append(_storage(*pop(1)))
            case "REDUCE" | "NEWOBJ":
                of, arguments = pop(2)
                stack.append(_made(of, arguments, archive))
            case "BUILD":  # sets attributes, of which nothing here has any
                pop(1)
                if not isinstance(stack[-1], dict | _Object):
                    raise _Damaged("attributes of what has none")
            case _:
                raise _Damaged(f"an operation that torch.save does not use, {operation.name}")
    raise _Damaged("its description does not end")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _Damaged(f"expected a {kind.__name__} in its description")
    return value


def _storage(reference: Any) -> _Storage:
    kind, dtype, key, _, count = _expect(reference, tuple)
    known = isinstance(dtype, _Name) and dtype.name in _STORAGES
    if kind != "storage" or not known or type(key) is not str or not re.fullmatch(r"\d{1,9}", key):
        raise _Damaged("an unknown kind of reference")
    if type(count) is not int or not 0 <= count < 1 << 40:
        raise _Damaged("an impossible number of numbers")
    return _Storage(key, _STORAGES[dtype.name], count)


def _made(of: Any, arguments: Any, archive: _Archive) -> Any:
    """What a call of an allowed name stands for."""
    name, arguments = _expect(of, _Name).name, _expect(arguments, tuple)
    if name in _DICTS:
        return {}
    if name in _REBUILD:
        return archive.array(*arguments)
    if name == _PARAMETER and isinstance(arguments[0], StoredArray | Unsupported):
        return arguments[0]
    if name in _UNSUPPORTED:
        return Unsupported(_UNSUPPORTED[name])
    if name == _SIZE and len(arguments) == 1 and isinstance(arguments[0], tuple):
        return arguments[0]
    if name in _IGNORED or name == _LAYOUT:
        return _Object(name)
    raise _Damaged(f"an unknown use of {name}")


class _IgnoredObject:
    """An inert stand-in for an object of the training run, for PyTorch's reader."""

    def __setstate__(self, state: Any) -> None:
        pass


def _read_with_torch(path: str | os.PathLike) -> Any:
    """A file of the format before PyTorch 1.6, by PyTorch's own reader of that kind."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: a pickle, such as PyTorch wrote before version 1.6; to read it, pip install torch"
        ) from error

    stand_ins: list[Any] = [(_IgnoredObject, name) for name in _IGNORED]
    stand_ins += [(lambda *_: {}, "collections.defaultdict"), (dict, _DICT)]
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
