"""Reading ahead gives what reading one by one gives, in order, with every error in its place."""

import threading

import numpy as np
import pytest

from mtd_jax.data import ahead
from mtd_jax.data.ahead import ReadAhead
from mtd_jax.data.clip import Clip
from mtd_jax.data.unusable import UnusableClip


class Track:
    def __init__(self, values, error=None, gate=None):
        self.values, self.error, self.gate = values, error, gate

    def __len__(self):
        return len(self.values)

    def __getitem__(self, window):
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return self.values[window]


class Source:
    """Clip i: i + 1 frames and sound for as many, and 99 samples more."""

    def __init__(self, count, errors=None, gates=None):
        self.count, self.errors, self.gates = count, errors or {}, gates or {}
        self.asked = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked.append(index)
        frames = np.full((index + 1, 48, 96, 3), index, np.uint8)
        sound = np.full((index + 1) * 640 + 99, index, np.int16)
        return Clip(str(index), Track(frames, self.errors.get(index), self.gates.get(index)), Track(sound))


def test_clips_come_whole_and_in_order_though_a_first_one_is_slow():
    # Clip 0 is read only after clip 3 was.
    gate = threading.Event()

    class Releases(Source):
        def __getitem__(self, index):
            if index == 3:
                gate.set()
            return super().__getitem__(index)

    clips = list(ReadAhead(Releases(20, gates={0: gate})))
    assert [clip.name for clip in clips] == [str(i) for i in range(20)]
    for index, clip in enumerate(clips):
        assert clip.frames.shape == (index + 1, 48, 96, 3) and (clip.frames == index).all()
        assert clip.waveform.shape == ((index + 1) * 640 + 99,) and clip.num_frames == index + 1


def test_unusable_clips_come_in_their_place_and_other_errors_are_raised_there():
    unusable = UnusableClip("1", "torn")
    clips = ReadAhead(Source(6, errors={1: unusable, 4: RuntimeError("disk")}))
    got = []
    with pytest.raises(RuntimeError, match="disk"):
        for clip in clips:
            got.append(clip)
    assert [getattr(clip, "name", None) for clip in got] == ["0", "1", "2", "3"] and got[1] is unusable


def test_no_more_is_read_than_is_soon_needed():
    source = Source(100)
    clips = iter(ReadAhead(source))
    next(clips)
    assert len(source.asked) <= ahead._AHEAD + 1
    clips.close()
    assert len(source.asked) <= ahead._AHEAD + 1
    assert list(ReadAhead(Source(0))) == []
