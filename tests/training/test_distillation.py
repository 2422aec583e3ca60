"""Losses of tokens and of grids: by hand, by what they do not depend on, by their gradients, in the objective."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mtd_jax.config import default_config
from mtd_jax.network.model import ENCODERS, Features, ModelConfig
from mtd_jax.training import losses
from mtd_jax.training.objective import Objective, Scored

pytestmark = pytest.mark.usefixtures("no_rank_promotion")
CLIPS, WINDOWS, T, S = 2, 3, 2, 6
NAMES = ("video", "audio", "av", "va", "fusion")
NEW = ("features", "listwise", "dist", "interactive", "contrastive")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tokens(seed, width=4):
    """(video, audio) of all windows."""
    return normal(seed, CLIPS, WINDOWS, T, width), normal(seed + 100, CLIPS, WINDOWS, S, width)


def scored(seed, width):
    """What a model makes of a batch: tokens of a window are the same in all of its pairs."""
    video, audio = tokens(seed, width)
    grid = (CLIPS, WINDOWS, WINDOWS)
    of_pairs = {
        "video": jnp.broadcast_to(video[:, :, None], (*grid, *video.shape[2:])),
        "audio": jnp.broadcast_to(audio[:, None], (*grid, *audio.shape[2:])),
    }
    of_pairs |= {name: normal(seed + 7, *grid, S, width) for name in ("av", "va", "fusion")}
    features = Features(
        **{f"{name}_tokens": x.reshape(-1, *x.shape[3:]) for name, x in of_pairs.items()},
        attention_logits=dict.fromkeys(ENCODERS, jnp.zeros((1, 1, 1, 1, 1))),
        value_logits=dict.fromkeys(ENCODERS, jnp.zeros((1, 1, 1, 1, 1))),
    )
    return Scored(normal(seed + 1, *grid), features)


def identity(names, width):
    return {name: {"kernel": jnp.eye(width), "bias": jnp.zeros(width)} for name in names}


def test_listwise_kd_by_hand():
    """Rows and columns of two are ±1 once they are z-scored."""
    right, wrong = jnp.array([[[2.0, 0.0], [0.0, 5.0]]]), jnp.array([[[0.0, 2.0], [3.0, 0.0]]])
    p = 1 / (1 + math.exp(-2))
    expected = 2 * p - 2 * (1 - p)
    np.testing.assert_allclose(losses.listwise_kd(wrong, right), expected, rtol=1e-4)
    p = 1 / (1 + math.exp(-1))  # τ = 2 halves all differences, and the factor is 4
    np.testing.assert_allclose(losses.listwise_kd(wrong, right, 2.0), 4 * (p - (1 - p)), rtol=1e-4)


def test_dist_is_one_less_the_mean_correlation():
    student, teacher = normal(0, CLIPS, 5, 5), normal(1, CLIPS, 5, 5)
    rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(student.reshape(-1, 5), teacher.reshape(-1, 5), strict=True)]
    columns = [
        np.corrcoef(a, b)[0, 1]
        for a, b in zip(*(x.swapaxes(1, 2).reshape(-1, 5) for x in (student, teacher)), strict=True)
    ]
    np.testing.assert_allclose(
        losses.dist(student, teacher), 1 - (np.mean(rows) + np.mean(columns)) / 2, rtol=1e-4
    )
    np.testing.assert_allclose(losses.dist(-teacher, teacher), 2, rtol=1e-4)


@pytest.mark.parametrize("loss", [losses.listwise_kd, losses.dist])
def test_losses_of_grids_copy_the_order_and_not_the_scale(loss):
    teacher = normal(2, CLIPS, WINDOWS, WINDOWS)
    np.testing.assert_allclose(loss(3 * teacher - 2, teacher), 0, atol=1e-5)
    assert loss(teacher[:, ::-1], teacher) > 0.1


def test_contrastive_relation_is_the_kl_of_rows_and_columns():
    student, teacher = tokens(3), tokens(4, width=7)
    grids = [np.asarray(losses.token_similarity(*t), np.float64) / 0.1 for t in (student, teacher)]
    expected = 0.0
    for grid in (grids, [g.swapaxes(1, 2) for g in grids]):
        q, p = (np.exp(g) / np.exp(g).sum(axis=2, keepdims=True) for g in grid)
        expected += np.mean(np.sum(p * np.log(p / q), axis=2)) / 2
    np.testing.assert_allclose(losses.contrastive_relation(student, teacher), expected, rtol=1e-3)
    np.testing.assert_allclose(losses.contrastive_relation(teacher, teacher), 0, atol=1e-6)


def test_interactive_contrastive_crosses_the_two_models():
    """With maps that change nothing, a student that is its own teacher pays what InfoNCE asks of the tokens."""
    own, other = tokens(5), tokens(6)
    maps = identity(("video", "audio"), 4)
    np.testing.assert_allclose(
        losses.interactive_contrastive(own, own, maps), losses.token_info_nce(*own), rtol=1e-5
    )
    crossed = losses.token_info_nce(own[0], other[1]) + losses.token_info_nce(other[0], own[1])
    np.testing.assert_allclose(losses.interactive_contrastive(own, other, maps), crossed / 2, rtol=1e-5)


def test_feature_distance_knows_equal_and_unrelated_tokens():
    teacher, other = scored(8, 64).features, scored(9, 64).features
    maps = identity(NAMES, 64)
    scaled = jax.tree.map(lambda x: 5 * x + 1, teacher)
    np.testing.assert_allclose(losses.feature_distance(scaled, teacher, maps), 0, atol=1e-4)
    np.testing.assert_allclose(losses.feature_distance(other, teacher, maps), 2, atol=0.1)
    alone = losses.feature_distance(other, teacher, identity(("video",), 64))
    expected = np.mean((_layer_norm(other.video_tokens) - _layer_norm(teacher.video_tokens)) ** 2)
    np.testing.assert_allclose(alone, expected, rtol=1e-4)


def _layer_norm(x):
    x = np.asarray(x)
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def objective(name, **changes):
    options = default_config(ModelConfig.tiny()).loss
    options.name = name
    options.update(changes)
    return Objective.from_config(options)


def learned_with(name, teacher=7, student=4):
    widths = (ModelConfig.tiny(widths=(8, 8, 8, 8, width), num_heads=1) for width in (teacher, student))
    return objective(name).initial_learned(*widths, seed=0)


@pytest.mark.parametrize("name", NEW)
def test_the_objective_adds_the_loss_with_its_weight(name):
    student, teacher = scored(10, 4), scored(11, 8)
    labels = jnp.broadcast_to(jnp.eye(WINDOWS), student.logits.shape)
    learned = learned_with(name, teacher=8)
    plain, _ = objective(name)(student, None, labels, learned)
    total, parts = objective(name, distill_weight=3.0)(student, teacher, labels, learned)
    assert parts[name] > 0.01
    np.testing.assert_allclose(total - plain, 3 * parts[name], rtol=1e-4)


@pytest.mark.parametrize("name", NEW)
def test_gradients_are_those_of_the_values(name):
    """In all that training changes, by finite differences in float64."""
    with jax.enable_x64(True):
        wide = [jax.tree.map(lambda x: np.asarray(x, np.float64), scored(seed, 4)) for seed in (12, 13)]
        learned = jax.tree.map(lambda x: np.asarray(x, np.float64), learned_with(name, teacher=4))
        labels = np.broadcast_to(np.eye(WINDOWS), wide[0].logits.shape)
        total = jax.jit(lambda student, learned: objective(name)(student, wide[1], labels, learned)[0])
        check_grads(total, (wide[0], learned), order=1, modes="rev")
