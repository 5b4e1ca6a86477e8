"""Every docstring's example runs, every public name exists and says what it is."""

import ast
import doctest
import functools
import importlib
import inspect
import itertools
import pkgutil
import tomllib
from pathlib import Path

import pytest

import beats_trainer

MODULES = [
    "beats_trainer",
    *(
        module.name
        for module in pkgutil.walk_packages(beats_trainer.__path__, "beats_trainer.")
        if module.name != "beats_trainer.__main__"  # importing it is running it
    ),
]
# A name is added here on purpose, and removed only after a deprecation.
PUBLIC_NAMES = [
    "BEATsFeatureExtractor",
    "BEATsForAudioClassification",
    "BEATsModel",
    "BEATsPredictor",
    "BEATsPretrainer",
    "BEATsTrainer",
    "Comparison",
    "Config",
    "DataConfig",
    "ModelConfig",
    "PretrainingConfig",
    "TrainingConfig",
    "__version__",
    "compare_models",
    "download_beats_checkpoint",
    "ensure_checkpoint",
    "find_checkpoint",
    "get_model_info",
    "list_available_models",
    "load_tokenizer",
    "validate_checkpoint",
]


@functools.cache
def documented_values():
    """Names of constants and aliases that have a text below them, in any module."""
    found = {"__version__"}
    for name in MODULES:
        source = inspect.getsource(importlib.import_module(name))
        body = ast.parse(source).body
        for statement, below in itertools.pairwise(body):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if is_text and isinstance(statement, ast.Assign | ast.AnnAssign):
                target = (
                    statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
                )
                found.add(ast.unparse(target))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)

    result = doctest.testmod(module)

    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_module_and_its_public_names_are_documented(name):
    module = importlib.import_module(name)
    values = documented_values()

    assert inspect.getdoc(module)
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert value.__doc__, f"{name}.{public} has no docstring"
        else:
            assert public in values, f"{name}.{public} has no text below it"


def test_public_names_are_these():
    assert beats_trainer.__all__ == PUBLIC_NAMES
    assert set(PUBLIC_NAMES) <= set(dir(beats_trainer))
    for name in PUBLIC_NAMES:
        assert getattr(beats_trainer, name) is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = beats_trainer.no_such_name


def test_version_is_the_packages():
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    where = Path(__file__).parents[1] / pyproject["tool"]["hatch"]["version"]["path"]

    assert beats_trainer.__version__ in where.read_text()
