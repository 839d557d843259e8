"""Commands: functions, and the dataclasses whose fields are their options, as tyro reads them."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import arg

from interp.cli.options import parse_batch_size, parse_bound, parse_settings, parse_shard
from interp.launch.signature import takes_options

FLAGS = {
    "num_steps": "steps",
    "query_languages": "languages",
    "num_fake_facts": "num_facts",
    "num_fake_texts": "num_texts",
    "num_real_queries": "num_real",
}
"""Options that the command line calls otherwise."""

METAVARS = {
    "sites": "SITE",
    "source": "CODE",
    "query_languages": "CODE",
    "address": "HOST:PORT",
    "shard": "I/N",
    "settings": "NAME=VALUE",
    "stops": "METRIC<=VALUE",
    "until": "METRIC<=VALUE",
    "guards": "METRIC>=VALUE",
    "stop": "TEXT",
    "system": "TEXT",
    str: "NAME",
    int: "INT",
    float: "FLOAT",
    Path: "DIR",
}
"""Placeholders of values in the help, by option or by type."""

BOUNDS = ("stops", "until", "guards")
"""Options whose values are bounds."""


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    """Options of a command besides the parameters that its function names.

    Attributes:
        configs: dataclasses, or instances, whose values are the defaults.
        without: fields that are left out.
        unused: fields that are accepted, but have no effect; the help says so.
    """

    configs: tuple[object, ...] = ()
    without: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def has_options(
    find_options: Callable[[Sequence[str]], OptionSet],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Say which options a command has, given the words of the command line.

    They are looked up for the command that runs alone: their dataclasses may be slow to import.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        function.find_options = find_options  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return decorate


def make_command(function: Callable[..., None], args: Sequence[str] = ()) -> Callable[..., None]:
    """Return a function with all options of a command, in types that a command line can say."""
    find_options = getattr(function, "find_options", lambda _args: OptionSet())
    options: OptionSet = find_options(args)
    full = takes_options(*options.configs, without=options.without)(function)
    given = {
        FLAGS.get(name, name): each for name, each in inspect.signature(full).parameters.items()
    }
    spelled = {
        flag: each.replace(
            name=flag,
            annotation=_spell(each.name, each.annotation, options.unused),
            default=_write(each),
        )
        for flag, each in given.items()
    }
    signature = inspect.Signature([*spelled.values()])

    @functools.wraps(full)
    def command(*args: Any, **values: Any) -> None:
        bound = signature.bind(*args, **values).arguments
        full(**{given[flag].name: _read(given[flag], value) for flag, value in bound.items()})

    # tyro would read the types of the function that is wrapped.
    del command.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    command.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {name: each.annotation for name, each in spelled.items()}
    for name, flag in FLAGS.items():
        command.__doc__ = re.sub(
            rf"^    {name}: ", f"    {flag}: ", command.__doc__ or "", flags=re.M
        )
    return command


def _spell(name: str, annotation: Any, unused: Collection[str]) -> Any:
    """Return a type with a placeholder: choices and structures are text, checked where used."""
    if get_origin(annotation) is Annotated or annotation is bool:
        return annotation
    is_union = get_origin(annotation) in (Union, types.UnionType)
    kind = get_args(annotation)[0] if is_union else annotation
    is_optional = is_union and types.NoneType in get_args(annotation)
    metavar = METAVARS.get(name)
    if name == "shard":
        kind = str
    elif name in (*BOUNDS, "settings"):
        kind = tuple[str, ...]
    elif _is_by_set(annotation):
        metavar, kind = "INT|SET=INT", tuple[str, ...]
    elif get_origin(kind) is Literal:
        metavar, kind = "|".join(map(str, get_args(kind))), str
    if get_origin(kind) is tuple:
        metavar = metavar or METAVARS[get_args(kind)[0]]
        metavar = f"{metavar} [{metavar} ...]"
    about = "has no effect here" if name in unused else None
    kind_of_value = kind | None if is_optional else kind
    # A keyword cannot be a parameter.
    written = "while" if name == "guards" else None
    return Annotated[
        kind_of_value, arg(name=written, metavar=metavar or METAVARS[kind], help=about)
    ]


def _is_by_set(annotation: Any) -> bool:
    """Return whether a value is one number, or one for each set of examples."""
    return annotation == int | Mapping[str, int]


def _write(parameter: Parameter) -> Any:
    """Return a default as it would be typed."""
    name, default = parameter.name, parameter.default
    if default is Parameter.empty:
        return default
    if name == "shard":
        return "/".join(map(str, default))
    if name in BOUNDS:
        return tuple(map(str, default))
    if name == "settings":
        return tuple(f"{key}={value:.12g}" for key, value in default.items())
    if _is_by_set(parameter.annotation):
        if isinstance(default, int):
            return (str(default),)
        return tuple(f"{key}={value}" for key, value in default.items())
    return default


def _read(parameter: Parameter, value: Any) -> Any:
    """Return a typed value as the option has it; the default is itself."""
    name, default = parameter.name, parameter.default
    if default is not Parameter.empty and value == _write(parameter):
        return default
    if name == "shard":
        return parse_shard(value)
    if name in BOUNDS:
        return tuple(map(parse_bound, value))
    if _is_by_set(parameter.annotation):
        return parse_batch_size(value)
    return parse_settings(value) if name == "settings" else value
