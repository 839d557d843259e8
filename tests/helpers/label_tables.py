"""Tables of label tokens, as objectives get them: log-probabilities that are numbers of ln 2."""

import math

import torch

LN2 = math.log(2)
PAD = math.nan  # Whatever stands under the padding must not matter.


def logs(*rows):
    """Log-probabilities of probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


# −log p is 1 and 3 in the first sequence, 4 in the second, in units of ln 2.
FORGET = logs([1 / 2, 1 / 8], [1 / 16, PAD])
FORGET_MASK = torch.tensor([[True, True], [True, False]])
# Under θ₀: 1 and 2, and 2.
FORGET_REFERENCE = logs([1 / 2, 1 / 4], [1 / 4, PAD])
# 1 in the first sequence, 2 and 1 in the second; under θ₀ 2, and 2 and 2.
PREFERRED = logs([1 / 2, PAD], [1 / 4, 1 / 2])
PREFERRED_REFERENCE = logs([1 / 4, PAD], [1 / 4, 1 / 4])
# 2 in the first sequence, 1 and 1 in the second.
RETAIN = logs([1 / 4, PAD], [1 / 2, 1 / 2])
RETAIN_MASK = PREFERRED_MASK = torch.tensor([[True, False], [True, True]])
RETAIN_KL = torch.tensor([[0.3, PAD], [0.6, 0.9]], dtype=torch.float64)
