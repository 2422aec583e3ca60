"""Links boxes that are known beforehand."""

from mtd_jax.faces.tracks import Linker


def link(detections, cuts, settings, at_once=None):
    """Tracks and dropped tracks of detections, {frame: (faces, 5)}, in shots that begin at `cuts`."""
    linker, ahead = Linker(settings, at_once), list(cuts)
    for frame in sorted(detections):
        if ahead and frame >= ahead[0]:
            linker.cut()
            ahead.pop(0)
        linker.add(frame, detections[frame])
    kept, dropped = linker.finish()
    return [track.track() for track in kept], dropped
