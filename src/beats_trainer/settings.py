"""Settings as dataclasses: declared names and types, read from plain values and written to them.

mapping (YAML, JSON) -> [names and types checked] -> dataclass -> plain values

What a dataclass inherits from `Settings`; `config.py` has those of a training run, `pretraining_config.py` those of
pre-training. Neither torch nor pandas is imported: the command line reads them to print its help.
"""

import dataclasses
import difflib
import math
import numbers
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from beats_trainer.errors import ConfigError

__all__ = [
    "PRECISION_NAMES",
    "Settings",
    "build",
    "coerce",
    "dotted",
    "hints_of",
    "plain",
    "read_yaml",
    "shown",
]

PRECISION_NAMES: dict[str, str] = {
    "auto": "auto",
    **dict.fromkeys(("float32", "fp32", "32", "32-true"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16", "bf16-mixed"), "bfloat16"),
    **dict.fromkeys(("float16", "fp16", "16", "16-mixed"), "float16"),
}
"""The spellings of number formats that are understood."""


class Settings:
    """What the dataclasses share: only declared names can be set, paths are kept as text.

    Attributes:
        family: Dataclasses of one configuration by the name of their section; that of the whole is ``""``.
    """

    family: ClassVar[Mapping[str, "type[Settings]"]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _field_names(type(self)):
            raise ConfigError(_unknown_setting(name, type(self)))
        object.__setattr__(
            self, name, os.fspath(value) if isinstance(value, os.PathLike) else value
        )


S = TypeVar("S", bound=Settings)


def hints_of(owner: type[Settings]) -> dict[str, Any]:
    """The type of each setting."""
    hints = typing.get_type_hints(owner)
    return {name: hints[name] for name in _field_names(owner)}


def _field_names(owner: type[Settings]) -> list[str]:
    return [item.name for item in dataclasses.fields(owner)]  # type: ignore[arg-type]


def _section_name(owner: type[Settings]) -> str:
    return next((name for name, kind in owner.family.items() if issubclass(owner, kind)), "")


def dotted(section: str, name: str) -> str:
    """A setting's name with its section's, as messages have it."""
    return f"{section}.{name}" if section else name


def _unknown_setting(name: str, owner: type[Settings]) -> str:
    section = _section_name(owner)
    own = _field_names(owner)
    everywhere = [
        dotted(s, n) for s, o in (owner.family or {"": owner}).items() for n in _field_names(o)
    ]
    same_name = [known for known in everywhere if known.split(".")[-1] == name]
    close = [dotted(section, n) for n in difflib.get_close_matches(name, own, n=1, cutoff=0.5)]
    elsewhere = {known.split(".")[-1]: known for known in everywhere}
    far = [elsewhere[n] for n in difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.6)]
    guess = next(iter(same_name + close + far), None)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return (
        f"There is no setting {dotted(section, name)!r}.{hint} "
        f"Settings of {section or 'the whole'}: {', '.join(own)}."
    )


def build(owner: type[S], settings: Any, section: str) -> S:
    """Make a dataclass from a mapping, bringing each value to its field's type."""
    if isinstance(settings, owner):
        return settings
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"{section or 'A configuration'} must be a mapping of settings to values, "
            f"not {shown(settings)}."
        )
    hints = hints_of(owner)
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in hints:
            raise ConfigError(_unknown_setting(str(name), owner))
        where = dotted(section, name)
        if not section and name in owner.family:
            values[name] = build(owner.family[name], {} if value is None else value, name)
        else:
            values[name] = coerce(value, hints[name], where)
    return owner(**values)


def coerce(value: Any, hint: Any, where: str, parse_text: bool = True) -> Any:
    """Bring a value to a field's type, or raise a ConfigError that says what was expected.

    ``parse_text`` takes numbers written as text: PyYAML reads ``5e-5`` as text, not as a number.
    """
    for kind in _alternatives(hint):
        fits, result = _try_kind(value, kind, parse_text)
        if fits:
            return result
    expected = " or ".join(_described(kind) for kind in _alternatives(hint))
    raise ConfigError(f"{where} must be {expected}, not {shown(value)}.")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for arm in get_args(hint) for kind in _alternatives(arm))
    return (hint,)


def _try_kind(value: Any, kind: Any, parse_text: bool) -> tuple[bool, Any]:
    if kind is type(None):
        return value is None, None
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            return False, None
        items = [_try_kind(item, get_args(kind)[0], parse_text) for item in value]
        return all(fits for fits, _ in items), [item for _, item in items]
    if kind in (bool, str):
        return isinstance(value, kind), value
    if get_origin(kind) is os.PathLike:
        return isinstance(value, os.PathLike), value
    assert kind in (int, float), f"no rule for a field of type {kind}"
    number = _as_number(value, parse_text)
    if number is None or (kind is int and not number.is_integer()):
        return False, None
    return True, int(number) if kind is int else number


def _as_number(value: Any, parse_text: bool) -> float | None:
    if isinstance(value, bool) or not isinstance(
        value, numbers.Real | (str if parse_text else int)
    ):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is list:
        items = {int: "whole numbers", float: "numbers"}.get(get_args(kind)[0], "texts")
        return f"a list of {items}"
    if get_origin(kind) is os.PathLike:
        return "a path"
    names = {type(None): "null", bool: "true or false", int: "a whole number", str: "text"}
    return names.get(kind, "a number")


def shown(value: Any) -> str:
    """A value with its type, as messages have it."""
    return f"{value!r} ({type(value).__name__})"


def plain(value: Any) -> Any:
    """Settings as plain YAML types."""
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):  # numpy's numbers too
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of settings; an empty one has none.

    Raises:
        ConfigError: If the file is not there, or is not YAML.
    """
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration file {os.fspath(path)}: {error.strerror or error}. "
            "Config().to_yaml(path) writes one with all defaults."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{os.fspath(path)} is not a YAML file: {error}") from error
    return {} if settings is None else settings
