"""How the command line is read: the flags that tyro makes of configurations, and its errors as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from pyro_hrssm.config import DataConfig, HRSSMConfig, LeaveOneOut, TrainingConfig, flat_name, objective
from pyro_hrssm.errors import InputError

_FLAGS = ConstructorRegistry()
"""How tyro makes flags of a configuration."""

NONE = ("None", "none")
"""How the command line writes None."""

_PYTHON_ONLY = frozenset({"frame_shape", "entry_flags", "window", "boundary_layers", "min_scale", "temperature_start"})
"""Settings without a flag: training takes three from the data, and docs/OPTIONS.md says why the others have none."""


@_FLAGS.primitive_rule
def _none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
    """`None` in either spelling, wherever a flag may be None; tyro's own rule knows the capital alone."""
    if info.type is not type(None):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}",
        choices=NONE,
        instance_from_str=lambda _: None,
        is_instance=lambda value: value is None,
        str_from_instance=lambda _: ["None"],
    )


@_FLAGS.struct_rule
def _flags_of_configuration(info: StructTypeInfo) -> StructConstructorSpec | None:
    """One flag per setting, those of `LeaveOneOut` beside `--elbo`; from them a configuration."""
    if info.type not in (HRSSMConfig, TrainingConfig, DataConfig):
        return None
    fields = [spec for spec in _flags(info.default) if spec.name not in _PYTHON_ONLY]
    if info.type is TrainingConfig:
        place = [spec.name for spec in fields].index("elbo")
        steering = [
            dataclasses.replace(spec, name=flat_name(spec.name), helptext=f"{spec.helptext} (`leave_one_out` only)")
            for spec in _flags(info.default.leave_one_out)
        ]
        named = "leave_one_out" if isinstance(info.default.elbo, LeaveOneOut) else info.default.elbo
        kinds: Any = Literal["trace", "mean_field", "leave_one_out"]
        fields[place : place + 1] = [dataclasses.replace(fields[place], type=kinds, default=named), *steering]

    def instantiate(**given: Any) -> Any:
        if "elbo" in given:
            default = info.default.leave_one_out
            steering = {flat_name(name): given.pop(flat_name(name)) for name in vars(default)}
            given["elbo"] = objective(given["elbo"], steering, default)
        return dataclasses.replace(info.default, **given)

    instantiate.__doc__ = info.type.__doc__  # stands above the flags in --help
    return StructConstructorSpec(instantiate, tuple(fields))


def _flags(config: Any) -> list[StructFieldSpec]:
    """A flag for each field of a dataclass; the docstrings of the fields are the flags' help."""
    documented = docstring_parser.parse_from_object(type(config)).params
    said = {entry.arg_name: " ".join((entry.description or "").split()) for entry in documented}
    hints = get_type_hints(type(config))
    return [StructFieldSpec(name, hints[name], value, said[name]) for name, value in vars(config).items()]


def with_parameters(name: str, base: type, function: Callable[..., Any]) -> type:
    """A dataclass of this name with one more flag for each keyword parameter of a function, described in its docstring.

    Arguments:
        base: a frozen dataclass; parameters of the function that it has as fields make no further flag.
    """
    hints = get_type_hints(function)
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(function.__doc__ or "").params}
    known = {entry.name for entry in dataclasses.fields(base)}
    flags = [
        (key, Annotated[hints[key], tyro.conf.arg(help=described[key])], field(default=parameter.default))
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in known
    ]
    made = dataclasses.make_dataclass(name, flags, bases=(base,), frozen=True)
    made.__doc__ = (function.__doc__ or "").split("\n\n")[0]
    return made


def ask(union: Any, arguments: Sequence[str], **texts: Any) -> Any:
    """The command that tyro reads from the arguments; raises :class:`InputError` with the message of a wrong one."""

    def read() -> Any:
        with _FLAGS:  # tyro 1.0 does not hand its argument `registry` on to subcommands
            return tyro.cli(union, args=arguments, config=(tyro.conf.OmitArgPrefixes,), **texts)

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return read()
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        refused = stop.__context__  # the error of a configuration, raised while tyro made it, is one line already
        while refused is not None and not isinstance(refused, InputError):
            refused = refused.__context__
        if refused is not None:
            raise refused from None
    # tyro has no public way to hand over the message alone: it reads the arguments again and draws the box around it.
    with _drawn_plainly() as box, contextlib.suppress(SystemExit):
        read()
    raise InputError(_first_paragraph(box.getvalue()))


@contextlib.contextmanager
def _drawn_plainly() -> Iterator[io.StringIO]:
    """Catches the text that tyro prints, each line whole and without colours.

    tyro draws a box for the width in the environment's COLUMNS, and in the colours that stdout can show.
    """
    columns, printed = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = str(10**9)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
            yield printed
    finally:
        del os.environ["COLUMNS"]
        os.environ.update({} if columns is None else {"COLUMNS": columns})


def _first_paragraph(box: str) -> str:
    """The text of a box of the parser below its title and above its next rule, drawn in UTF-8 or in ASCII."""
    said: list[str] = []
    for line in box.splitlines()[1:]:
        inside = line.strip("│ ")
        if inside.strip("╰─╯-"):
            said.append(inside)
        elif inside and said:
            break
    return " ".join(said) or "the command line could not be read; see pyro-hrssm --help"
