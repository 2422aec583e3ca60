"""Clips of many lengths and faults, and data sets of ArrayRecords built from lists."""

from mtd_jax.data.records import VERSION
from mtd_jax.data.sources import open_source
from mtd_jax.data.tfds_builder import build
from tests.helpers.clips import write_clip, write_list

DATASET = f"lip_sync_clips/{VERSION}"


def write_odd_clips(root):
    """Some are unusable, and one has a picture that cannot be decoded."""
    write_clip(root, "a/48", frames=48, seed=1)
    write_clip(root, "a/more-pictures", frames=50, samples=40 * 640 - 3, seed=2)
    write_clip(root, "a/more-sound", frames=33, samples=90 * 640 + 5, seed=3)
    write_clip(root, "a/short", frames=25, seed=4)
    write_clip(root, "b/faces-of-another-size", frames=30, face=(120, 90), seed=5)
    write_clip(root, "b/damaged", frames=40, seed=6)
    (root / "b/damaged/20.jpg").write_bytes(b"no picture")
    write_clip(root, "b/gap", frames=30)
    (root / "b/gap/3.jpg").unlink()
    names = ["48", "more-pictures", "more-sound", "short"]
    write_list(root, *(f"a/{name}" for name in names), "b/faces-of-another-size", "b/damaged", "b/gap", "b/none")
    return root


def build_lists(root, output, *lists, workers=1, **options):
    sources = {name: open_source("lrs2", str(root), name, min_frames=0) for name in lists}
    return build(sources, output, workers=workers, progress=False, **options)
