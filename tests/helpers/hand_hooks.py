"""Activation patching by hooks on modules that are named by hand: a reference for the engines."""

from __future__ import annotations

import torch

INPUTS, OUTPUTS = ("coef",), ("attn", "mlp_out")
"""Sites that are a module's input or its output; of others the weights are swapped."""


def run_restored(vanilla, unlearned, ids, names, site):
    """Run U with V's inputs of some modules, their outputs, or their weights."""
    states, handles = {}, []
    for name in names:
        mine, theirs = unlearned.get_submodule(name), vanilla.get_submodule(name)
        if site not in (*INPUTS, *OUTPUTS):
            kept = {key: value.data for key, value in mine.named_parameters()}
            states[name] = kept
            for key, value in theirs.named_parameters():
                mine.get_parameter(key).data = value.data
            continue
        index = 0 if site in INPUTS else 2
        handle = theirs.register_forward_hook(
            lambda _m, args, out, name=name, index=index: states.update(
                {name: (args[0] if index == 0 else out).clone()}
            )
        )
        handles.append(handle)
        if site in INPUTS:
            hook = mine.register_forward_pre_hook(lambda _m, _args, name=name: (states[name],))
        else:
            hook = mine.register_forward_hook(lambda *_run, name=name: states[name])
        handles.append(hook)
    with torch.no_grad():
        vanilla(input_ids=ids, use_cache=False)
        logits = unlearned(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    if site not in (*INPUTS, *OUTPUTS):
        for name, kept in states.items():
            for key, value in kept.items():
                unlearned.get_submodule(name).get_parameter(key).data = value
    return logits
