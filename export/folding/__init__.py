"""Fold batch norms in eval mode into the linear operators beside them.

``fold`` is the door. A batch norm is a scale and a shift for each channel (``channels``), which
``walk`` carries up from its input and down from its output: past operators that move values
(``layout``), ``pooling`` and ``padding``, into ``convolution``, ``matrix`` products and other batch
norms. ``neighbours`` and ``elementwise`` first take in what is constant beside it. A ``plan`` of
edits is carried out only when all of it can be; else a ``Refusal`` gives the reason.
"""

from __future__ import annotations

from .fold import fold

__all__ = ["fold"]
