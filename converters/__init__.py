"""Converters between released PyTorch weights and checkpoint directories: the only part that needs PyTorch."""

import importlib.util
import sys

# During `python -m converters.X`, argv[0] is "-m" while this package is imported. Only then is a missing PyTorch a
# message for a user; an import from Python code gets the usual ModuleNotFoundError.
if importlib.util.find_spec("torch") is None and sys.argv[:1] == ["-m"]:
    sys.exit("error: the converters need PyTorch; pip install torch (a build for CPUs is enough)")
