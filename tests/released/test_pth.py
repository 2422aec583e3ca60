"""The reader of .pth files: what PyTorch writes, and what somebody might write to do harm."""

import collections
import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch

from mtd_jax.errors import UserError
from mtd_jax.released import pth
from mtd_jax.released.state_dict import read_checkpoint


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "uint8", "bool"])
def test_arrays_of_every_kind_are_those_that_torch_saved(tmp_path, dtype):
    base = (10 * torch.rand(6, 4)).to(getattr(torch, dtype))
    content = {
        "whole": base,
        "transposed": base.T,
        "part": base[1:5, ::2],
        "scalar": base[2, 1],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base, requires_grad=False),
    }
    read = pth.read(saved(tmp_path / "x.pth", content))
    assert read.keys() == content.keys()
    for name, tensor in content.items():
        assert (read[name].dtype, read[name].shape) == (dtype, tuple(tensor.shape))
        np.testing.assert_array_equal(read[name].read().astype(np.float64), tensor.double().numpy())


def test_the_rest_of_the_content_comes_as_it_was(tmp_path):
    content = {"step": 12, "names": ["a", ("b", 2.5)], "none": None, "order": collections.OrderedDict(b=1, a=2)}
    assert pth.read(saved(tmp_path / "x.pth", content)) == content


def test_numbers_of_the_other_byte_order_are_turned_round(tmp_path):
    saved(tmp_path / "x.pth", {"a": torch.arange(3.0)})
    with zipfile.ZipFile(tmp_path / "x.pth") as file:
        members = {name: file.read(name) for name in file.namelist()}
    members = {
        name: b"big"
        if name.endswith("byteorder")
        else np.arange(3, dtype=">f4").tobytes()
        if "/data/" in name
        else content
        for name, content in members.items()
    }
    packed(tmp_path / "big.pth", members)
    np.testing.assert_array_equal(pth.read(tmp_path / "big.pth")["a"].read(), [0, 1, 2])


def test_pytorch_is_needed_for_the_older_format_only(tmp_path, monkeypatch):
    saved(tmp_path / "new.pth", {"a": torch.ones(2)})
    saved(tmp_path / "old.pth", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "new.pth").state_dict["a"], [1, 1])
    with pytest.raises(UserError, match="before version 1.6; to read it, pip install torch"):
        pth.read(tmp_path / "old.pth")


# Files that were made to do harm


def packed(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


class Program(pickle.Pickler):
    """Writes pickles with references to storages and names of PyTorch, as torch.save does."""

    def __init__(self, storage_count=4):
        self.buffer = io.BytesIO()
        super().__init__(self.buffer, protocol=2)

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, Reference) else None


class Reference:
    def __init__(self, count, key="0", kind="storage", dtype=torch.FloatStorage):
        self.reference = (kind, dtype, key, "cpu", count)


class Call:
    """Pickled as a call of a function, and what is then set on the result."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def tensor(count=4, offset=0, shape=(4,), strides=(1,), state=None, **reference):
    hooks = collections.OrderedDict()
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, Reference(count, **reference), offset, shape, strides, False, hooks, state=state)


def crafted(path, content, numbers=b"\0" * 16):
    program = Program()
    program.dump(content)
    packed(path, {"x/data.pkl": program.buffer.getvalue(), "x/data/0": numbers})
    return path


def test_a_crafted_file_of_the_usual_form_is_read(tmp_path):
    """So that the refusals below are not for how the tests write."""
    numbers = np.arange(4, dtype=np.float32).tobytes()
    read = pth.read(crafted(tmp_path / "x.pth", {"a": tensor(shape=(2, 2), strides=(1, 2))}, numbers))
    np.testing.assert_array_equal(read["a"].read(), [[0, 2], [1, 3]])


OUT_OF_BOUNDS = {
    "shape": tensor(shape=(5,)),
    "offset": tensor(offset=1),
    "stride": tensor(shape=(2,), strides=(4,)),
    "negative stride": tensor(offset=3, strides=(-1,)),
    "negative offset": tensor(offset=-1, shape=(2,)),
    "negative size": tensor(shape=(-4,)),
    "count": tensor(count=5),
    "negative count": tensor(count=-4),
    "key": tensor(key="1"),
    "path as a key": tensor(key="../data.pkl"),
    "kind": tensor(kind="module"),
    "type": tensor(dtype=dict),
    "sizes that are no integers": tensor(shape=(4.0,)),
    "sizes that are true": tensor(shape=(True,)),
    "a list of sizes": tensor(shape=[4]),
    "as many axes as fit": tensor(shape=(1,) * 70, strides=(1,) * 70),
    "storage": Call(torch._utils._rebuild_tensor_v2, (0, torch.FloatStorage, 4), 0, (4,), (1,), False, {}),
}


@pytest.mark.parametrize("kind", OUT_OF_BOUNDS)
def test_an_array_that_reaches_out_of_its_numbers_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="truncated or damaged"):
        pth.read(crafted(tmp_path / "x.pth", {"a": OUT_OF_BOUNDS[kind]}))


def test_an_expanded_array_is_none(tmp_path):
    """A stride of 0 makes a huge array of a few numbers."""
    crafted(tmp_path / "x.pth", {"a": tensor(shape=(10**6, 10**6), strides=(0, 0))})
    with pytest.raises(UserError, match="a is an expanded array"):
        read_checkpoint(tmp_path / "x.pth")


def test_many_arrays_of_the_same_numbers_are_refused(tmp_path):
    reference = Reference(1000)
    hooks = collections.OrderedDict()
    many = {
        f"a{i}": Call(torch._utils._rebuild_tensor_v2, reference, 0, (1000,), (1,), False, hooks)
        for i in range(999)
    }
    crafted(tmp_path / "x.pth", many, b"\0" * 4000)
    with pytest.raises(UserError, match="several entries share"):
        read_checkpoint(tmp_path / "x.pth")


def test_what_was_checked_cannot_be_changed_afterwards(tmp_path):
    """A pickle may add to a list that it has handed over, and set attributes of what it has made."""
    grows = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
        b"K\x00]q\x01K\x04a]q\x02K\x01a\x89}tRs."
    )
    packed(tmp_path / "list.pth", {"x/data.pkl": grows, "x/data/0": b"\0" * 16})
    with pytest.raises(UserError, match="unknown form"):
        pth.read(tmp_path / "list.pth")
    for state in ({"shape": (1 << 30,)}, (None, {"read": 1})):
        with pytest.raises(UserError, match="attributes of what has none"):
            pth.read(crafted(tmp_path / "x.pth", {"a": tensor(state=state)}))
    for looked_up in (b"ctorch\nFloatStorage\n", b"ccollections\ndefaultdict\n", b"ccollections\nOrderedDict\n"):
        packed(tmp_path / "y.pth", {"x/data.pkl": b"\x80\x02" + looked_up + b"}b."})
        with pytest.raises(UserError, match="attributes of what has none"):
            pth.read(tmp_path / "y.pth")
    set_get = b"\x80\x02ccollections\nOrderedDict\n)R}X\x03\x00\x00\x00getK\x01sb."
    packed(tmp_path / "z.pth", {"x/data.pkl": set_get})
    assert pth.read(tmp_path / "z.pth") == {}


def test_a_directory_of_parts_that_lies(tmp_path):
    """The directory at the end of a ZIP file says how long a part is; here it says more than there is."""
    crafted(tmp_path / "x.pth", {"a": tensor(count=1000, shape=(1000,))}, b"\0" * 16)
    content = bytearray((tmp_path / "x.pth").read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    assert content[entry + 46 : entry + 54] == b"x/data/0"
    content[entry + 24 : entry + 28] = (4000).to_bytes(4, "little")
    (tmp_path / "x.pth").write_bytes(bytes(content) + b"\0" * 0)
    with pytest.raises(UserError, match="damaged"):
        pth.read(tmp_path / "x.pth")["a"].read()
    content[entry + 20 : entry + 24] = (4000).to_bytes(4, "little")
    (tmp_path / "y.pth").write_bytes(bytes(5000) + content)
    with pytest.raises(UserError):
        pth.read(tmp_path / "y.pth")["a"].read()


def test_an_encrypted_part_is_damage(tmp_path):
    crafted(tmp_path / "x.pth", {"a": tensor()})
    content = bytearray((tmp_path / "x.pth").read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        pth.read(tmp_path / "x.pth")["a"].read()


@pytest.mark.parametrize("key", [(1, 2), frozenset([1]), 2.5, None])
def test_keys_are_text_or_small_numbers(tmp_path, key):
    """Others can be made so that hashing or printing them does not end."""
    packed(tmp_path / "x.pth", {"x/data.pkl": pickle.dumps({key: 1}, 4)})
    with pytest.raises(UserError, match="damaged"):
        pth.read(tmp_path / "x.pth")


def test_long_names_are_not_printed(tmp_path):
    saved(tmp_path / "x.pth", {"a" * 10_000: torch.ones(1)})
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert len(str(error.value)) < 500


PROGRAMS = {
    "the operations of the first pickles": b"(S'true'\nios\nsystem\n.",
    "text that is not there": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "unknown operation": b"\x80\x02\xff.",
    "references to nothing": b"\x80\x02h\x05.",
    "takes what is not there": b"\x80\x02\x85.",
    "takes what is before the mark": b"\x80\x02K\x01K\x02(\x86.",
    "leaves more than one thing": b"\x80\x02K\x01K\x02.",
    "adds to what is no list": b"\x80\x02K\x01K\x02a.",
    "sets": b"\x80\x04\x8f.",
    "makes of a number": b"\x80\x02K\x01)R.",
    "a call of a storage": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "text of text": b"\x80\x02ctorch\nSize\nX\x01\x00\x00\x00a\x85R.",
    "an odd number of items": b"\x80\x02}(X\x01\x00\x00\x00au.",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_broken_program_is_damage(tmp_path, kind):
    packed(tmp_path / "x.pth", {"x/data.pkl": PROGRAMS[kind]})
    with pytest.raises(UserError, match="damaged"):
        pth.read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\nU\x04true\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\n.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    ],
)
def test_every_other_name_is_refused(tmp_path, program):
    packed(tmp_path / "x.pth", {"x/data.pkl": program})
    with pytest.raises(UserError, match="would run code"):
        pth.read(tmp_path / "x.pth")


def test_a_large_number_of_a_place_takes_no_memory(tmp_path):
    """Python's own reader would keep a table of two thousand million places."""
    packed(tmp_path / "x.pth", {"x/data.pkl": b"\x80\x02}r\xff\xff\xff\x7f."})
    assert pth.read(tmp_path / "x.pth") == {}


def test_archives_that_torch_does_not_write(tmp_path):
    program = pickle.dumps({}, 2)
    forms = {
        "compressed": ({"x/data.pkl": program, "x/data/0": b"\0" * 10**6}, zipfile.ZIP_DEFLATED),
        "no description": ({"x/data/0": b"1"}, zipfile.ZIP_STORED),
        "two descriptions": ({"x/data.pkl": program, "y/data.pkl": program}, zipfile.ZIP_STORED),
        "too much of it": ({"x/data.pkl": program + b"\0" * (1 << 22)}, zipfile.ZIP_STORED),
    }
    for name, (members, compression) in forms.items():
        packed(tmp_path / "x.pth", members, compression)
        with pytest.raises(UserError, match="damaged"):
            pth.read(tmp_path / "x.pth")
        assert name
    packed(tmp_path / "x.pth", {"x/data.pkl": program, "x/code/a.py": b"", "x/constants.pkl": program})
    with pytest.raises(UserError, match="TorchScript"):
        pth.read(tmp_path / "x.pth")


def test_flipped_bits_are_noticed(tmp_path):
    """Wherever they are: ZIP has a checksum of each member."""
    saved(tmp_path / "x.pth", {"a": torch.rand(500)})
    content = bytearray((tmp_path / "x.pth").read_bytes())
    start = content.find(np.float32(pth.read(tmp_path / "x.pth")["a"].read()[0]).tobytes())
    content[start + 7] ^= 4
    (tmp_path / "y.pth").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "y.pth")


def test_a_file_that_is_gone_before_its_arrays_are_read(tmp_path):
    read = pth.read(saved(tmp_path / "x.pth", {"a": torch.ones(2)}))
    os.unlink(tmp_path / "x.pth")
    with pytest.raises(UserError, match="truncated or damaged"):
        read["a"].read()


def test_huge_numbers_are_one_line(tmp_path):
    for step in (10**5000, 10**300, -1, 1.5, 1.5e300, "12", torch.ones(2), torch.full((), torch.nan)):
        saved(tmp_path / "x.pth", {"state_dict": {"a": torch.ones(1)}, "global_step": step})
        with pytest.raises(UserError, match="global_step|LONG4") as error:
            read_checkpoint(tmp_path / "x.pth")
        assert len(str(error.value)) < 400
