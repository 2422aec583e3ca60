"""Clips in the LRS2 layout with known content."""

import numpy as np
import simplejpeg
import soundfile


def write_clip(root, name, *, frames=30, samples=None, rate=16_000, face=(96, 96), seed=0):
    """A clip whose frame k is grey 2·k + 20 with a red lower left corner; returns its sound, noise."""
    folder = root / name
    folder.mkdir(parents=True)
    for number in range(frames):
        picture = np.full((*face, 3), 2 * number + 20, np.uint8)
        picture[face[0] // 2 :, : face[1] // 2] = (250, 0, 0)
        (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(picture, quality=98))
    samples = frames * 640 if samples is None else samples
    sound = np.random.default_rng(seed).normal(0, 3000, samples).astype(np.int16)
    soundfile.write(folder / "audio.wav", sound, rate, subtype="PCM_16")
    return sound


def write_list(root, *lines, name="train.txt"):
    (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
