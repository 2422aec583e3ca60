"""Augmentation: deterministic, the same for all windows of a clip, and never a move in time."""

import dataclasses

import numpy as np
import pytest

from configs import distill, teacher
from mtd_jax.config import augmentation
from mtd_jax.data import augment
from mtd_jax.data.augment import MILD, OFF, Augmentation, alter_audio, alter_frames, draw
from mtd_jax.data.clip import Clip
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.data.pipeline import make_training_iterator
from mtd_jax.data.sampling import Pairing
from mtd_jax.errors import UserError
from mtd_jax.synthetic.clips import portrait, record
from tests.helpers.clips import write_clip, write_list
from tests.helpers.videos import lag_seconds, noise

NAMES = [field.name for field in dataclasses.fields(Augmentation)]
VIDEO = NAMES[: NAMES.index("voice")]
AUDIO = NAMES[NAMES.index("voice") :]
RATE = 16_000


def only(name, low=None, high=None):
    """Just this transform, always, at its default range or a given one."""
    _, first, last = getattr(OFF, name)
    return Augmentation(**{name: (1.0, first if low is None else low, last if high is None else high)})


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def faces():
    """Two windows of three whole faces, smooth enough to be moved."""
    pictures, (x0, y0, x1, y1) = portrait(record(0, 2, 0, 0.24))
    face = np.stack([p[int(y0) : int(y1), int(x0) : int(x1)] for p in pictures])
    rows, columns = (np.linspace(0, n - 1, 96).astype(int) for n in face.shape[1:3])
    return face[:, rows[:, None], columns].reshape(2, 3, 96, 96, 3)


def altered(faces, augmentation, seed=0):
    generator = rng(seed)
    drawn = draw(generator, augmentation)
    return alter_frames(generator, drawn, faces), drawn


@pytest.fixture(scope="module")
def speech():
    sound = noise(3.0).astype(float)
    sound *= np.repeat(0.2 + np.abs(np.sin(np.arange(60))), len(sound) // 60)
    return (0.2 * sound).astype(np.int16)


def heard(speech, augmentation, seed=0):
    generator = rng(seed)
    return alter_audio(generator, draw(generator, augmentation), speech, lambda: [speech[::-1], speech[5000:]])


def test_off_changes_nothing_and_is_the_default_of_the_reproduction(faces, speech):
    assert OFF.is_off and not MILD.is_off
    shown, drawn = altered(faces, OFF)
    np.testing.assert_array_equal(shown, faces[:, :, 48:])
    assert set(drawn.values()) == {None}
    np.testing.assert_array_equal(heard(speech, OFF), speech)
    for module in (teacher, distill):
        assert augmentation(module.get_config()) == OFF


@pytest.mark.parametrize("name", VIDEO)
def test_each_transform_of_the_video_does_something_that_its_seed_decides(faces, name):
    shown, drawn = altered(faces, only(name))
    assert [key for key, value in drawn.items() if value is not None] == [name]
    assert shown.shape == (2, 3, 48, 96, 3) and shown.dtype == np.uint8
    changes = [not np.array_equal(altered(faces, only(name), seed)[0], faces[:, :, 48:]) for seed in range(20)]
    assert sum(changes) >= (2 if name == "freeze" else 18)
    np.testing.assert_array_equal(shown, altered(faces, only(name))[0])


@pytest.mark.parametrize("name", sorted(set(VIDEO) - {"freeze", "noise"}))
def test_all_frames_of_a_clip_are_altered_alike(faces, name):
    still = np.broadcast_to(faces[:1, :1], faces.shape).copy()
    shown, _ = altered(still, only(name))
    np.testing.assert_array_equal(shown, np.broadcast_to(shown[:1, :1], shown.shape))


def test_switching_one_off_leaves_the_strengths_of_the_others():
    before, after = draw(rng(), MILD), draw(rng(), dataclasses.replace(MILD, gamma=(0.0, 0.7, 1.5)))
    assert {k: v for k, v in before.items() if k != "gamma"} == {k: v for k, v in after.items() if k != "gamma"}
    assert after["gamma"] is None


def test_probabilities_and_ranges_are_those_asked_for():
    drawn = [draw(rng(seed), MILD) for seed in range(2000)]
    for name in NAMES:
        probability, low, high = getattr(MILD, name)
        strengths = [d[name] for d in drawn if d[name] is not None]
        assert len(strengths) / len(drawn) == pytest.approx(probability, abs=0.045), name
        assert min(strengths) >= low and max(strengths) <= high


def test_geometry_by_hand():
    """A bright square in the middle of the lower half goes where the transform says."""
    face = np.zeros((1, 1, 96, 96, 3), np.uint8)
    face[0, 0, 68:76, 20:28] = 255

    def centre(augmentation, frames=face, seed=0):
        shown = alter_frames(rng(seed), draw(rng(seed), augmentation), frames)[0, 0, ..., 0].astype(float)
        rows, columns = np.indices(shown.shape)
        return (rows * shown).sum() / shown.sum() + 48, (columns * shown).sum() / shown.sum(), (shown > 127).sum()

    assert centre(OFF) == (71.5, 23.5, 64)
    assert centre(only("flip"))[:2] == pytest.approx((71.5, 71.5), abs=0.1)
    y, x, area = centre(only("scale", 1.25, 1.25))
    assert (y, x) == pytest.approx((47.5 + 1.25 * 24, 47.5 - 1.25 * 24), abs=0.2) and 90 < area < 110
    turned = centre(only("rotation", 10, 10))
    far, near = 24 * np.cos(np.radians(10)), 24 * np.sin(np.radians(10))
    assert turned[:2] == pytest.approx((47.5 + far - near, 47.5 - far - near), abs=0.3)
    for seed in range(5):
        moved = centre(only("shift", 0.1, 0.1), seed=seed)
        assert np.hypot(moved[0] - 71.5, moved[1] - 23.5) < 96 * 0.1 * 2**0.5 and moved[2] == pytest.approx(
            64, abs=12
        )


def test_what_comes_in_from_above_is_the_face_where_it_is_known(faces):
    """Whole faces have pixels above their lower half; of halves, the edge is repeated."""
    generator = rng(3)
    drawn = draw(generator, only("rotation", 8, 8))
    whole, half = (alter_frames(rng(3), drawn, frames) for frames in (faces, faces[:, :, 48:]))
    assert np.abs(whole[:, :, 12:].astype(int) - half[:, :, 12:]).max() <= 1
    assert np.abs(whole[:, :, :3].astype(int) - half[:, :, :3]).max() > 5


@pytest.mark.parametrize("name", AUDIO)
def test_each_transform_of_the_audio_does_something_and_keeps_time(speech, name):
    sound = heard(speech, only(name))
    assert sound.dtype == np.int16 and len(sound) == len(speech) and not np.array_equal(sound, speech)
    np.testing.assert_array_equal(sound, heard(speech, only(name)))
    if name == "voice":  # other samples; what keeps its time is how loud they are
        sound, speech = (np.convolve(np.abs(s.astype(float)), np.ones(320), "same") for s in (sound, speech))
        sound, speech = sound - sound.mean(), speech - speech.mean()
    assert abs(lag_seconds(sound, speech)) < 0.005


@pytest.mark.parametrize("name", ["babble", "music", "hiss"])
def test_noise_is_as_loud_as_drawn(speech, name):
    sound = heard(speech, only(name, 10, 10)).astype(float)
    scale = (sound @ speech) / (speech.astype(float) @ speech)
    rest = sound / scale - speech
    assert 10 * np.log10(np.square(speech, dtype=float).mean() / np.square(rest).mean()) == pytest.approx(
        10, abs=1.5
    )


def test_filters_and_gain_by_their_spectrum(speech):
    def level(sound, low, high):
        spectrum = np.abs(np.fft.rfft(sound.astype(float))) ** 2
        hertz = np.fft.rfftfreq(len(sound), 1 / RATE)
        return 10 * np.log10(spectrum[(hertz >= low) & (hertz < high)].mean())

    white = (800 * rng().standard_normal(48_000)).astype(np.int16)
    dull = heard(white, only("low_pass", 2500, 2500))
    assert level(dull, 100, 1500) - level(dull, 6000, 8000) > 12
    thin = heard(white, only("high_pass", 300, 300))
    assert level(thin, 1000, 4000) - level(thin, 20, 60) > 12
    tilted = heard(white, only("tilt", 4, 4))
    assert level(tilted, 3800, 4200) - level(tilted, 950, 1050) == pytest.approx(8, abs=1)
    quiet = heard(speech, only("gain", -12, -12))
    assert 20 * np.log10(quiet.std() / speech.std()) == pytest.approx(-12, abs=0.2)


def test_another_voice_has_other_frequencies_in_the_same_time():
    """Tones come out as many times higher as asked for, bursts where they were."""
    times = np.arange(48_000) / RATE
    bursts = np.sin(2 * np.pi * 2 * times) > 0
    tone = (6000 * bursts * np.sin(2 * np.pi * 500 * times) + 20 * rng().standard_normal(48_000)).astype(np.int16)
    for factor in (0.8, 1.0, 1.3):
        sound = heard(tone, only("voice", factor, factor)).astype(float)
        spectrum = np.abs(np.fft.rfft(sound))
        assert np.argmax(spectrum) / 3 == pytest.approx(500 * factor, rel=0.01)
        loud = np.convolve(sound**2, np.ones(400) / 400, "same") > 6000**2 / 12
        assert np.mean(loud == bursts) > 0.95
        assert sound.std() == pytest.approx(tone.std(), rel=0.05)
    np.testing.assert_allclose(heard(tone, only("voice", 1, 1))[2000:-2000], tone[2000:-2000], atol=60)


def test_a_voice_does_not_fold_over_at_the_top_of_the_spectrum():
    times = np.arange(32_000) / RATE
    high = (6000 * np.sin(2 * np.pi * 7000 * times)).astype(np.float32)
    assert augment._revoiced(high, 1.3).std() < 0.02 * high.std()


def test_a_bent_face_moves_by_as_much_as_asked_and_smoothly():
    rows, columns = np.indices((96, 96))
    face = np.stack([rows * 2, columns * 2, 0 * rows], -1).astype(np.uint8)[None, None]
    shown = alter_frames(rng(), draw(rng(), only("bend", 0.04, 0.04)), face)[0, 0, :, :, :2] / 2
    moves = shown - np.stack(np.indices((48, 96)), -1) - [48, 0]
    inner = moves[8:-8, 8:-8]
    assert 1 < np.abs(inner).max() < 96 * 0.04 * 1.5
    assert np.abs(np.diff(inner, axis=0)).max() <= 1 and np.abs(np.diff(inner, axis=1)).max() <= 1


def test_silence_stays_silent():
    silence = np.zeros(16_000, np.int16)
    np.testing.assert_array_equal(heard(silence, dataclasses.replace(MILD, hiss=(1.0, 5.0, 5.0))), silence)


@pytest.mark.parametrize(
    "field, value",
    [
        ("blur", (1.5, 1.0, 2.0)),
        ("jpeg", (0.5, 0.0, 50.0)),
        ("shift", (0.5, 0.1)),
        ("codec", (1, 0, 2)),
        ("scale", (0.5, 1.2, 0.8)),
    ],
)
def test_ranges_that_make_no_sense_are_named(field, value):
    with pytest.raises(UserError, match=rf"augment\.{field}: expected \(probability, low, high\)"):
        Augmentation(**{field: value})


class Clips:
    list_path, skipped, encoding = "made up", {}, ""

    def __init__(self, faces, speech):
        self.faces = np.tile(faces.reshape(-1, 96, 96, 3), (10, 1, 1, 1))
        self.sound = speech[: 640 * len(self.faces)]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Clip(f"{index}", self.faces[:, 48:], self.sound, faces=self.faces)


def test_a_resumed_training_sees_the_same_pictures_and_the_same_windows(faces, speech):
    source, grid = Clips(faces, speech), Pairing("grid", windows=3, min_gap=5)

    def batches(count, **options):
        iterator = make_training_iterator(source, grid, seed=1, batch_size=2, **options)
        found = [next(iterator) for _ in range(count)]
        state = iterator.get_state()
        iterator.close()
        return found, state

    plain, _ = batches(2)
    first, state = batches(3, augmentation=MILD)
    later, _ = batches(1, augmentation=MILD, start_batch=2)
    for name in first[2]:
        np.testing.assert_array_equal(first[2][name], later[0][name])
    assert not np.array_equal(first[0]["frames"], plain[0]["frames"])
    assert first[0]["frames"].shape == plain[0]["frames"].shape
    iterator = make_training_iterator(source, grid, seed=1, batch_size=2)
    with pytest.raises(UserError, match="augmentation"):
        iterator.set_state(state)


def test_sources_give_whole_faces_for_the_same_clip(tmp_path):
    write_clip(tmp_path, "a/b")
    write_list(tmp_path, "a/b")
    (clip,) = Lrs2Source(tmp_path, "train", min_frames=6)
    assert clip.faces[2:5].shape == (3, 96, 96, 3)
    np.testing.assert_array_equal(clip.faces[2:5][:, 48:], clip.frames[2:5])
    assert augment.alter_clip(rng(), draw(rng(), OFF), clip, list).frames is clip.faces
