"""Function signatures made from configuration dataclasses, so that an option is written once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from inspect import Parameter
from typing import Any, TypeVar

Result = TypeVar("Result")
Config = TypeVar("Config")


def takes_options(
    *configs: object, without: Collection[str] = ()
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a function with `**options` the fields of dataclasses as keyword parameters.

    Its signature and the section Args of its docstring then list them as if they were written out.
    The function receives those that a caller gives; `select_options` picks one dataclass's.

    Args:
        configs: dataclasses, or instances, whose values are the defaults. A field that the
            function or an earlier dataclass names already is not added again.
        without: fields that are left out.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = {
            name: parameter.replace(annotation=hints.get(name, Parameter.empty))
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is not Parameter.VAR_KEYWORD
        }
        texts: dict[str, str] = {}
        for config in configs:
            added = _field_parameters(config)
            added = {k: v for k, v in added.items() if k not in parameters and k not in without}
            texts |= {k: v for k, v in read_field_docs(config).items() if k in added}
            parameters |= added
        returned = hints.get("return", Parameter.empty)
        signature = inspect.Signature([*parameters.values()], return_annotation=returned)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Result:
            check_options(function.__name__, options, parameters)
            return function(*args, **options)

        call.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        call.__annotations__ = {name: each.annotation for name, each in parameters.items()}
        call.__annotations__["return"] = returned
        call.__doc__ = _insert_args(inspect.cleandoc(function.__doc__ or ""), texts)
        return call

    return decorate


def select_options(config: Config, options: Mapping[str, Any]) -> Config:
    """Return a configuration (an instance) with the values that options have for its fields."""
    names = {field.name for field in dataclasses.fields(config)}  # pyright: ignore[reportArgumentType]
    changes = {name: value for name, value in options.items() if name in names}
    return dataclasses.replace(config, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]


def check_options(function: str, options: Collection[str], valid: Collection[str]) -> None:
    """Raise TypeError, naming the closest valid one, where an option is unknown."""
    for name in options:
        if name not in valid:
            closest = get_close_matches(name, valid, n=1, cutoff=0)
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; "
                f"did you mean {closest[0]!r}?"
            )


def read_field_docs(config: object) -> dict[str, str]:
    """Return what the section Attributes of a dataclass's docstring says of each field."""
    section = inspect.getdoc(config if isinstance(config, type) else type(config)) or ""
    section = section.partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {5,}.+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _field_parameters(config: object) -> dict[str, Parameter]:
    kind = config if isinstance(config, type) else type(config)
    hints = typing.get_type_hints(kind, include_extras=True)
    parameters = {}
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if kind is not config:
            default = getattr(config, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = Parameter.empty if field.default is dataclasses.MISSING else field.default
        parameters[field.name] = Parameter(
            field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )
    return parameters


def _insert_args(doc: str, texts: Mapping[str, str]) -> str:
    """Add entries at the end of the section Args of a docstring, or with that section."""
    entries = [
        textwrap.fill(
            f"{name}: {text}",
            width=92,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in texts.items()
    ]
    head, args, rest = doc.partition("\nArgs:\n")
    own, blank, tail = rest.partition("\n\n")
    if not args:
        head, args = f"{doc}\n", "\nArgs:\n"
    return head + args + "\n".join([*filter(None, [own]), *entries]) + blank + tail
