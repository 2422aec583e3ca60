"""Properties that hold for any input, tried on random ones (hypothesis)."""

import itertools
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from mtd_jax.data.sampling import draw_spaced
from mtd_jax.distributed.sharding import FSDP, kernel_spec
from mtd_jax.faces.tracks import LinkSettings
from mtd_jax.network import conv3d
from mtd_jax.network.model import ModelConfig
from mtd_jax.released.key_table import to_flax, to_torch, torch_shapes
from mtd_jax.scoring import context_scores
from mtd_jax.video.container import Faults
from mtd_jax.video.decode import TimedFrame, on_grid
from tests.helpers.tracks import link

# The same examples in every run: a failure stays one until it is fixed.
some = settings(max_examples=60, deadline=None, derandomize=True)
few = settings(max_examples=8, deadline=None, derandomize=True)  # where every shape is compiled


@some
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=40),
    count=st.integers(1, 6),
    min_gap=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_spaced_draws_keep_their_distance_and_exist_whenever_they_can(weights, count, min_gap, seed):
    picks = draw_spaced(np.random.default_rng(seed), np.array(weights), count, min_gap)
    if len(weights) < 1 + (count - 1) * min_gap:
        assert picks is None
        return
    assert len(picks) == count and picks[0] >= 0 and picks[-1] < len(weights)
    assert all(b - a >= min_gap for a, b in itertools.pairwise(picks))


def test_spaced_draws_have_the_odds_of_the_product_of_their_weights():
    weights, rng = np.array([1.0, 2.0, 3.0, 4.0]), np.random.default_rng(0)
    sets = {
        pair: weights[list(pair)].prod() for pair in itertools.combinations(range(4), 2) if pair[1] - pair[0] > 1
    }
    drawn = [tuple(draw_spaced(rng, weights, 2, 2)) for _ in range(6000)]
    for pair, product in sets.items():
        assert abs(drawn.count(pair) / len(drawn) - product / sum(sets.values())) < 0.02


@some
@given(
    steps=st.lists(st.fractions(Fraction(1, 240), Fraction(1, 5), max_denominator=240), min_size=1, max_size=40),
    origin=st.fractions(0, 1, max_denominator=1000),
)
def test_the_grid_shows_the_nearest_frame_and_none_too_early(steps, origin):
    times = [origin + t for t in itertools.accumulate(steps, initial=Fraction(0))]
    shown = [
        TimedFrame(None, time, following)
        for time, following in itertools.pairwise([*times, times[-1] + Fraction(1, 25)])
    ]
    grid = list(on_grid(iter(shown), origin, Faults("video")))
    assert [k for k, _ in grid] == list(range(len(grid)))  # every 25th of a second, none twice
    for k, frame in grid:
        due = origin + Fraction(k, 25)
        ahead = frame.time - due
        assert ahead < Fraction(1, 50) or frame is shown[0]
        allowed = [abs(other.time - due) for other in shown if other.time - due < Fraction(1, 50)]
        assert abs(ahead) == min(allowed, default=abs(ahead))


@some
@given(data=st.data(), faces=st.integers(1, 4), frames=st.integers(2, 60), step=st.integers(1, 5))
def test_faces_that_stay_apart_keep_a_track_each(data, faces, frames, step):
    """Faces 200 pixels apart that move by a pixel a frame, cut into two shots: a track a face and shot."""
    cut = data.draw(st.integers(1, frames - 1))
    searched = sorted({*range(0, frames, step), *range(cut, frames, step), cut - 1, frames - 1})
    detections = {
        frame: np.array([[200 * face + frame, 10, 200 * face + frame + 80, 100, 1] for face in range(faces)], "f4")
        for frame in searched
    }
    tracks, dropped = link(detections, [cut], LinkSettings(min_frames=1, max_gap=10))
    assert not dropped and len(tracks) == 2 * faces
    assert {(t.start, t.end) for t in tracks} == {(0, cut), (cut, frames)}
    for track in tracks:  # boxes between searched frames are interpolated: the motion is linear
        lefts = track.boxes[:, 0]
        assert np.allclose(np.diff(lefts), 1)


@some
@given(
    count=st.integers(1, 40),
    max_shift=st.integers(0, 5),
    window=st.sampled_from([1, 5, 25]),
    more=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_context_scores_are_those_of_a_plain_loop(count, max_shift, window, more, seed):
    scores = np.random.default_rng(seed).normal(size=(count, 2 * max_shift + 1)).astype(np.float32)
    rows = more + 1
    expected = [
        np.mean(scores[max(i - rows // 2, 0) : i + (rows - 1) // 2 + 1].astype(np.float64), axis=0)
        for i in range(count)
    ]
    np.testing.assert_allclose(context_scores(scores, window + more, window), expected, rtol=1e-9, atol=1e-9)


@few
@given(
    size=st.tuples(st.integers(1, 2), st.integers(7, 12), st.integers(7, 12), st.integers(1, 6)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 2)),
)
def test_every_form_of_the_3d_convolution_is_xlas_own(size, channels, kernel, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*size, channels[0])).astype(np.float32)
    weights = rng.standard_normal((*kernel, *channels)).astype(np.float32)
    expected = lax.conv_general_dilated(
        x, weights, (*stride, 1), [(p, p) for p in padding], dimension_numbers=("NHWDC", "HWDIO", "NHWDC")
    )
    found = conv3d.conv3d(x, weights, stride, padding)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    taps = tuple(jnp.moveaxis(jnp.asarray(weights), 2, 0))
    first = conv3d.conv3d_time_first(jnp.moveaxis(jnp.asarray(x), 3, 0), taps, stride, padding)
    np.testing.assert_allclose(jnp.moveaxis(first, 0, 3), expected, atol=1e-4)


@few
@given(
    heads=st.integers(1, 4),
    per_head=st.integers(1, 6),
    widths=st.tuples(*[st.integers(1, 9)] * 4),
    layers=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_weights_survive_the_way_to_pytorch_and_back(heads, per_head, widths, layers, seed):
    config = ModelConfig(widths=(*widths, 4 * heads * per_head), num_heads=heads, num_layers=layers)
    rng = np.random.default_rng(seed)
    state = {
        name: rng.standard_normal(spec.shape).astype(np.float32) for name, spec in torch_shapes(config).items()
    }
    arrays = to_flax(config, state, "random weights")
    again = to_torch(config, arrays, "random weights")
    back = to_flax(config, again, "random weights")
    assert arrays.keys() == back.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, back[name])
    assert sum(array.size for array in arrays.values()) > 0


@some
@given(shape=st.lists(st.integers(1, 64), max_size=4).map(tuple), fsdp=st.sampled_from([1, 2, 4, 8]))
def test_kernels_split_into_equal_parts_along_one_axis(shape, fsdp):
    spec = kernel_spec(shape, fsdp)
    axes = [axis for axis, name in enumerate(spec) if name == FSDP]
    assert len(axes) <= 1
    for axis in axes:
        assert len(shape) > 1 and shape[axis] % fsdp == 0
        assert shape[axis] == max(size for size in shape if size % fsdp == 0)
    if not axes and fsdp > 1 and len(shape) > 1:
        assert all(size % fsdp for size in shape)
