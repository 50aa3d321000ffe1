"""Which package may import which, that an option is declared once over all commands, and the base of all errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hmsa_ext
from hmsa_ext import evaluate, info, predict, settings, train
from hmsa_ext.autolabel import exporting, importing, label, merge, report
from hmsa_ext.data import NAMES, DataSettings, stats
from hmsa_ext.data.scan import command as scan
from hmsa_ext.engine.settings import TrainSettings

ROOT = Path(hmsa_ext.__file__).parent
COMMANDS = {"__main__", "command_line", "train", "evaluate", "predict", "info"}
COMMANDS |= {"autolabel", "data.__main__", "data.commands", "data.scan", "data.stats"}
FOUNDATION = {"errors", "fake_tensors", "files", "live_bytes", "normalisation", "parts", "settings", "tables"}
MAY_IMPORT = {
    "foundation": set(),
    "ops": {"foundation"},
    "models": {"ops", "foundation"},
    "data": {"ops", "foundation"},
    "losses": {"models", "ops", "foundation"},  # of the models: ScaleOutputs, which models hand to losses
    "engine": {"models", "losses", "data", "ops", "foundation"},
    "prediction": {"engine", "models", "losses", "data", "ops", "foundation"},
    "commands": {"prediction", "engine", "models", "losses", "data", "ops", "foundation"},
}


def layer(module: str) -> str:
    """The layer of a module, whose name comes without that of the package."""
    if any(module == command or module.startswith(f"{command}.") for command in COMMANDS):
        return "commands"
    first = module.partition(".")[0]
    return "foundation" if first in FOUNDATION else first


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name != "__init__":  # the package itself only names what users import
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        yield from (name.removeprefix("hmsa_ext.") for name in names if name.startswith("hmsa_ext."))


def test_imports_point_one_way() -> None:
    wrong = []
    for module, path in modules():
        own = layer(module)
        for imported in imports(path):
            other = layer(imported)
            if other in MAY_IMPORT and other != own and other not in MAY_IMPORT[own]:
                wrong.append(f"{module} ({own}) imports {imported} ({other})")
    assert not wrong


def test_every_module_has_a_layer() -> None:
    assert {layer(module) for module, _ in modules()} == set(MAY_IMPORT)


def test_losses_take_only_the_outputs_of_models() -> None:
    taken = {name for module, path in modules() if layer(module) == "losses" for name in imports(path)}
    assert {name for name in taken if layer(name) == "models"} == {"models.scale_outputs.ScaleOutputs"}


def commands(data: str) -> list[object]:
    """The settings of each command for a data set."""
    training = TrainSettings.of(data)
    about_data = [scan.ScanSettings(DataSettings.of(data)), stats.StatsSettings.of(data)]
    others = [evaluate.Evaluate(run=training), predict.Predict(), info.Info()]
    automatic = [label.AutoLabel(), report.ReportSettings(), merge.Merge(), exporting.Export(), importing.Import()]
    return [train.Train(training=training), *others, *about_data, *automatic]


@pytest.mark.parametrize("data", NAMES)
def test_an_option_is_declared_once_for_all_commands(data: str) -> None:
    declared: dict[str, set[tuple[object, str, tuple[str, ...]]]] = {}
    for command in commands(data):
        for option in settings.options(command):
            declared.setdefault(option.name, set()).add((option.kind, option.help, option.was))
    # Commands say these few for themselves, since they do other work.
    own = {"json", "memory", "model", "num_classes", "output", "seed", "split", "threads"}
    assert {name for name, found in declared.items() if len(found) > 1} == own


def test_one_idea_has_one_spelling() -> None:
    kinds: dict[tuple[object, str], set[str]] = {}
    for command in commands("cityscapes"):
        for option in settings.options(command):
            kinds.setdefault((option.kind, option.help), set()).add(option.name)
    assert [names for names in kinds.values() if len(names) > 1] == []


def test_every_error_of_the_package_has_its_base() -> None:
    found = []
    for module in pkgutil.walk_packages(hmsa_ext.__path__, "hmsa_ext."):
        if module.name.endswith(("__main__", "._C")):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == module.name:
                found.append(name)
                assert issubclass(value, hmsa_ext.HmsaError), f"{module.name}.{name}"
    assert {"DataError", "SettingError", "OutputError", "CheckpointError", "UsageError"} <= set(found)


def test_the_package_lists_its_parts() -> None:
    listed = {name for name in dir(hmsa_ext) if not name.startswith("_")}
    assert {"models", "losses", "data", "fuse_scales", "HmsaError"} <= listed
    assert not listed & {"TYPE_CHECKING", "annotations", "importlib"}


def test_signatures_are_those_of_the_functions_and_not_of_any_keyword() -> None:
    for name in ("build", "hrnet_small_ocr", "hrnet_w18_ocr", "hrnet_w48_ocr"):
        parameters = inspect.signature(getattr(hmsa_ext.models, name)).parameters.values()
        assert "attention_channels" in {p.name for p in parameters}
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters), name


def test_arguments_that_do_not_fit_raise_the_base_of_all_errors() -> None:
    target = torch.zeros(1, 6, 6, dtype=torch.uint8)
    with pytest.raises(hmsa_ext.HmsaError, match="RMI loss needs at least"):
        hmsa_ext.losses.rmi_loss([torch.zeros(1, 3, 4, 4)], [], [1.0], target)
    with pytest.raises(hmsa_ext.HmsaError, match="num_classes"):
        hmsa_ext.models.hrnet_small_ocr(0)


def test_packages_above_the_ops_raise_no_bare_errors() -> None:
    found = [
        f"{path}:{node.lineno}"
        for module, path in modules()
        if layer(module) in ("models", "losses", "data", "engine", "prediction")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        if isinstance(node.exc.func, ast.Name) and node.exc.func.id in ("ValueError", "TypeError", "RuntimeError")
    ]
    assert not found
