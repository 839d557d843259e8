"""Hook points: sites of a model by name, for the activation cache, hooks and a restored model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from interp.models.anatomy import LayerParts
from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.module_calls import get_residual, remove_on_exit
from interp.recovery.site_names import translate_site_name
from interp.recovery.sites import ACTIVATION_SITES, STATE_SITES, SiteName
from interp.recovery.sweep_config import SweepConfig


def heads(model: LanguageModel) -> list[str]:
    """List the names of the single heads, "head[0]" and on: the sites of a sweep over heads.

    recovery = interp.sweep(vanilla, unlearned, answers, sites=interp.heads(vanilla), window=1)
    interp.figures.plot_heads(recovery.krs())
    """
    return [f"head[{head}]" for head in range(model.anatomy.num_heads)]


def get_decoder(model: LanguageModel) -> nn.Module:
    """Return the module that holds the layers: every forward goes through it, past OPT's body."""
    return model.model.get_submodule(model.anatomy.path.rpartition(".")[0])


@dataclass(frozen=True, kw_only=True)
class HookPoint:
    """Site in one layer, or some units of it.

    Attributes:
        site: an activation site.
        layer: the layer.
        units: the heads or coefficients meant, None for all.
    """

    site: str
    layer: int
    units: tuple[int, ...] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Name of the site (with its units) and the layer."""
        return str(SiteName(sites=(self.site,), units=self.units)), self.layer


def find_hook_points(name: str, model: LanguageModel) -> list[HookPoint]:
    """Find the hook points that a name means: "coef@3" one, "coef" one in every layer.

    Raises:
        ValueError: it names no activation site, or a layer or unit out of range.
    """
    translated = translate_site_name(name, model)
    for site in SiteName.parse(translated).sites:
        if site not in STATE_SITES:
            raise ValueError(
                f"{name!r} names weights, which are no states of a run; "
                f"sites with states are {', '.join(ACTIVATION_SITES)}"
            )
    config = SweepConfig(sites=(translated,), window=1)
    config.check_models(model)
    points = [
        HookPoint(
            site=site,
            layer=restoration.layers[0],
            units=None if restoration.units is None else restoration.units[0],
        )
        for restoration in config.restorations(model.num_layers)
        for site in restoration.sites
    ]
    for point in points:
        # Raises where it is no one tensor.
        model.anatomy.layers[point.layer].get_pass(point.site)
    return points


def hook_site(
    parts: LayerParts, site: str, see: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Show `see` a layer's state as it passes, inside the block; what it returns replaces it."""
    module, side = parts.get_pass(site)
    return hook_module(module, see, side=side)


def hook_module(
    module: nn.Module,
    see: Callable[[Tensor], Tensor | None],
    *,
    side: Literal["input", "output"] = "output",
) -> AbstractContextManager[None]:
    """Show `see` a module's first input or output, as `hook_site` does a layer's state."""

    def before(_module: nn.Module, args: tuple) -> tuple | None:
        new = see(args[0])
        return None if new is None else (new, *args[1:])

    def after(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
        new = see(get_residual(output))
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    if side == "input":
        return remove_on_exit(module.register_forward_pre_hook(before))
    return remove_on_exit(module.register_forward_hook(after))


def split_axes(
    value: Tensor, point: HookPoint, model: LanguageModel, shape: Sequence[int]
) -> Tensor:
    """View a state as [query, pos, …]: some layers merge these two axes, and heads are one."""
    value = value.view(*shape, value.shape[-1])
    return value.unflatten(-1, (model.anatomy.num_heads, -1)) if point.site == "head" else value


def make_unit_index(point: HookPoint) -> tuple:
    """Make the index of a hook point's units in a state with split axes."""
    if point.units is None:
        return (...,)
    return (..., list(point.units), *[slice(None)] * (point.site == "head"))


@dataclass(frozen=True)
class Hook:
    """Hook point that a hook function is called at.

    Attributes:
        name: as it was given: "coef@3", or a module's path.
    """

    name: str
    _layer: int | None

    def layer(self) -> int:
        """Return the layer.

        Raises:
            ValueError: the module lies in no layer.
        """
        if self._layer is None:
            raise ValueError(f"{self.name!r} lies in no layer")
        return self._layer


HookFunction = Callable[[Tensor, Hook], Tensor | None]


@contextmanager
def hooks(model: LanguageModel, functions: Sequence[tuple[str, HookFunction]]) -> Iterator[None]:
    """Show states to functions, which may replace them, in every forward inside the block.

    def silence(value, hook):        # value [query, pos, head, d_head]
        print(hook.name, hook.layer())
        return value * 0

    with interp.hooks(model, [("head@3[2]", silence), ("model.norm", look)]):
        model.model.generate(**tokens)

    A function is given a state and its `Hook` (`name`, `layer()`); it returns a tensor of the
    same shape and precision that takes the state's place, or None. As in TransformerLens, what
    it changes in place is changed. The functions at one place run in their order.

    Args:
        model: the model whose forwards are hooked.
        functions: pairs of a place and a function. A place is an activation site as in
            `run_with_cache` (of every layer: the function is called for each), or the dotted
            path of a module, whose output (the first, if several) is then the state.

    Raises:
        ValueError: a place is neither; or, inside the block, a function returns something else.
    """
    check_runnable(model, adapters=False)
    shape: list[int] = []

    def remember(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        shape[:] = next(tensor for tensor in given if tensor is not None).shape[:2]

    with ExitStack() as stack:
        stack.enter_context(
            remove_on_exit(get_decoder(model).register_forward_pre_hook(remember, with_kwargs=True))
        )
        modules = dict(model.model.named_modules())
        for name, function in functions:
            if name in modules:
                see = _make_module_hook(name, function)
                stack.enter_context(hook_module(modules[name], see))
                continue
            points = find_hook_points(name, model)
            for point in points:
                alone = len(points) == 1
                hook = Hook(name if alone else "@".join(map(str, point.key)), point.layer)
                see = _make_site_hook(point, function, hook, model, shape)
                stack.enter_context(hook_site(model.anatomy.layers[point.layer], point.site, see))
        yield


def _make_module_hook(path: str, function: HookFunction) -> Callable[[Tensor], Tensor | None]:
    layer = next((int(part) for part in path.split(".") if part.isdigit()), None)
    hook = Hook(path, layer)

    def see(value: Tensor) -> Tensor | None:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the output of {path!r} is a {type(value).__name__}, not a tensor; "
                "hook a module inside it"
            )
        new = function(value, hook)
        return None if new is None else _check_replacement(new, value, hook)

    return see


def _make_site_hook(
    point: HookPoint, function: HookFunction, hook: Hook, model: LanguageModel, shape: list[int]
) -> Callable[[Tensor], Tensor | None]:
    def see(value: Tensor) -> Tensor | None:
        whole = split_axes(value, point, model, shape)
        part = whole[make_unit_index(point)]
        new = function(part, hook)
        if new is not None:
            _check_replacement(new, part, hook)
        if point.units is None:
            return None if new is None else new.reshape(value.shape)
        # A copy was shown: what was changed in place is written back too.
        whole = whole.clone()
        whole[make_unit_index(point)] = part if new is None else new
        return whole.view(value.shape)

    return see


def _check_replacement(new: Tensor, old: Tensor, hook: Hook) -> Tensor:
    if not isinstance(new, Tensor):
        raise ValueError(
            f"the hook at {hook.name!r} must return a tensor or None, not {type(new).__name__}"
        )
    if new.shape != old.shape or new.dtype != old.dtype:
        raise ValueError(
            f"the hook at {hook.name!r} must return a tensor like the one it was given, "
            f"{tuple(old.shape)} of {old.dtype}, not {tuple(new.shape)} of {new.dtype}"
        )
    return new
