"""What lies in an ArrayRecord data set: one record per stretch of a clip, and an index of the clips beside them.

A training draw needs five frames, and a record is read whole. So a clip is cut into stretches of `record_frames`
frames with their sound: of 5 s of 96×96 faces as one record (0.5 MB), reading alone would cost more than decoding
the window. The records of a clip follow each other, clips in the order of their list.
"""

import dataclasses
import json

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.errors import UserError

DATASET_NAME = "lip_sync_clips"  # what tfds makes of the builder's class name
VERSION = "1.0.0"
RECORD_FRAMES = 12
_INDEX_FORMAT = 1


def features() -> tfds.features.FeaturesDict:
    """What tfds needs to know of a record: `builder.as_data_source` decodes it with this for any other program."""
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(doc="of the clip, for example speaker/clip"),
            "first_frame": tfds.features.Scalar(np.int64, doc="number of the first frame within the clip"),
            "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")),
            "waveform": tfds.features.Tensor(
                shape=(None,), dtype=np.int16, encoding="bytes", doc="16 kHz, from sample 640 · first_frame on"
            ),
        }
    )


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A parsed record: which clip it is of, its first frame, its JPEGs (a sequence of bytes), its int16 sound."""

    name: str
    first_frame: int
    frames: list[bytes]
    waveform: np.ndarray


def parse(record: bytes) -> Stretch:
    """Takes a record apart without decoding a picture; 4 µs where tfds' own parser, which decodes all, takes 1 ms.

    Raises:
      Exception: of any kind, for bytes that are no such record.
    """
    fields = tf_example_pb2.Example.FromString(record).features.feature
    (name,) = fields["name"].bytes_list.value
    (first_frame,) = fields["first_frame"].int64_list.value
    (waveform,) = fields["waveform"].bytes_list.value
    frames = fields["frames"].bytes_list.value
    return Stretch(name.decode(), first_frame, frames, np.frombuffer(waveform, np.int16))


def records_of(images, samples, record_frames: int):
    """How many records a clip takes, at least one; for integers or arrays of them."""
    frames = np.maximum(images, -(-samples // SAMPLES_PER_FRAME))
    return np.maximum(-(-frames // record_frames), 1)


@dataclasses.dataclass(frozen=True)
class ClipIndex:
    """The clips of one split, so that nothing but this is read before the first draw.

    Attributes:
      names: of the clips, in the order of their records.
      images, samples: int64 (clips,), pictures and 16 kHz samples of each.
      skipped: names of the listed clips that are not in the data set, by reason.
      record_frames: frames per record.
      lower_half: whether pictures are the lower halves of 96×96 faces, encoded again, instead of the faces.
      shard_bytes: size of each file of records.
    """

    names: list[str]
    images: np.ndarray
    samples: np.ndarray
    skipped: dict[str, list[str]]
    record_frames: int
    lower_half: bool
    shard_bytes: list[int]

    @classmethod
    def of(cls, clips: list[tuple[str, int, int]], **fields) -> "ClipIndex":
        """From (name, images, samples) of every clip."""
        names, images, samples = zip(*clips, strict=True)
        return cls(list(names), np.array(images, np.int64), np.array(samples, np.int64), **fields)

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        fields |= {"images": self.images.tolist(), "samples": self.samples.tolist()}
        return json.dumps({"format": _INDEX_FORMAT, **fields})

    @classmethod
    def read(cls, folder, split: str) -> "ClipIndex":
        """The index of a split in a data set's folder. Raises `UserError` if there is none that fits."""
        path = epath.Path(folder) / index_file(split)
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format") != _INDEX_FORMAT:
                raise ValueError("it has another format")
            for name in ("images", "samples"):
                fields[name] = np.array(fields[name], np.int64)
            index = cls(**fields)
            if not len(index.names) == len(index.images) == len(index.samples) > 0:
                raise ValueError("its columns have different lengths")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: no index of clips that can be read ({error}); build the data set again"
            ) from error
        return index


def index_file(split: str) -> str:
    """Name of a split's index within the data set's folder."""
    return f"clips-{split}.json"
