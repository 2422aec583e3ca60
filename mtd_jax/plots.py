"""Pictures of results."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from mtd_jax.data.clip import FPS  # noqa: E402
from mtd_jax.scoring import OUT_OF_CLIP  # noqa: E402


def draw_score_map(axes, scores, true_offset=None, start_seconds=0.0):
    """Draws scores (N, 2·max_shift + 1) as window × offset, each window's best one, and the truth if known.

    The first window starts at `start_seconds`. What lies outside the clip stays white.
    """
    max_shift = scores.shape[1] // 2
    inside = np.where(scores > OUT_OF_CLIP, scores, np.nan)[:, ::-1]  # column c is offset max_shift − c
    extent = (-max_shift - 0.5, max_shift + 0.5, start_seconds + len(scores) / FPS, start_seconds)
    image = axes.imshow(inside, aspect="auto", extent=extent, cmap="viridis", interpolation="nearest")
    best = np.nanargmax(inside, axis=1) - max_shift
    axes.plot(
        best,
        start_seconds + (np.arange(len(best)) + 0.5) / FPS,
        ".",
        color="white",
        markersize=2,
        label="best of each window",
    )
    if true_offset is not None:
        for side in (-0.5, 0.5):
            label = "truth" if side > 0 else None
            axes.axvline(true_offset + side, color="tab:red", linewidth=1.2, linestyle="--", label=label)
    axes.set_xlabel("offset in frames of 40 ms (positive: the audio is early)")
    axes.set_ylabel("window start in seconds")
    return image


def draw_demo(path, scores, summary, labels):
    """The demo's picture: score map of the shifted video, and accuracy by context of the three models."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    shifted = summary["shifted_clip"]
    image = draw_score_map(left, scores, shifted["true_offset"])
    left.legend(loc="upper right", fontsize=8, markerscale=4, facecolor="black", labelcolor="white")
    left.set_title(
        f"A video with shifted sound: true offset {shifted['true_offset']:+d}, "
        f"measured {shifted['measured_offset']:+d}",
        fontsize=11,
    )
    figure.colorbar(image, ax=left, label="logit: do they belong together?")
    styles = {
        "teacher": ("o-", "tab:gray"),
        "student_plain": ("s--", "tab:orange"),
        "student_mtd": ("^-", "tab:blue"),
    }
    for variant, (style, color) in styles.items():
        accuracy = summary[variant]["accuracy"]
        label = f"{labels[variant]} ({summary[variant]['params'] / 1e6:.2f} M)"
        right.plot(
            [int(k) for k in accuracy], [100 * a for a in accuracy.values()], style, color=color, label=label
        )
    right.axhline(100 * 3 / scores.shape[1], color="black", linewidth=0.8, linestyle=":", label="chance")
    right.set(xlabel="context K in frames", ylabel="windows within ±1 frame (%)", ylim=(0, 102))
    right.set_title("Accuracy on unseen synthetic speakers", fontsize=11)
    right.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
