"""The corpus of the experiments: synthetic speakers, the same for everyone, with a checksum to prove it.

python -m experiments.corpus --output=CORPUS
"""

import sys
import zlib
from pathlib import Path

from absl import flags

from mtd_jax.errors import UserError, main_function
from mtd_jax.synthetic.corpus import synthesize

VERSION = 1
SETTINGS = {"seed": 2026, "train_clips": 800, "val_clips": 16, "test_clips": 48, "seconds": 4.0}
# Of all pictures, sounds and lists of version 1, in the order of their names.
CHECKSUM = 0x4A99F001

_FLAGS = flags.FlagValues()
flags.DEFINE_string("output", None, "folder for the corpus", _FLAGS, required=True)


def make(folder: str | Path) -> Path:
    """Makes the corpus, or finds it there.

    Raises:
      UserError: it differs from everyone's, for example because another version of the JPEG encoder wrote it.
    """
    corpus = synthesize(folder, **SETTINGS)
    found = checksum(corpus)
    if found != CHECKSUM:
        raise UserError(
            f"{corpus}: expected the corpus with checksum {CHECKSUM:#010x}, got {found:#010x}: results would not "
            "be comparable; install the versions that docs/experiments.md names"
        )
    return corpus


def checksum(corpus: Path) -> int:
    """Of the names and bytes of all files."""
    value = 0
    for path in sorted(path for path in corpus.rglob("*") if path.is_file()):
        value = zlib.crc32(path.read_bytes(), zlib.crc32(path.relative_to(corpus).as_posix().encode(), value))
    return value


def _command() -> None:
    corpus = make(_FLAGS.output)
    print(f"{corpus}: version {VERSION}, {sum(1 for _ in corpus.rglob('audio.wav'))} clips, as published")


main = main_function(_command, _FLAGS, __doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv))
