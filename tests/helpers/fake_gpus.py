"""GPUs that hold no numbers: what stands on which, and what would make the CPU wait for one.

Under PyTorch's fake tensors an operation on tensors of two devices is an error, and so is one whose
result the CPU must look at (`item`, `nonzero`, choosing by True and False, a branch on a tensor).
A device of its own kind has to be registered for the whole process, so test_devices.py runs

    python -m tests.helpers.fake_gpus CUTS_OF_V CUTS_OF_U ARCHITECTURE [ARCHITECTURE …]

which cuts the layers of V and U at some of them, such as 2 or 1,3: those below the first on gpu:0,
those from the last on upwards on the last GPU, and sweeps. It prints for each architecture where
the layers of U ran, where the losses were fetched from, once per pass, and how many restorations
the layered and the full engine scored.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from unittest.mock import patch

import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from interp import LanguageModel, Restoration
from interp.recovery import NOTHING, SITES, Pair, full, make_batch, make_prefix_batch, upward_pass
from tests.helpers.tiny_models import mixed_trajectories, tiny_model, trajectories_after, wrap

MODE = FakeTensorMode()
RESTORATIONS = [
    NOTHING,
    *(Restoration(sites=(site,), layers=(1, 2, 3)) for site in SITES),
    *(
        Restoration(sites=sites, layers=layers)
        for sites in (("coef", "attn"), ("coef", "value"), ("head", "attn_weights"))
        for layers in ((0, 1, 2), (2, 3, 4))
    ),
    Restoration(sites=("coef", "attn"), layers=(1, 2, 3), positions="prompt"),
    Restoration(sites=("coef",), layers=(1, 2), units=((3,), (4, 5))),
    Restoration(sites=("head",), layers=(1, 2), units=((1,), (0, 2))),
]


def spread(model: nn.Module, cuts: Sequence[int]) -> LanguageModel:
    """Dispatch a model: embeddings and some layers to gpu:0, the next to gpu:1, and so on."""
    wrapped = wrap(model)
    with unset_fake_temporarily():
        anatomy = wrapped.anatomy
    places = {
        f"{anatomy.path}.{layer}": f"gpu:{sum(layer >= cut for cut in cuts)}"
        for layer in range(wrapped.num_layers)
    }
    for name, module in model.named_modules():
        if module._parameters and not any(name.startswith(f"{layer}.") for layer in places):
            early = any(part in name for part in ("emb", "wte", "wpe", "project_in"))
            # A tied unembedding stays with the embedding.
            early |= module is wrapped.anatomy.unembed and model.config.tie_word_embeddings
            places.setdefault(name, "gpu:0" if early else f"gpu:{len(cuts)}")
    for module in model.modules():
        _move(module._buffers, "gpu:0")
    for name, place in places.items():
        for module in model.get_submodule(name).modules():
            _move(module._buffers, place)
            _move(module._parameters, place)
    # It would make every parameter anew, as a class that fake tensors do not let it.
    with patch("accelerate.hooks.set_module_tensor_to_device"):
        dispatch_model(model, places, main_device="gpu:0")
    return wrapped


def _move(tensors: dict, place: str) -> None:
    for name, value in tensors.items():
        if value is not None:
            fake = value if isinstance(value, FakeTensor) else MODE.from_tensor(value)
            fake = fake.detach().to(place)
            is_parameter = isinstance(value, nn.Parameter)
            tensors[name] = nn.Parameter(fake, requires_grad=False) if is_parameter else fake


def faked(make):
    """Make a batch on the CPU, where what it holds is known, then send it."""

    def making(*args, device, **options):
        with unset_fake_temporarily():
            real = make(*args, **options)
        tensors = {
            field.name: MODE.from_tensor(value).to(device)
            for field in fields(real)
            if isinstance(value := getattr(real, field.name), Tensor)
        }
        return replace(real, **tensors)

    return making


def on_device(values, *, device="cpu", _make=torch.tensor, **options):
    """Replace `torch.tensor`, which writes into a device's memory, without a value."""
    made = _make(values, **options)
    if str(device) == "cpu":
        return made
    return torch.empty(made.shape, dtype=made.dtype, device=device)


FIND_PLACES = "interp.recovery.engines.layered.answer_finder.find_places"


def find_all_places(_is_left: Tensor, _question: Tensor, places: Tensor) -> Tensor:
    return places


class Fetches(TorchDispatchMode):
    """Record of the devices from which tensors were copied to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type == "cpu":
            given = [str(value.device) for value in args if isinstance(value, Tensor)]
            self.places += [place for place in given if place != "cpu"]
        return result


def main(vanilla_cuts: Sequence[int], unlearned_cuts: Sequence[int], architecture: str) -> None:
    models = [tiny_model(architecture, seed=seed) for seed in (0, 1)]
    with MODE, torch.inference_mode(), patch.object(torch, "tensor", on_device):
        vanilla, unlearned = map(spread, models, (vanilla_cuts, unlearned_cuts))
        pair = Pair(vanilla=vanilla, unlearned=unlearned)
        # Whether two weights are the same is asked once, before anything runs.
        with patch("interp.recovery.distances._is_same_tensor", lambda one, other: one is other):
            scorer = pair.get_scorer("logit_mse")
            for readout in ("vanilla", "unlearned"):
                scorer.prepare(readout)
        ran: dict[int, set[str]] = {}
        for layer, parts in enumerate(unlearned.anatomy.layers):
            parts.values.register_forward_hook(
                lambda _module, _args, output, layer=layer: ran.setdefault(layer, set()).add(
                    str(output.device)
                )
            )
        fetches = Fetches()
        for items, prefix in ((mixed_trajectories(), 0), (trajectories_after([5, 6, 7]), 3)):
            with (
                patch.object(upward_pass, "make_batch", faked(make_batch)),
                patch.object(upward_pass, "make_prefix_batch", faked(make_prefix_batch)),
            ):
                swept, crowded = (
                    upward_pass.UpwardPass(
                        pair,
                        items,
                        RESTORATIONS,
                        rows_at_once=1 << 20,
                        room=room,
                        padding_side="right",
                        prefix=prefix,
                    )
                    for room in (1 << 40, 0)
                )
                with fetches:
                    losses = swept.run(scorer, lambda: None, answers=False).losses
                if prefix:
                    # Its rows wait on the CPU, and come back to where they were. How many of them
                    # may give V's answer is no number without values: all are read.
                    with patch(FIND_PLACES, find_all_places):
                        measured = crowded.run(scorer, lambda: None)
                    assert measured.answered.shape == measured.losses.shape == losses.shape
        batch = faked(make_batch)(mixed_trajectories(), device=pair.base.device)
        with patch.object(full, "measure_by_forwards", lambda runs, *_: runs):
            runs = full.measure(pair, [], RESTORATIONS)
        distances = list(
            runs(batch, RESTORATIONS, lambda target, logits: (target - logits).sum(-1))
        )
    where = [place for layer in sorted(ran) for place in sorted(ran[layer])]
    print(architecture, *where, "|", *fetches.places, "|", len(losses), len(distances))


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("gpu")
    for name in sys.argv[3:]:
        main(*([int(cut) for cut in given.split(",")] for given in sys.argv[1:3]), name)
