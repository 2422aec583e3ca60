"""From a measured offset to a video that is in sync."""
