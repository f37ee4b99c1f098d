"""LAMB as its paper has it: the library's takes no norm of weights above 10, which would slow wide layers down."""

from __future__ import annotations

import math

from pytorch_optimizer import Lamb


class LAMB(Lamb):
    """Adam whose step is, tensor by tensor, in proportion to the norm of the weights.

    References:
        You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, with φ(z) = z.
    """

    clamp = math.inf
    """The largest norm that counts (the paper's φ)."""
