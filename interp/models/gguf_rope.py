"""A GGUF file's rotary embeddings: how far each pair of a head's dimensions turns per token.

Written into the configuration, then proven: the frequencies of the model that is built from it are
compared with those that the format defines.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from interp.models.gguf_header import Header, refuse_setting

DIVISORS = "rope_freqs.weight"
"""The tensor by which frequencies are divided."""

# The base where none is written.
_BASE = 10_000.0

# Frequencies are kept in float32.
_TOLERANCE = 1e-4


def get_head_size(config: PretrainedConfig) -> int:
    """Return the number of dimensions of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def set_rope(config: PretrainedConfig, header: Header) -> None:
    """Write the base, the scaling and the turned part of the heads into a configuration.

    Raises:
        ValueError: it cannot hold one of them.
    """
    scaling = _read_scaling(header)
    if not getattr(config, "rope_parameters", None):
        if scaling["rope_type"] != "default":
            raise refuse_setting("rope.scaling.type", scaling["rope_type"])
        return
    parameters = dict(config.rope_parameters)
    if "full_attention" in parameters:
        # The layers with a window have a base of their own, and are not scaled.
        base = header.get_number("rope.freq_base_swa", _BASE)
        config.rope_parameters = {
            "full_attention": _describe(config, parameters["full_attention"], header),
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        }
    elif "rope.freq_base_swa" in header.settings:
        raise refuse_setting("rope.freq_base_swa", header.settings["rope.freq_base_swa"])
    else:
        config.rope_parameters = _describe(config, parameters, header)


def check_frequencies(model: PreTrainedModel, header: Header) -> None:
    """Compare the frequencies that a model will turn by with those that its file defines.

    Args:
        model: may be on the meta device.
        header: of its file.

    Raises:
        ValueError: they differ.
    """
    num_turned = int(header.get_number("rope.dimension_count", get_head_size(model.config)))
    base = header.get_number("rope.freq_base", _BASE)
    right = _scale(_compute_frequencies(base, num_turned), base, header)
    windowed = _compute_frequencies(header.get_number("rope.freq_base_swa", _BASE), num_turned)
    kinds = {type(m) for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")}
    for kind in kinds:
        with torch.device("cpu"):
            buffers = dict(kind(model.config).named_buffers())
        for name, buffer in buffers.items():
            if name.endswith("inv_freq") and "original" not in name:
                expected = windowed if name.startswith("sliding") else right
                found = buffer.double().numpy()
                if found.shape != expected.shape or not np.allclose(
                    found, expected, rtol=_TOLERANCE, atol=0
                ):
                    raise ValueError(
                        "its rotary frequencies are not those of the model that was built"
                    )


def _describe(config: PretrainedConfig, parameters: dict, header: Header) -> dict:
    """Return the parameters of a configuration's rotary embeddings."""
    found = _read_scaling(header) | {"rope_theta": header.get_number("rope.freq_base", _BASE)}
    head_size = get_head_size(config)
    num_turned = header.get_number("rope.dimension_count", head_size)
    if num_turned != head_size or "partial_rotary_factor" in parameters:
        found["partial_rotary_factor"] = num_turned / head_size
    return found


def _read_scaling(header: Header) -> dict[str, Any]:
    """Return how frequencies are scaled, as configurations say it."""
    factor = header.get_number("rope.scaling.factor") or header.get_number("rope.scale_linear")
    kind = header.settings.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise refuse_setting("rope.scaling.type", kind)
    scaled = kind != "none" and factor not in (0, 1)
    if DIVISORS in header.tensors:
        divisors = header.read_floats(DIVISORS)
        if not np.allclose(divisors, 1, rtol=_TOLERANCE):
            if scaled:
                raise refuse_setting("rope.scaling.factor", factor)
            return _recognize_llama3(divisors, header)
    if not scaled:
        return {"rope_type": "default"}
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        trained = header.get_number("rope.scaling.original_context_length")
        trained = trained or header.get_number("context_length")
        scaling["original_max_position_embeddings"] = int(trained)
    return scaling


def _recognize_llama3(divisors: np.ndarray, header: Header) -> dict[str, Any]:
    """Find the settings of Llama 3's scaling that give a file's divisors of the frequencies."""
    base = header.get_number("rope.freq_base", _BASE)
    lengths = 2 * np.pi / _compute_frequencies(base, 2 * len(divisors))
    # The longest waves are slowed by the whole factor.
    factor = float(divisors.max())
    for trained in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        smooth = np.clip((trained / lengths - 1) / (4 - 1), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), divisors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": trained,
            }
    raise ValueError(f"its tensor {DIVISORS!r} scales the rotary frequencies in no known way")


def _compute_frequencies(base: float, num_turned: int) -> np.ndarray:
    """Compute what each pair of dimensions turns per token, in radians, `[num_turned / 2]`."""
    return base ** -(np.arange(0, num_turned, 2) / num_turned)


def _scale(frequencies: np.ndarray, base: float, header: Header) -> np.ndarray:
    """Scale frequencies as the format defines it."""
    if DIVISORS in header.tensors:
        frequencies = frequencies / header.read_floats(DIVISORS)
    scaling = _read_scaling(header)
    if scaling["rope_type"] not in ("linear", "yarn"):
        return frequencies
    slowed = frequencies / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slowed
    num_turned, trained = 2 * len(frequencies), scaling["original_max_position_embeddings"]

    def find_pair(num_turns: float) -> float:
        """Find the pair of dimensions that turns so often within the trained length."""
        return num_turned * math.log(trained / (num_turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(0, math.floor(find_pair(32)))
    last = min(num_turned - 1, math.ceil(find_pair(1)))
    slow = np.clip((np.arange(len(frequencies)) - first) / max(0.001, last - first), 0, 1)
    return frequencies * (1 - slow) + slowed * slow
