"""Several devices and several processes that act as one.

In: the flags --coordinator, --num_processes and --process_id; signals; arrays and batches of one process.
Out: joined processes with the same settings, global arrays on a mesh, and one step at which all save and stop.

Read first: `launch.py` (how processes join, compare settings and fail), then `sharding.py` (which device holds
which part of an array) and `preemption.py` (SIGTERM and Ctrl-C).
"""
