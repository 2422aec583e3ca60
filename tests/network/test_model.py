"""The network against the reference values, and the properties it is built on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mtd_jax.errors import UserError
from mtd_jax.network import conv3d, layers
from mtd_jax.network.model import ENCODERS, ModelConfig, SyncModel, abstract_model, count_parameters, scale_pixels
from mtd_jax.network.weights import bind, computing_in, model_arrays, split_statistics
from tests.helpers.golden_models import STUDENT, TEACHER, golden, mel_from_torch, recipe_model

TOKENS = ("video_tokens", "audio_tokens", "av_tokens", "va_tokens", "fusion_tokens")
CASES = {
    "teacher_forward.npz": (TEACHER, 0),
    "student_forward.npz": (STUDENT, 1),
    "student_forward_25f.npz": (STUDENT, 1),
}


def assert_close(actual, expected, tolerance=1e-4):
    """Within `tolerance` of the largest finite magnitude; −inf exactly where it is expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert np.abs(actual[finite] - expected[finite]).max() <= tolerance * np.abs(expected[finite]).max()


@pytest.mark.parametrize("file", CASES)
def test_every_stage_matches_the_reference(file):
    reference, (config, seed) = golden(file), CASES[file]
    # The weights are arguments: as constants of the program, 320 MB would be compiled.
    forward = jax.jit(lambda arrays, *inputs: bind(config, arrays)(*inputs, return_features=True))
    inputs = reference["frames"], mel_from_torch(reference["mel"])
    logits, features = forward(model_arrays(recipe_model(config, seed)), *inputs)
    assert_close(logits, reference["logits"])
    for name in TOKENS:
        assert_close(getattr(features, name), reference[name])
    for name in ENCODERS:
        if f"{name}_attn_logits" in reference:
            assert_close(features.attention_logits[name], reference[f"{name}_attn_logits"])
            assert_close(features.value_logits[name], reference[f"{name}_value_logits"])


@pytest.mark.parametrize(
    "config, expected", [(ModelConfig.vocalist(), 80_106_561), (ModelConfig.mtd_vocalist(), 13_280_961)]
)
def test_parameter_counts(config, expected):
    assert count_parameters(abstract_model(config)) == expected


def test_a_new_model_is_live_and_follows_its_seed():
    rng = np.random.default_rng(6)
    frames = rng.integers(0, 256, (4, 5, 48, 96, 3), dtype=np.uint8)
    mel = rng.uniform(-4, 4, (4, 16, 80)).astype(np.float32)
    config = ModelConfig.tiny(num_layers=1)
    default, same, other = (SyncModel(config, **seed)(frames, mel) for seed in ({}, {"seed": 0}, {"seed": 1}))
    assert np.isfinite(default).all() and np.ptp(default) > 1e-4
    np.testing.assert_array_equal(default, same)
    assert np.abs(default - other).max() > 1e-4


def test_initial_arrays_have_the_documented_distribution():
    for name, array in model_arrays(SyncModel(ModelConfig.mtd_vocalist(), seed=3)).items():
        array = np.asarray(array)
        if array.ndim == 1:
            assert (array == (1 if name.endswith(("/scale", "/var")) else 0)).all(), name
        elif array.ndim == 2:  # Xavier: uniform up to its limit
            limit = np.sqrt(6 / sum(array.shape))
            assert np.abs(array).max() <= limit and array.size < 1000 or np.abs(array).max() > 0.99 * limit, name
        else:  # He: normal, with the spread of a sample of this size
            spread = np.sqrt(2 / np.prod(array.shape[:-1]))
            assert abs(array.std() / spread - 1) < 4 / np.sqrt(2 * array.size), name


def test_parameters_and_statistics_are_all_of_a_model():
    model = SyncModel(ModelConfig.tiny(), seed=0)
    params, statistics = split_statistics(model)
    assert params.keys().isdisjoint(statistics)
    assert params.keys() | statistics.keys() == model_arrays(model).keys()
    assert len(statistics) == 2 * 31  # mean and variance after each convolution
    assert sum(array.size for array in params.values()) == count_parameters(model)
    shapes, _ = split_statistics(abstract_model(model.config))  # without a single array
    assert {n: (x.shape, x.dtype) for n, x in shapes.items()} == {n: (x.shape, x.dtype) for n, x in params.items()}


@pytest.mark.parametrize("fold", [conv3d._conv_taps, conv3d._conv_toeplitz])
@pytest.mark.parametrize(
    "kernel, stride, padding",
    [(7, (1, 1), (3, 3, 3)), (5, (1, 2), (1, 1, 2)), (3, (2, 2), (0, 0, 1)), (1, (1, 1), (0, 0, 0))],
)
def test_folded_convolution_is_the_3d_one(fold, kernel, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 11, 13, 5, 3)).astype(np.float32)
    weights = rng.standard_normal((kernel, kernel, kernel, 3, 4)).astype(np.float32)

    def reference(x, weights):
        return lax.conv_general_dilated(
            x, weights, (*stride, 1), [(p, p) for p in padding], dimension_numbers=("NHWDC", "HWDIO", "NHWDC")
        )

    def folded(x, weights):
        return fold(x, weights, stride, padding, None)

    assert_close(folded(x, weights), reference(x, weights), 1e-5)
    cotangent = rng.standard_normal(reference(x, weights).shape).astype(np.float32)
    for actual, expected in zip(
        jax.vjp(folded, x, weights)[1](cotangent), jax.vjp(reference, x, weights)[1](cotangent), strict=True
    ):
        assert_close(actual, expected, 1e-5)


def test_conv3d_chooses_either_folding():
    """Narrow and wide layers take different paths to the same result."""
    rng = np.random.default_rng(1)
    for width in (8, 128):
        x = rng.standard_normal((1, 4, 4, 5, width)).astype(np.float32)
        weights = rng.standard_normal((3, 3, 3, width, 4)).astype(np.float32)
        args = ((1, 1), (1, 1, 1), None)
        assert_close(conv3d.conv3d(x, weights, *args), conv3d._conv_taps(x, weights, *args), 1e-5)


def test_mask_hides_only_late_audio_from_early_frames():
    mask = layers.attention_mask(5, 16)
    query, key = np.indices(mask.shape)
    np.testing.assert_array_equal(np.isneginf(mask), key > query + 11)
    assert not np.isinf(layers.attention_mask(16, 5)).any()


def test_positions_are_halves_from_one_and_zero_tokens_have_none():
    table = layers.sinusoidal_positions(3, 8)
    np.testing.assert_allclose(table[0, 0], np.sin(1.0), rtol=1e-6)
    np.testing.assert_allclose(table[1, 7], np.cos(2.0 * 1e-4), rtol=1e-6)
    encoder = layers.CrossModalEncoder(ModelConfig.tiny(), None)
    tokens = jnp.ones((1, 4, 32)).at[0, 2, 0].set(0.0)
    embedded = encoder._embed(tokens, False, None)
    np.testing.assert_array_equal(embedded[0, 2, 1:], np.float32(32**0.5))
    assert np.abs(embedded[0, 1] - 32**0.5).max() > 0.5
    kept = layers.CrossModalEncoder(ModelConfig.tiny(zero_tokens_lose_position=False), None)
    np.testing.assert_allclose(kept._embed(tokens, False, None)[0, 2, 0], np.sin(3.0), rtol=1e-5)


def test_keys_and_values_come_from_the_input_source():
    """The values of every layer depend on the encoder's source alone, not on the running stream."""
    rng = np.random.default_rng(2)
    encoder = layers.CrossModalEncoder(ModelConfig.tiny(num_layers=2), rng)
    queries, other, source = (jnp.asarray(rng.standard_normal((1, n, 32)), jnp.float32) for n in (6, 6, 5))
    _, _, values = encoder(queries, source)
    _, _, same_values = encoder(other, source)
    np.testing.assert_array_equal(values, same_values)
    assert np.ptp(values) > 1e-3


def test_pixel_conventions():
    frames = np.array([[[10, 20, 255]]], np.uint8)
    np.testing.assert_array_equal(scale_pixels(frames, "rgb255")[0, 0], [10, 20, 255])
    np.testing.assert_allclose(scale_pixels(frames, "rgb01")[0, 0], np.array([10, 20, 255]) / 255, rtol=1e-6)
    np.testing.assert_allclose(scale_pixels(frames, "bgr01")[0, 0], np.array([255, 20, 10]) / 255, rtol=1e-6)


def test_training_mode_updates_running_statistics_with_the_unbiased_variance():
    norm = layers.BatchNorm(2)
    x = (np.random.default_rng(3).standard_normal((3, 4, 2)) + [1, -2]).astype(np.float32)  # means far from 0
    norm(jnp.asarray(x), train=True)
    flat = x.reshape(-1, 2)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    before = np.asarray(norm.mean[...])
    norm(jnp.asarray(x), train=False)
    np.testing.assert_array_equal(norm.mean[...], before)


def test_dropout_acts_in_training_only():
    model = SyncModel(ModelConfig.tiny(), seed=0)
    rng = np.random.default_rng(4)
    frames = rng.integers(0, 256, (2, 5, 48, 96, 3), dtype=np.uint8)
    mel = rng.uniform(-4, 4, (2, 16, 80)).astype(np.float32)
    tokens = jax.jit(lambda: (model.encode_video(frames), model.encode_audio(mel)))()

    @functools.partial(jax.jit, static_argnums=1)
    def score(seed, train):
        return model.compare(*tokens, train=train, rngs=nnx.Rngs(dropout=jax.random.key(seed)))[0]

    np.testing.assert_array_equal(score(0, False), score(1, False))
    np.testing.assert_array_equal(score(0, True), score(0, True))
    assert np.abs(score(0, True) - score(1, True)).max() > 1e-3


def test_bfloat16_is_near_and_returns_float32():
    config = ModelConfig.tiny()
    model = SyncModel(config, seed=0)
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (2, 5, 48, 96, 3), dtype=np.uint8)
    mel = rng.uniform(-4, 4, (2, 16, 80)).astype(np.float32)
    half = computing_in("bfloat16", model)
    logits, features = jax.jit(lambda: model(frames, mel, return_features=True))()
    half_logits, half_features = jax.jit(lambda: half(frames, mel, return_features=True))()
    assert {leaf.dtype for leaf in jax.tree.leaves((half_logits, half_features))} == {jnp.dtype("float32")}
    assert_close(half_features.video_tokens, features.video_tokens, 5e-2)
    np.testing.assert_allclose(half_logits, logits, atol=5e-2)


@pytest.mark.parametrize(
    "frames, mel, message",
    [
        (np.zeros((1, 5, 48, 96, 3), np.float32), np.zeros((1, 16, 80)), "uint8"),
        (np.zeros((1, 5, 96, 96, 3), np.uint8), np.zeros((1, 16, 80)), "lower half"),
        (np.zeros((1, 5, 48, 96, 3), np.uint8), np.zeros((1, 80, 16)), "log_mel"),
    ],
)
def test_wrong_inputs_say_what_was_expected(frames, mel, message):
    model = SyncModel(ModelConfig.tiny(), seed=0)
    with pytest.raises(ValueError, match=message):
        model(frames, mel)


@pytest.mark.parametrize(
    "changes",
    [
        {"widths": (1, 2, 3)},
        {"widths": (8, 8, 8, 8, 12)},
        {"pixels": "bgr"},
        {"compute_dtype": "float16"},
        {"relu_dropout": 1.0},
        {"num_heads": 0},
        {"num_heads": -8},
        {"last_stride": (2, 2)},
        {"stem_stride": (2,)},
        {"stem_stride": (0, 0)},
    ],
)
def test_impossible_configs_are_refused(changes):
    with pytest.raises(UserError, match="model"):
        ModelConfig.tiny(**changes)
