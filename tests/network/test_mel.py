"""The log-mel against the reference values."""

import jax
import numpy as np
import pytest

from mtd_jax.network.mel import log_mel, mel_filterbank
from tests.helpers.golden_models import golden

pytestmark = pytest.mark.usefixtures("no_rank_promotion")


def test_whole_clip_chunk_and_silence_match_the_reference():
    reference = golden("mel.npz")
    whole = log_mel(reference["waveform"].astype(np.float32) / 32768)
    np.testing.assert_allclose(whole[:-1].T, reference["full_mel_without_last_column"], atol=4e-4)
    np.testing.assert_allclose(log_mel(reference["chunk"])[:-1].T, reference["chunk_mel"], atol=4e-4)
    np.testing.assert_allclose(log_mel(np.zeros(3200, np.float32))[:-1].T, reference["silence_mel"], atol=4e-4)


def test_any_leading_axes_and_lengths_inside_jit():
    waves = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3, 1999)).astype(np.float32)
    mels = jax.jit(log_mel)(waves)
    assert mels.shape == (2, 3, 1 + 1999 // 200, 80)
    np.testing.assert_allclose(mels[1, 2], log_mel(waves[1, 2]), atol=1e-5)


def test_filters_peak_in_order_and_have_unit_area():
    filters = mel_filterbank()
    assert (np.diff(filters.argmax(axis=1)) >= 0).all()
    # Unit area in Hz (bins are 20 Hz wide); narrow filters see too few bins for the sum to be exact.
    np.testing.assert_allclose(filters.sum(axis=1)[-20:] * 20, 1.0, rtol=0.02)


def test_integers_of_another_scale_are_refused():
    with pytest.raises(ValueError, match="expected int16, or float"):
        log_mel(np.zeros(3200, np.int32))


def test_short_waveforms_are_refused():
    with pytest.raises(ValueError, match="more than 400 samples"):
        log_mel(np.zeros(400, np.float32))
