"""Every field of the config dataclasses as an option: ``--training.max_epochs 10``.

dataclass fields -> [options] -> given values over a YAML file over defaults -> Config

The options, their types and their help come from ``config.py`` alone, and so do all checks: this file only
carries text there. Fields that are set often have a short name besides (``--epochs``).
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import os
import re
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from beats_trainer.config import (
    AugmentationConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)
from beats_trainer.errors import ConfigError
from beats_trainer.settings import hints_of

__all__ = [
    "add_data",
    "add_settings",
    "metavar_of",
    "parse_setting",
    "print_settings",
    "read_data_settings",
    "read_settings",
    "setting_help",
]

_SHORT_NAMES = {
    "data.audio_column": "--audio-column",
    "data.batch_size": "--batch-size",
    "data.annotations": "--annotations",
    "data.data_dir": "--data-dir",
    "data.folds": "--folds",
    "data.group_column": "--group-column",
    "data.group_pattern": "--group-pattern",
    "data.label_delimiter": "--label-delimiter",
    "data.label_column": "--label-column",
    "experiment_name": "--name",
    "model.mode": "--mode",
    "model.model_path": "--model",
    "seed": "--seed",
    "training.device": "--device",
    "training.learning_rate": "--lr",
    "training.max_epochs": "--epochs",
    "training.precision": "--precision",
}
_SHORTCUTS: dict[str, dict[str, Any]] = {
    "from_scratch": {"model.mode": "scratch"},
    "finetune": {"model.mode": "full"},
}
_SECTIONS: tuple[tuple[str, type], ...] = (
    ("", Config),
    ("data", DataConfig),
    ("model", ModelConfig),
    ("training", TrainingConfig),
    ("augmentation", AugmentationConfig),
)
_PREFIX = "setting:"


def add_settings(
    parser: argparse.ArgumentParser, offers: Callable[[str], bool] = lambda name: True
) -> None:
    """Add an option for every setting, ``--config``, ``--print_config`` and the shortcuts.

    Args:
        parser: Of the command.
        offers: Tells of a dotted name whether the command has a use for it. The shortcuts are for those
            that have one for ``model.mode``.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of settings; options go over it"
    )
    parser.add_argument(
        "--print_config",
        "--print-config",
        action="store_true",
        help="print the settings in use as YAML, and do nothing else",
    )
    if offers("model.mode"):
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--from-scratch",
            action="store_true",
            help="the same as --mode scratch (--model.encoder_layers and more set the network's size)",
        )
        which.add_argument(
            "--finetune",
            action="store_true",
            help="the same as --mode full",
        )
    for section, owner in _SECTIONS:
        group = parser.add_argument_group(
            f"settings of {section}" if section else "settings of the run"
        )
        hints = hints_of(owner)
        for item in dataclasses.fields(owner):
            name = f"{section}.{item.name}" if section else item.name
            if dataclasses.is_dataclass(hints[item.name]) or not offers(name):
                continue
            short = [_SHORT_NAMES[name]] if name in _SHORT_NAMES else []
            group.add_argument(
                *short,
                f"--{name}",
                dest=_PREFIX + name,
                default=argparse.SUPPRESS,
                type=functools.partial(parse_setting, hint=hints[item.name]),
                metavar=metavar_of(hints[item.name]),
                help=setting_help(owner, item),
            )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the argument DATA, which `read_data_settings` reads."""
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="folder with one folder of recordings per class, a CSV file with one row per clip, or, with "
        "--annotations, the folder of the recordings",
    )


def read_data_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """What the argument DATA says, by dotted name: a folder, or the CSV file of the clips."""
    if arguments.data is None:
        return {}
    # With annotations DATA is the recordings, also where it is misspelt.
    is_folder = os.path.isdir(arguments.data) or f"{_PREFIX}data.annotations" in vars(arguments)
    return {"data.data_dir" if is_folder else "data.metadata_file": arguments.data}


def read_settings(arguments: argparse.Namespace, **settings: Any) -> Config:
    """Put the given options over the YAML file over the defaults.

    Args:
        arguments: What the parser of `add_settings` gave.
        settings: What the argument DATA says, by dotted name; no option may say it too.

    Returns:
        The config, checked.

    Raises:
        ConfigError: If a setting is unknown, of the wrong type, or contradicts another.
    """
    with warnings.catch_warnings():  # the trainer gives the same warnings, about the final settings
        warnings.simplefilter("ignore")
        tree = Config.from_yaml(arguments.config).to_dict() if arguments.config else {}
        given: dict[str, Any] = {}
        for shortcut, implied in _SHORTCUTS.items():
            if getattr(arguments, shortcut, False):
                given.update(implied)
        for key, value in vars(arguments).items():
            if key.startswith(_PREFIX):
                given[key.removeprefix(_PREFIX)] = value
        for shortcut, implied in _SHORTCUTS.items():
            if getattr(arguments, shortcut, False) and given["model.mode"] != implied["model.mode"]:
                raise ConfigError(
                    f"--mode {given['model.mode']} and --{shortcut.replace('_', '-')} (which is --mode "
                    f"{implied['model.mode']}) contradict each other: leave one of them out."
                )
        for name in given.keys() & settings.keys():
            raise ConfigError(f"DATA says what {name} is: leave the option for it out.")
        if settings:  # DATA takes the place of what the file says of it
            for name in ("data_dir", "metadata_file"):
                if f"data.{name}" not in given:
                    tree.get("data", {}).pop(name, None)
        if "model.mode" in given:  # the file may say it in the old way
            for name in ("train_from_scratch", "freeze_backbone", "fine_tune_backbone"):
                tree.get("model", {}).pop(name, None)
        for name, value in (given | settings).items():
            *section, field = name.split(".")
            branch = tree.setdefault(section[0], {}) if section else tree
            branch[field] = value
        return Config.from_dict(tree)


def print_settings(config: Config) -> None:
    """Print a config as YAML, which ``--config`` reads back.

    What is left to the mode's preset stays ``null``, so that it follows the mode where that is changed; a
    comment says what it is now.
    """
    import yaml

    chosen = [
        f"#   {name}: {value:g}"
        for name, value in _preset_values(config).items()
        if _value_of(config, name) is None
    ]
    if chosen:
        print(f"# Mode {config.model.resolved_mode} sets, where null stands:", *chosen, sep="\n")
    print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")


def _preset_values(config: Config) -> dict[str, float]:
    """What the mode sets, by dotted name."""
    values = dataclasses.asdict(config.preset())
    del values["source"]
    return {
        f"{'data' if name == 'batch_size' else 'training'}.{name}": values[name] for name in values
    }


def _value_of(config: Config, name: str) -> Any:
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def parse_setting(text: str, hint: Any) -> Any:
    """Read what YAML would not take from plain text; `Config.from_dict` converts numbers itself."""
    import yaml

    kinds = _kinds(hint)
    if type(None) in kinds and text.lower() in ("null", "none"):
        return None
    try:
        if bool in kinds:
            return yaml.safe_load(text)
        if any(get_origin(kind) is list for kind in kinds):
            # As texts: the label `no` is no truth value, and numbers are made of texts later.
            return yaml.load(text if text.startswith("[") else f"[{text}]", yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be read as {metavar_of(hint)}"
        ) from error
    return text


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def metavar_of(hint: Any) -> str:
    """What stands for a value in the help."""
    kind = _kinds(hint)[0]
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is list:
        return "A,B,..."
    return {bool: "true|false", int: "N", float: "X"}.get(kind, "TEXT")


def setting_help(owner: type, item: "dataclasses.Field[Any]") -> str:
    """The text below a field of a dataclass, with its default."""
    text = _docstrings(owner)[item.name]
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = ",".join(str(entry) for entry in item.default_factory())
    default = "null" if value is None else str(value)
    default = default.lower() if isinstance(value, bool) else default
    text = re.sub(r":\w+:`[~.]?(?:\w+\.)*(\w+)`", r"\1", text).replace("``", "")
    text = re.sub(r"\bNone\b", "null", text)
    return f"{' '.join(text.split())} (default: {default})".replace("%", "%%")


@functools.cache
def _docstrings(owner: type) -> dict[str, str]:
    """The text below each field of a dataclass."""
    module = sys.modules[owner.__module__]
    tree = ast.parse(inspect.getsource(module))
    (body,) = [
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == owner.__name__
    ]
    texts = {}
    for field, below in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            texts[field.target.id] = str(below.value.value)
    return texts
