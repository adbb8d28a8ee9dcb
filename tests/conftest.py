"""What holds for all tests."""

from __future__ import annotations

import os

# Tests that start Python must find the package that is tested, not the checkout's folder of that
# name, which holds no compiled kernels unless they were built in place.
os.environ["PYTHONSAFEPATH"] = "1"
