"""Reading the LRS2 layout: what a slice decodes, what the index leaves out, and what a list may name."""

import logging
import pickle

import numpy as np
import pytest
import soundfile

from mtd_jax.data.clip import UnusableClip
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.data.sources import list_names, open_source
from mtd_jax.errors import UserError
from tests.helpers.clips import write_clip, write_list


@pytest.fixture
def one_clip(tmp_path):
    sound = write_clip(tmp_path, "ann/1")
    write_list(tmp_path, "ann/1 0.93")
    return tmp_path, Lrs2Source(tmp_path, "train", min_frames=26)[0], sound


def test_frames_are_the_lower_half_in_rgb(one_clip):
    _, clip, _ = one_clip
    frames = clip.frames[3:8]
    assert (frames.shape, frames.dtype) == ((5, 48, 96, 3), np.uint8)
    assert clip.num_frames == 30
    for k, frame in enumerate(frames, start=3):
        np.testing.assert_allclose(frame[8:40, 8:40], np.broadcast_to([250, 0, 0], (32, 32, 3)), atol=4)
        np.testing.assert_allclose(frame[8:40, 56:88], 2 * k + 20, atol=3)


def test_frames_equal_another_decoder(one_clip):
    cv2 = pytest.importorskip("cv2")
    root, clip, _ = one_clip
    face = cv2.imread(str(root / "ann/1/7.jpg"))
    np.testing.assert_allclose(clip.frames[7:8][0], face[48:, :, ::-1], atol=2)


@pytest.mark.parametrize("face", [(200, 150), (60, 44), (97, 96)])
def test_crops_of_other_sizes_are_resized_before_the_cut(tmp_path, face):
    write_clip(tmp_path, "a/1", face=face)
    write_list(tmp_path, "a/1")
    frame = Lrs2Source(tmp_path, "train", min_frames=26)[0].frames[9:10][0]
    assert frame.shape == (48, 96, 3)
    np.testing.assert_allclose(frame[6:42, 6:42], np.broadcast_to([250, 0, 0], (36, 36, 3)), atol=4)
    np.testing.assert_allclose(frame[6:42, 56:90], 38, atol=3)


def test_waveform_slices_are_the_samples_of_the_file(one_clip):
    _, clip, sound = one_clip
    assert len(clip.waveform) == 30 * 640
    for window in (slice(0, 3200), slice(1234, 4434), slice(30 * 640 - 5, None), slice(10, 10)):
        got = clip.waveform[window]
        assert got.dtype == np.int16
        np.testing.assert_array_equal(got, sound[window])


def test_a_slice_reads_only_its_own_files_and_samples(one_clip, monkeypatch):
    root, clip, sound = one_clip
    for number in set(range(30)) - set(range(5, 10)):
        (root / f"ann/1/{number}.jpg").unlink()
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **k: read.append(n) or original(self, n, **k))
    assert clip.frames[5:10].shape[0] == 5
    np.testing.assert_array_equal(clip.waveform[3200:6400], sound[3200:6400])
    assert read == [3200]
    with pytest.raises(UnusableClip, match=r"ann/1: 10\.jpg cannot be read"):
        clip.frames[5:11]


@pytest.mark.parametrize("damage", [b"", b"not a picture", None])
def test_damaged_jpeg(one_clip, damage):
    root, clip, _ = one_clip
    file = root / "ann/1/4.jpg"
    file.write_bytes(file.read_bytes()[:200] if damage is None else damage)
    with pytest.raises(UnusableClip, match=r"4\.jpg"):
        clip.frames[0:5]
    assert clip.frames[5:10].shape == (5, 48, 96, 3)


def test_sound_that_changed_after_the_index(one_clip):
    root, clip, sound = one_clip
    path = root / "ann/1/audio.wav"
    soundfile.write(path, sound[:6400], 16_000)
    assert len(clip.waveform[3200:6400]) == 3200
    with pytest.raises(UnusableClip, match="ann/1"):
        clip.waveform[4000:7200]
    soundfile.write(path, sound, 44_100)
    with pytest.raises(UnusableClip, match="44100 Hz in 1 channel"):
        clip.waveform[0:3200]
    path.unlink()
    with pytest.raises(UnusableClip, match="cannot be read"):
        clip.waveform[0:3200]


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "PCM_24"])
def test_sound_of_other_sample_formats_is_scaled(one_clip, subtype):
    root, clip, sound = one_clip
    soundfile.write(root / "ann/1/audio.wav", sound / 32768, 16_000, subtype=subtype)
    np.testing.assert_array_equal(clip.waveform[100:3300], sound[100:3300])


def test_unusable_clips_are_counted_by_reason_and_reported_once(tmp_path, caplog):
    for name in ("a/good", "a/gap", "a/silent-film", "a/noise", "a/early-end", "b/also-good"):
        write_clip(tmp_path, name)
    write_clip(tmp_path, "a/short", frames=25)
    write_clip(tmp_path, "a/telephone", rate=8_000)
    write_clip(tmp_path, "a/half-sound", samples=26 * 640 - 1)
    (tmp_path / "a/gap/12.jpg").unlink()
    (tmp_path / "a/silent-film/audio.wav").unlink()
    (tmp_path / "a/noise/audio.wav").write_bytes(b"no sound file")
    (tmp_path / "a/early-end/0.jpg").unlink()
    listed = ["good", "gap", "silent-film", "noise", "early-end", "short", "telephone", "half-sound"]
    listed += ["nowhere", "good"]
    write_list(tmp_path, *(f"a/{name}" for name in listed), "", "b/also-good extra words")
    with caplog.at_level(logging.WARNING):
        source = Lrs2Source(tmp_path, "train.txt", min_frames=26)
    assert [source[i].name for i in range(len(source))] == ["a/good", "b/also-good"]
    assert source.skipped == {
        "with a gap in the numbering of the frames": ["a/gap", "a/early-end"],
        "without audio": ["a/silent-film"],
        "with unreadable audio": ["a/noise"],
        "with fewer than 26 frames": ["a/short", "a/half-sound"],
        "where the audio has 8000 Hz in 1 channel(s), expected 16000 Hz mono": ["a/telephone"],
        "without a readable folder": ["a/nowhere"],
        "listed before": ["a/good"],
    }
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "2 of 11 clips usable" in message and "\n" not in message
    assert "2 with fewer than 26 frames (first: a/short)" in message


def test_nothing_is_logged_when_all_clips_are_usable(one_clip, caplog):
    root, _, _ = one_clip
    Lrs2Source(root, "train", min_frames=30)
    assert not caplog.records


def test_no_usable_clip(tmp_path):
    write_clip(tmp_path, "a/1", frames=10)
    write_list(tmp_path, "a/1")
    with pytest.raises(UserError, match="none of its 1 clips is usable: 1 with fewer than 26 frames"):
        Lrs2Source(tmp_path, "train", min_frames=26)
    write_list(tmp_path)
    with pytest.raises(UserError, match="the list is empty"):
        Lrs2Source(tmp_path, "train", min_frames=26)


def test_missing_root_or_list(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Lrs2Source(tmp_path / "nowhere", "train", min_frames=26)
    with pytest.raises(UserError, match=r"train\.txt: no such list file"):
        Lrs2Source(tmp_path, "train", min_frames=26)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="cannot be read .*expected a text file that lists clips"):
        Lrs2Source(tmp_path, "binary", min_frames=26)


def test_list_by_path(one_clip, tmp_path_factory):
    root, _, _ = one_clip
    elsewhere = tmp_path_factory.mktemp("lists")
    write_list(elsewhere, "ann/1", name="mine.lst")
    assert len(Lrs2Source(root, elsewhere / "mine.lst", min_frames=26)) == 1


@pytest.mark.parametrize("path", ["../outside/1", "/etc/passwd", "ann/../../outside/1", "ann/\0/1"])
def test_list_paths_that_leave_the_root(one_clip, path):
    root, _, _ = one_clip
    write_list(root, "ann/1", "", path)
    with pytest.raises(UserError, match=r"train\.txt, line 3: .* leaves the data set"):
        Lrs2Source(root, "train", min_frames=26)


@pytest.mark.parametrize("link", ["bob", "bob/1", "bob/1/audio.wav", "bob/1/3.jpg"])
def test_symbolic_links_that_leave_the_root(tmp_path, link):
    inside, outside = tmp_path / "set", tmp_path / "set-of-others"
    for root in (inside, outside):
        write_clip(root, "bob/1")
    write_list(inside, "bob/1")
    kept = Lrs2Source(inside, "train", min_frames=26)
    assert len(kept) == 1
    (inside / link).rename(tmp_path / "moved")
    (inside / link).symlink_to(outside / link)
    with pytest.raises(UserError, match="line 1: .* leads out of the data set"):
        Lrs2Source(inside, "train", min_frames=26)


def test_symbolic_links_within_the_root_and_to_it(tmp_path):
    write_clip(tmp_path / "set", "disk/1")
    (tmp_path / "set/bob").symlink_to("disk")
    (tmp_path / "link").symlink_to("set")
    write_list(tmp_path / "set", "bob/1")
    assert Lrs2Source(tmp_path / "link", "train", min_frames=26)[0].frames[0:2].shape[0] == 2


def test_source_travels_to_another_process(one_clip):
    root, clip, sound = one_clip
    source = pickle.loads(pickle.dumps(Lrs2Source(root, "train", min_frames=26)))
    np.testing.assert_array_equal(source[0].frames[2:4], clip.frames[2:4])
    np.testing.assert_array_equal(source[0].waveform[:100], sound[:100])


@pytest.mark.parametrize("data_format", ["lrs2", "acappella"])
def test_folders_on_an_object_store_are_refused_with_advice(data_format):
    with pytest.raises(UserError, match="local disks only; build ArrayRecords"):
        open_source(data_format, "gs://bucket/clips", "train", min_frames=6)
    with pytest.raises(UserError, match="local disks only"):
        list_names(data_format, "gs://bucket/clips")


@pytest.mark.parametrize("name", ["{:05d}.jpg", "{}.png", "{}.JPG", "frame{}.jpeg"])
def test_images_of_other_names_are_named(tmp_path, name):
    write_clip(tmp_path, "s/a")
    for number in range(30):
        (tmp_path / f"s/a/{number}.jpg").rename(tmp_path / "s/a" / name.format(number))
    write_list(tmp_path, "s/a")
    with pytest.raises(UserError, match=rf"1 with images named like {name.format(0)}, not 0\.jpg"):
        Lrs2Source(tmp_path, "train", min_frames=6)
