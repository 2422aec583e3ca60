"""Converters between released PyTorch weights and checkpoint directories: the only part that needs PyTorch."""

import importlib.util
import sys

# While `python -m converters.X` imports this package, argv[0] is "-m": the one place where one line is enough.
if importlib.util.find_spec("torch") is None and sys.argv[:1] == ["-m"]:
    sys.exit("error: the converters need PyTorch; pip install torch (a build for CPUs is enough)")
