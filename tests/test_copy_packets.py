"""Times of packets that a file leaves open or gets wrong, and files whose reading fails."""

import types
from fractions import Fraction

import av
import pytest
from av.stream import Disposition

from mtd_jax.errors import UserError
from mtd_jax.media.copy_packets import Written, timed_packets


def stream(kind="video", disposition=0):
    return types.SimpleNamespace(index=0, type=kind, average_rate=25, time_base=Fraction(1, 1000),
                                 disposition=Disposition(disposition))  # fmt: skip


def reader(source, times, then=None):
    """Something that reads packets with these (dts, pts), and then fails."""

    def packet(dts, pts, size):
        return types.SimpleNamespace(
            dts=dts, pts=pts, size=size, duration=40, stream=source, time_base=source.time_base
        )

    def demux(_):
        for dts, pts in times:
            yield types.SimpleNamespace(
                dts=dts, pts=pts, size=9, duration=40, stream=source, time_base=source.time_base
            )
        if then is not None:
            av.error.err_check(then)
        yield packet(None, None, 0)

    return types.SimpleNamespace(demux=demux, name="file:a.mkv")


def times(source, given, strict=True, then=None):
    written = Written()
    packets = timed_packets(reader(source, given, then), [source], written, strict=strict)
    return [(p.dts, p.pts) for p in packets if p.size], written


@pytest.mark.parametrize(
    "given, expected",
    [
        ([(None, 80), (None, 200), (0, 120), (40, 160)], [(-80, 80), (-40, 200), (0, 120), (40, 160)]),
        ([(None, 0), (None, 10), (100, 100)], [(-30, 0), (10, 10), (100, 100)]),  # uneven: never shown too early
        ([(None, 0), (None, 80), (None, 40)], [(-40, 0), (0, 80), (40, 40)]),  # never told
        ([(0, 0), (40, 40), (40, 40), (20, 20)], [(0, 0), (40, 40), (41, 41), (42, 42)]),
        ([(0, 0), (None, 40)], [(0, 0), (40, 40)]),
    ],
)
def test_decoding_times_rise_and_nothing_is_shown_before(given, expected):
    assert times(stream(), given)[0] == expected


def test_pictures_without_a_duration_last_as_long_as_the_others():
    packet = types.SimpleNamespace(dts=0, pts=0, size=9, duration=0, stream=stream(), time_base=Fraction(1, 1000))
    source = types.SimpleNamespace(demux=lambda _: iter([packet]), name="file:a.ts")
    assert [p.duration for p in timed_packets(source, [packet.stream], Written(), strict=True)] == [40]


def test_simultaneous_subtitles_stay_so_where_containers_allow_it():
    assert times(stream("subtitle"), [(40, 40), (40, 40)], strict=False)[0] == [(40, 40), (40, 40)]


def test_packets_without_times_are_counted_but_covers_are_due_at_once():
    found, written = times(stream("data"), [(None, None), (0, 0), (None, None)])
    assert found == [(0, 0)] and written.untimed == {0: 2}
    found, written = times(stream(disposition=Disposition.attached_pic), [(None, None)])
    assert found == [(0, 0)] and not written.untimed


def test_damage_ends_the_copy_and_a_failing_disk_ends_it_all():
    found, written = times(stream(), [(None, 0), (None, 40), (2000, 2000)], then=-1094995529)
    assert len(found) == 3 and "ends at 2.0 s" in written.damage
    with pytest.raises(UserError, match="a.mkv: reading failed .Input/output error"):
        times(stream(), [(0, 0)], then=-5)
