"""Writing one ArrayRecord file, without silent losses."""

import os
from collections.abc import Iterable

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from mtd_jax.errors import UserError, one_line


def write_records(path: str | os.PathLike, records: Iterable[bytes]) -> None:
    """Writes records one by one, so that each can be read alone, and uncompressed. Raises `UserError`."""
    count = arrived = 0
    try:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
        if count:  # it cannot read a file without records
            arrived = ArrayRecordReader(os.fspath(path)).num_records()
    except RuntimeError as error:  # as which the library reports a full disk
        raise UserError(f"cannot write {path} ({one_line(error).split(';')[0]})") from error
    if arrived != count:  # the library is silent about some failed writes
        raise UserError(f"cannot write {path}: {arrived} of {count} records arrived")
