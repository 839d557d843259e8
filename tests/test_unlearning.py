"""Objectives by hand, and the loop that uses them."""

import copy
import math

import pytest
import torch

from interp.unlearning.objectives import cross_entropy, gradient_difference
from interp.unlearning.training import (
    Example,
    UnlearningConfig,
    label_logprobs,
    make_card,
    save,
    unlearn,
)
