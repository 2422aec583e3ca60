"""Draws what each augmentation does to a clip, from the weak end of its range to the strong one.

    python -m mtd_jax.data.contact_sheet --root=ROOT --output=sheet.png [--list=train] [--format=lrs2] [--clip=0]

A row per transform at the range of `augment.MILD`, and below them draws of all transforms together, as a training
sees them. Audio is drawn as the spectrogram of its first second.
"""

import dataclasses
import sys

import numpy as np
from absl import flags

from mtd_jax.data import augment
from mtd_jax.data.clip import SAMPLE_RATE, Clip
from mtd_jax.data.sources import FORMATS, open_source
from mtd_jax.errors import UserError, main_function
from mtd_jax.storage import check_writable

_STEPS = 5  # strengths of a transform
_DRAWS = 3  # rows of draws of all transforms
_AUDIO = ("voice", "reverberation", "babble", "music", "hiss", "low_pass", "high_pass", "tilt", "codec", "gain")

_FLAGS = flags.FlagValues()
_ROOT = flags.DEFINE_string("root", None, "Folder of the clips.", flag_values=_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "PNG file to write.", flag_values=_FLAGS)
_LIST = flags.DEFINE_string("list", "train", "List of clips, or a split.", flag_values=_FLAGS)
_FORMAT = flags.DEFINE_enum("format", "lrs2", FORMATS, "Layout of the folder.", flag_values=_FLAGS)
_CLIP = flags.DEFINE_integer("clip", 0, "Number of the clip in its list.", lower_bound=0, flag_values=_FLAGS)


def sheet(clip: Clip, voices: list[np.ndarray], path: str) -> None:
    """Draws the sheet of a clip.

    Args:
      clip: at least one second long.
      voices: other clips' audio, int16, for babble.
      path: PNG file to write.
    """
    import matplotlib.pyplot as plt

    names = [field.name for field in dataclasses.fields(augment.Augmentation) if field.name != "freeze"]
    rows = len(names) + 2 * _DRAWS
    figure, axes = plt.subplots(rows, _STEPS, figsize=(1.6 * _STEPS + 1.4, 0.95 * rows), squeeze=False)
    for name, row in zip(names, axes, strict=False):
        _, low, high = getattr(augment.MILD, name)
        for strength, place in zip(np.linspace(low, high, _STEPS), row, strict=True):
            drawn: augment.Drawn = dict.fromkeys(names, None) | {"freeze": None, name: float(strength)}
            _show(place, clip, drawn, voices, name not in _AUDIO, seed=0)
            place.set_title(f"{strength:.3g}", fontsize=6, pad=1)
        row[0].set_ylabel(name.replace("_", " "), fontsize=7, rotation=0, ha="right", va="center")
    for number, row in enumerate(axes[len(names) :]):
        for step, place in enumerate(row):
            seed = _STEPS * (number // 2) + step
            drawn = augment.draw(np.random.default_rng(seed), augment.MILD)
            _show(place, clip, drawn, voices, number % 2 == 0, seed)
        row[0].set_ylabel("all" if number % 2 == 0 else "", fontsize=7, rotation=0, ha="right", va="center")
    for place in axes.flat:
        place.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _show(place, clip: Clip, drawn: augment.Drawn, voices: list[np.ndarray], is_video: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    altered = augment.alter_clip(rng, drawn, clip, lambda: voices)
    if is_video:
        place.imshow(augment.alter_frames(rng, drawn, altered.frames[0:1][None])[0, 0])
    else:
        sound = altered.waveform[:SAMPLE_RATE].astype(float)
        place.specgram(sound + 1e-3, NFFT=512, Fs=SAMPLE_RATE, noverlap=384, vmin=-60, vmax=40)
        place.set_aspect("auto")


def _command() -> None:
    root, output = _ROOT.value, _OUTPUT.value
    if not root or not output:
        raise UserError("--root and --output: expected a folder of clips and a PNG file to write")
    check_writable(output)
    source = open_source(_FORMAT.value, root, _LIST.value, min_frames=25)
    number = _CLIP.value or 0
    if number >= len(source):
        raise UserError(f"--clip: expected 0 to {len(source) - 1}, got {number}")
    others = [source[other % len(source)] for other in range(number + 1, number + 4)]
    sheet(source[number], [other.waveform[: len(other.waveform)] for other in others], output)
    print(f"drawn: {output}")


main = main_function(_command, _FLAGS, __doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv))
