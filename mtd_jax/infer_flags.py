"""The flags of `--mode=infer` and `--mode=preprocess`; imports neither JAX nor a decoder."""

from absl import flags

VIDEO = flags.DEFINE_string("video", None, "infer: a video file, or a folder of them.")
VIDEOS = flags.DEFINE_string("videos", None, "preprocess: folder of videos, or a text file that lists them.")
_FACES = flags.DEFINE_string(
    "faces", "mtcnn", "infer, preprocess: mtcnn, whole (the picture is the face), or an .onnx detector."
)
_BOXES = flags.DEFINE_string("boxes", None, "infer: JSON file with face boxes of your own, instead of --faces.")
_MAX_SHIFT = flags.DEFINE_integer(
    "max_shift", 15, "infer: the largest offset to look for, in frames of 40 ms, 2 to 125."
)
_JSON = flags.DEFINE_boolean("json", False, "infer: print a JSON object per video.")
_REPORT = flags.DEFINE_string("report", None, "infer: HTML page to write.")
_FIX = flags.DEFINE_string("fix", None, "infer: copy of the video to write, its audio moved into sync.")
_KEEP = flags.DEFINE_integer(
    "filter_max_offset", None, "infer: list the videos whose offset is at most so many frames, and certain."
)
_LIST_NAME = flags.DEFINE_string(
    "list_name", "train", "preprocess: list file to name the clips on: train, val, test, pretrain."
)
_ALL_FACES = flags.DEFINE_boolean(
    "all_faces", False, "preprocess: keep faces beside a larger one, mostly listeners."
)
_WORKERS = flags.DEFINE_integer("workers", None, "preprocess: videos at a time. [one per CPU core]")


def preprocess_options() -> dict:
    """The arguments of `preprocess.preprocess` that have flags of their own."""
    return {
        "faces": _FACES.value,
        "list_name": _LIST_NAME.value,
        "all_faces": _ALL_FACES.value,
        "workers": _WORKERS.value,
    }


def infer_options() -> dict:
    """The arguments of `measure.measure` that have flags of their own."""
    return {
        "faces": _BOXES.value or _FACES.value,
        "max_shift": _MAX_SHIFT.value,
        "as_json": _JSON.value,
        "report": _REPORT.value,
        "fix": _FIX.value,
        "filter_max_offset": _KEEP.value,
    }
