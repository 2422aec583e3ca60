"""A generator of mouths that is out of sync learns from `mtd_jax.sync_loss` alone to be in sync.

The generator is a small network that hears half a second of sound and mixes 48 pictures of one synthetic mouth. It
is first trained to copy mouths that are five frames late, as if its data had been out of sync. Then only the sync
loss trains it, which has never seen a true picture of what is said. Every so often a clip with other words is
generated and measured.

    python docs/examples/generator.py --output=generator.png
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from matplotlib.figure import Figure

import mtd_jax
from mtd_jax.data.clip import FACE_SIZE, SAMPLES_PER_FRAME
from mtd_jax.scoring import Scorer
from mtd_jax.sync.evidence import Scores, estimate
from mtd_jax.synthetic.clips import Recording, record
from mtd_jax.synthetic.render import render

OUTPUT = flags.DEFINE_string("output", "generator.png", "Picture to write.")
STEPS = flags.DEFINE_integer("steps", 300, "Steps with the sync loss.", lower_bound=1)
COPY_STEPS = flags.DEFINE_integer("copy_steps", 500, "Steps of copying late mouths, before.", lower_bound=1)

LATE = 5  # frames that the generator's own data is late by
HEARD = 13  # frames of sound that it hears, around its own
PICTURES = 48
WINDOW = 5  # frames that the sync loss looks at
BATCH = 16
EVERY = 50


class Generator(nnx.Module):
    """Sound around a frame → how to mix the pictures."""

    def __init__(self, pictures: jax.Array, rngs: nnx.Rngs):
        self.pictures = pictures
        self.hidden = nnx.Linear(HEARD * SAMPLES_PER_FRAME // 200 * 80, 128, rngs=rngs)
        self.mix = nnx.Linear(128, len(pictures), rngs=rngs)

    def __call__(self, heard: jax.Array) -> jax.Array:
        """(n, columns, 80) → pixels (n, 48, 96, 3)."""
        weights = jax.nn.softmax(self.mix(nnx.relu(self.hidden(heard.reshape(len(heard), -1) / 4))))
        return jnp.tensordot(weights, self.pictures, 1)


def mouths(recording: Recording) -> np.ndarray:
    """The true pictures, with the head at rest."""
    scene = recording.scene
    still = {"motion": np.zeros_like(scene.motion), "jitter": np.zeros_like(scene.jitter), "noise": 0.0}
    scene = dataclasses.replace(scene, **still)
    return render(recording.speaker.face, recording.visemes, scene, first_row=FACE_SIZE // 2)


def heard_by(recording: Recording) -> np.ndarray:
    """The sound around each frame, log-mel, (frames, columns, 80)."""
    margin = HEARD // 2 * SAMPLES_PER_FRAME
    sound = np.pad(recording.waveform, margin) / np.float32(32768)
    frames = len(recording.waveform) // SAMPLES_PER_FRAME
    starts = SAMPLES_PER_FRAME * np.arange(frames)[:, None] + np.arange(HEARD * SAMPLES_PER_FRAME)
    return np.asarray(jax.jit(mtd_jax.log_mel)(sound[starts]))[:, :-1]


def main(_) -> None:
    rng = np.random.default_rng(0)
    lessons = [record(seed=7, speaker=0, index=index, seconds=4.0) for index in range(12)]
    test = record(seed=7, speaker=0, index=99, seconds=4.0)
    # One face in one light: all have the scene of the first clip.
    *lessons, test = [dataclasses.replace(recording, scene=lessons[0].scene) for recording in (*lessons, test)]
    truth = [mouths(lesson) for lesson in lessons]
    heard = [heard_by(lesson) for lesson in lessons]
    everything = np.concatenate(truth)
    pictures = jnp.asarray(everything[rng.choice(len(everything), PICTURES, replace=False)], jnp.float32)
    generator = Generator(pictures, nnx.Rngs(0))
    expert = mtd_jax.load_model()

    def measured() -> tuple[int, float]:
        pixels = np.asarray(generator(jnp.asarray(heard_by(test))))
        scores = Scorer(expert)(
            np.clip(pixels + 0.5, 0, 255).astype(np.uint8), test.waveform, reference_edges=False
        )
        table = np.where(scores > -1000, scores, np.nan)
        found = estimate(Scores(np.arange(len(table)), table, 1), everywhere=False)
        return found.offset_frames, found.confidence

    @nnx.jit
    def copy(generator, optimizer, heard, pixels):
        def loss(generator):
            return jnp.mean(jnp.square(generator(heard) - pixels)) / 255

        value, gradient = nnx.value_and_grad(loss)(generator)
        optimizer.update(generator, gradient)
        return value

    @nnx.jit
    def please(generator, optimizer, heard, sound):
        def loss(generator):
            pixels = generator(heard.reshape(-1, *heard.shape[2:]))
            return mtd_jax.sync_loss(expert, pixels.reshape(len(sound), WINDOW, *pixels.shape[1:]), sound)

        value, gradient = nnx.value_and_grad(loss)(generator)
        optimizer.update(generator, gradient)
        return value

    optimizer = nnx.Optimizer(generator, optax.adam(1e-3), wrt=nnx.Param)
    for _step in range(COPY_STEPS.value):
        clip = rng.integers(len(lessons))
        frame = rng.integers(LATE, len(truth[clip]), 4 * BATCH)
        copy(generator, optimizer, heard[clip][frame], truth[clip][frame - LATE].astype(np.float32))
    offset, confidence = measured()
    print(f"after copying: offset {offset:+d} frames, confidence {confidence:.2f}", flush=True)

    optimizer = nnx.Optimizer(generator, optax.adam(1e-3), wrt=nnx.Param)
    losses, offsets = [], [(0, offset, confidence)]
    for step in range(1, STEPS.value + 1):
        clips = rng.integers(len(lessons), size=BATCH)
        starts = [rng.integers(1, len(truth[clip]) - WINDOW - 1) for clip in clips]
        windows = [slice(start, start + WINDOW) for start in starts]
        sound = [
            lessons[clip].waveform[SAMPLES_PER_FRAME * start : SAMPLES_PER_FRAME * (start + WINDOW)]
            for clip, start in zip(clips, starts, strict=True)
        ]
        batch = np.stack([heard[clip][window] for clip, window in zip(clips, windows, strict=True)])
        losses.append(float(please(generator, optimizer, batch, np.stack(sound) / np.float32(32768))))
        if step % EVERY == 0 or (step <= 2 * EVERY and step % 10 == 0):
            offsets.append((step, *measured()))
            recent = np.mean(losses[-10:])
            print(
                f"step {step}: loss {recent:.3f}, offset {offsets[-1][1]:+d}, confidence {offsets[-1][2]:.2f}",
                flush=True,
            )
    draw(losses, offsets, generator, test)


def draw(
    losses: list[float], offsets: list[tuple[int, int, float]], generator: Generator, test: Recording
) -> None:
    """The loss, the measured offset, and generated mouths above the true ones."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplot_mosaic([["loss", "offset"], ["mouths", "mouths"]], height_ratios=[1.3, 1])
    axes["loss"].plot(losses, ".", markersize=2, color="tab:gray")
    smooth = np.convolve(losses, np.ones(25) / 25, "valid")
    axes["loss"].plot(np.arange(len(smooth)) + 12, smooth, color="tab:blue")
    axes["loss"].set(xlabel="step", ylabel="sync loss")
    steps, frames, sure = zip(*offsets, strict=True)
    axes["offset"].plot(steps, frames, color="lightgray")
    points = axes["offset"].scatter(steps, frames, c=sure, cmap="viridis", vmin=0, vmax=1, zorder=3)
    axes["offset"].set(xlabel="step", ylabel="measured offset in frames")
    figure.colorbar(points, ax=axes["offset"], label="confidence")
    shown = slice(30, 38)
    generated = np.clip(np.asarray(generator(jnp.asarray(heard_by(test)[shown]))), 0, 255).astype(np.uint8)
    rows = [np.concatenate(list(pictures), axis=1) for pictures in (generated, mouths(test)[shown])]
    axes["mouths"].imshow(np.concatenate(rows))
    axes["mouths"].set(xticks=[], yticks=[24, 72], yticklabels=["generated", "true"])
    axes["mouths"].set_title("Eight frames of a clip with other words, at the end", fontsize=10)
    figure.savefig(OUTPUT.value, dpi=110)
    print(f"wrote {OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
