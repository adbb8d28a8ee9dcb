"""Time cbn beside its peers: ``python -m benchmarks --help``."""

import sys
from pathlib import Path

# The checkout's own cbn/ holds no kernels unless they were built in place (`pip install -e .`):
# look there last, so that an installed package is found.
_root = Path(__file__).parents[1]
if not [*_root.glob("cbn/_kernels*.so"), *_root.glob("cbn/_kernels*.pyd")]:
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != _root]
    sys.path.append(str(_root))
