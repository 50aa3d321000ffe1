"""Loading weights, and the report of it."""

import doctest
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hmsa_ext.models
import hmsa_ext.models.building
import hmsa_ext.models.hrnet
import hmsa_ext.models.hrnet_ocr
import hmsa_ext.models.multi_scale
import hmsa_ext.models.ocr_network
import hmsa_ext.models.weights
from hmsa_ext.errors import HmsaError
from hmsa_ext.models import (
    MultiScale,
    OCRNetwork,
    WeightError,
    hrnet_small_ocr,
    hrnet_w18_ocr,
    hrnet_w32_ocr,
    load_weights,
)
from hmsa_ext.models.weight_files import read_checkpoint, write_safetensors
from hmsa_ext.models.weights import compare_weights


@pytest.fixture
def model() -> OCRNetwork:
    return hrnet_small_ocr(num_classes=5)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Those of another model of the same build, so that nothing agrees by chance."""
    state = hrnet_small_ocr(num_classes=5).state_dict()
    return {name: torch.full_like(value, 3) for name, value in state.items()}


def assert_loaded(model: nn.Module, names: list[str]) -> None:
    state = model.state_dict()
    for name, value in state.items():
        assert (value == 3).all() == (name in names), name


def test_a_published_checkpoint_loads_whole(model, weights, tmp_path: Path):
    checkpoint = {
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
        "epoch": 174,
        "arch": "ocrnet.HRNet_Mscale",
        "num_classes": 5,
        "mean_iu": np.float64(0.8692),  # published files hold a NumPy scalar
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]},
        "command": "train.py",
        "__metric": 0.8692,
    }
    torch.save(checkpoint, tmp_path / "best.pth")
    report = load_weights(model, tmp_path / "best.pth", strict=True)
    assert report.complete
    assert report.loaded == list(weights)
    assert_loaded(model, list(weights))
    assert f"loaded {len(weights)} of the model's {len(weights)} entries" in str(report)


def test_files_of_old_torch_and_numpy_load(model, weights, tmp_path: Path):
    path = tmp_path / "old.pth"
    checkpoint = {"state_dict": weights, "mean_iu": np.float64(0.8)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar")
    assert b"cnumpy.core.multiarray\nscalar" in content  # the name that NumPy 1 wrote
    path.write_bytes(content)
    assert load_weights(model, str(path)).complete


def test_checkpoints_of_other_programs_load(model, weights, tmp_path: Path):
    torch.save({"model": weights, "optimizer": {}, "epoch": 3, "config": {"lr": 0.1}}, tmp_path / "last.pt")
    assert load_weights(model, tmp_path / "last.pt", strict=True).complete


@pytest.mark.parametrize("has_average", [False, True])
def test_of_our_runs_the_moving_average_is_taken(model, weights, tmp_path: Path, has_average: bool):
    other = {name: torch.full_like(value, 2) for name, value in weights.items()}
    content = {"state_dict": weights, "average": None, "optimizer": {}, "config": {"lr": 0.1}}
    if has_average:
        content |= {"state_dict": other, "average": weights}
    torch.save(content, tmp_path / "last.pt")
    for source in (tmp_path, str(tmp_path / "last.pt"), content):
        fresh = hrnet_small_ocr(num_classes=5)
        report = load_weights(fresh, source, strict=True)
        assert_loaded(fresh, list(weights))
        assert ("(moving average of the weights): loaded" in str(report)) == has_average


def test_a_folder_without_a_checkpoint_is_named(model, tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"weights: no last\.pt in the folder .*; expected a run folder or a file"
    ):
        load_weights(model, tmp_path)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["meta", "sparse", "complex"])
def test_weights_that_cannot_be_copied_change_nothing(model, weights, kind: str, strict: bool):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    last = "scale_attn.conv2.weight"
    change = {"meta": lambda x: x.to("meta"), "sparse": lambda x: x.to_sparse(), "complex": lambda x: x + 0j}[kind]
    expected = {
        "meta": "the file's scale_attn.conv2.weight is on the meta device and has no values; nothing was changed",
        "sparse": "scale_attn.conv2.weight: expected layout torch.strided, got layout torch.sparse_coo; nothing was",
        "complex": "scale_attn.conv2.weight: expected real numbers, got torch.complex64; nothing was changed",
    }[kind]
    with pytest.raises(WeightError, match=expected):
        load_weights(model, weights | {last: change(weights[last])}, strict=strict)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_values_is_named(weights):
    with torch.device("meta"):
        model = hrnet_small_ocr(num_classes=5)
    with pytest.raises(WeightError, match=r"the model's backbone\.conv1\.weight is on the meta device"):
        load_weights(model, weights)


def test_weights_of_another_architecture_are_refused(weights):
    model = hrnet_w18_ocr(num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for other in (hrnet_small_ocr(5), hrnet_w32_ocr(5)):
        with pytest.raises(WeightError, match=r"are of another network, nothing was changed: .*\(backbone .* %, ocr "):
            load_weights(model, other.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def flat() -> nn.Sequential:
    """A model of somebody else without large children."""
    return nn.Sequential(*(nn.Conv2d(4, 4, 3, bias=False) for _ in range(20)))


def test_half_of_the_parameters_is_enough():
    weights = {f"{index}.weight": torch.full((4, 4, 3, 3), 3.0) for index in range(20)}
    half = dict(list(weights.items())[:10])
    model = flat()
    assert load_weights(model, half).loaded == list(half)
    assert_loaded(model, list(half))
    fewer = dict(list(weights.items())[:9])
    with pytest.raises(WeightError, match=r"they fit 45\.0 % of the model's parameters .*expected 50 % or 90 % of one"):
        load_weights(flat(), fewer)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "module.model."])
def test_what_wrappers_put_before_names_is_taken_off(model, weights, prefix: str):
    report = load_weights(model, {prefix + name: value for name, value in weights.items()}, strict=True)
    assert report.loaded == list(weights)


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_an_imagenet_trunk_goes_to_the_backbone(model, weights, prefix: str):
    trunk = {name.removeprefix("backbone."): v for name, v in weights.items() if name.startswith("backbone.")}
    head = {"incre_modules.0.0.conv1.weight": torch.zeros(32, 16, 1, 1), "classifier.bias": torch.zeros(1000)}
    report = load_weights(model, {prefix + name: value for name, value in (trunk | head).items()})
    loaded = [name for name in weights if name.startswith("backbone.")]
    assert report.loaded == loaded
    assert report.unexpected == [prefix + name for name in head]
    assert report.missing == [name for name in weights if not name.startswith("backbone.")]
    assert_loaded(model, loaded)


def test_a_trunk_far_smaller_than_its_heads_loads_alone():
    model = nn.ModuleDict({"backbone": nn.Conv2d(3, 4, 1, bias=False), "head": nn.Conv2d(16, 64, 3, bias=False)})
    assert load_weights(model, {"weight": torch.full((4, 3, 1, 1), 3.0)}).loaded == ["backbone.weight"]
    assert_loaded(model, ["backbone.weight"])


def test_a_networks_own_weights_go_to_what_was_wrapped():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    wrapped = MultiScale(network, feature_channels=4, bottleneck=4)
    report = load_weights(wrapped, {"module.0.weight": torch.full((4, 3, 1, 1), 3.0)})
    assert report.loaded == ["network.0.weight"]
    assert_loaded(wrapped, ["network.0.weight"])


def test_a_model_inside_data_parallel_loads_too(weights):
    wrapped = nn.Sequential()
    wrapped.add_module("module", hrnet_small_ocr(num_classes=5))
    assert load_weights(wrapped, weights, strict=True).loaded == [f"module.{name}" for name in weights]


def test_other_classes_keep_what_they_had_and_are_reported(weights):
    model = hrnet_small_ocr(num_classes=11)
    before = model.ocr.cls_head.weight.clone()
    report = load_weights(model, weights)
    assert set(report.mismatched) == {
        "ocr.cls_head.weight",
        "ocr.cls_head.bias",
        "ocr.aux_head.2.weight",
        "ocr.aux_head.2.bias",
    }
    assert report.mismatched["ocr.cls_head.bias"] == ((5,), (11,))
    assert torch.equal(model.ocr.cls_head.weight, before)
    assert (model.get_parameter("backbone.conv1.weight") == 3).all()
    assert "4 of another shape: " in str(report)
    assert "ocr.cls_head.bias (file [5], model [11])" in str(report)


def test_strict_raises_on_any_deviation_and_changes_nothing(model, weights):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for changed in (
        weights | {"extra": torch.zeros(1)},
        weights | {"ocr.cls_head.bias": torch.zeros(6)},
        {name: value for name, value in weights.items() if name != "ocr.cls_head.bias"},
    ):
        with pytest.raises(WeightError, match=r"(?s)strict loading failed.*(extra|ocr\.cls_head\.bias)"):
            load_weights(model, changed, strict=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_loading_nothing_is_refused_with_examples_of_names(model, tmp_path: Path):
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightError) as caught:
        load_weights(model, tmp_path / "other.pth")
    text = str(caught.value)
    assert str(tmp_path / "other.pth") in text
    assert "names in the file: encoder.weight" in text
    assert "names in the model: backbone.conv1.weight, " in text


def test_loading_counters_alone_is_loading_nothing(model, weights):
    counters = {name: value for name, value in weights.items() if name.endswith("num_batches_tracked")}
    with pytest.raises(WeightError, match="not one parameter fits this model"):
        load_weights(model, counters)


def test_shapes_that_all_differ_are_refused_with_examples(model):
    with pytest.raises(
        WeightError, match=r"1 of another shape: backbone.conv1.weight \(file \[1\], model \[24, 3, 3, 3\]"
    ):
        load_weights(model, {"backbone.conv1.weight": torch.zeros(1)})


def test_a_missing_file_is_named(model, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"weights: no such file: .*nowhere\.pth"):
        load_weights(model, tmp_path / "nowhere.pth")


def test_files_without_weights_are_named(model, tmp_path: Path):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightError, match=r"text\.pth: not a checkpoint that can be read with weights_only=True"):
        load_weights(model, tmp_path / "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(WeightError, match=r"empty\.pth: not a checkpoint"):
        load_weights(model, tmp_path / "empty.pth")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(WeightError, match=r"pointer\.pth: not a checkpoint but a Git LFS pointer .* git lfs pull"):
        load_weights(model, tmp_path / "pointer.pth")
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html>\n<html></html>")
    with pytest.raises(WeightError, match=r"page\.pth: not a checkpoint but a web page"):
        load_weights(model, tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightError, match=r"list\.pth: expected a dictionary of weights, got list"):
        load_weights(model, tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(WeightError, match=r"epoch\.pth: no weights in it; .* its keys: epoch"):
        load_weights(model, tmp_path / "epoch.pth")


@pytest.mark.parametrize("zip_archive", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_damaged_files_are_named_without_advice_to_load_them_unsafely(
    model, weights, tmp_path: Path, zip_archive: bool, share: float
):
    path = tmp_path / "cut.pt"
    torch.save(weights, path, _use_new_zipfile_serialization=zip_archive)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightError, match=r"cut\.pt: the file is damaged or cut off, at \d+ bytes; copy or") as caught:
        load_weights(model, path)
    assert "weights_only" not in str(caught.value)


def test_whole_models_and_programs_are_refused_without_advice_to_load_them_unsafely(model, tmp_path: Path):
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(
        WeightError, match=r"it holds a hmsa_ext\.models\.ocr_network\.OCRNetwork, and reading"
    ) as caught:
        read_checkpoint(tmp_path / "model.pt")
    assert "False" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(WeightError, match=r"other\.zip: not a checkpoint that can be read with weights_only=True"):
        read_checkpoint(tmp_path / "other.zip")


def test_errors_are_those_of_the_package(tmp_path: Path):
    with pytest.raises(HmsaError) as caught:
        read_checkpoint(tmp_path / "nowhere.pt")
    assert isinstance(caught.value, FileNotFoundError)
    assert str(caught.value) == f"weights: no such file: {tmp_path / 'nowhere.pt'}"
    assert issubclass(WeightError, HmsaError)
    assert issubclass(WeightError, ValueError)


class Payload:
    """What unpickling without care would run."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_file_is_executed(model, weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": weights, "extra": Payload()}, "evil.pth")
    with pytest.raises(WeightError, match=r"evil\.pth: not a checkpoint that can be read with weights_only=True"):
        load_weights(model, "evil.pth")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "module",
    [
        hmsa_ext.models,
        hmsa_ext.models.hrnet,
        hmsa_ext.models.building,
        hmsa_ext.models.hrnet_ocr,
        hmsa_ext.models.ocr_network,
        hmsa_ext.models.multi_scale,
        hmsa_ext.models.weights,
    ],
)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# ---- safetensors


@pytest.fixture
def written(weights, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, weights, {"about": [1, "a"]})
    return path


def test_safetensors_files_load_like_checkpoints(model, weights, written: Path):
    content = read_checkpoint(written)
    assert content["about"] == [1, "a"]
    assert content["state_dict"].keys() == weights.keys()
    assert load_weights(model, written, strict=True).complete
    assert_loaded(model, list(weights))


def test_safetensors_are_known_by_their_content(model, written: Path):
    other = written.rename(written.with_suffix(".bin"))
    assert load_weights(model, other, strict=True).complete


def test_every_dtype_and_shape_comes_back(tmp_path: Path):
    state = {
        "half": torch.ones(2, 3, dtype=torch.float16),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(5),
        "none": torch.zeros(0, 4),
        "last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    state["same"] = state["half"]
    write_safetensors(tmp_path / "w.safetensors", state, {})
    content = read_checkpoint(tmp_path / "w.safetensors")["state_dict"]
    for name, value in state.items():
        assert content[name].dtype == value.dtype
        assert torch.equal(content[name], value), name


def test_a_missing_package_is_named_with_its_command(model, written: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for action in (lambda: load_weights(model, written), lambda: write_safetensors(written, {}, {})):
        with pytest.raises(WeightError, match=r"weights\.safetensors: .* need the package .*: pip install safetensors"):
            action()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:-10], "not a safetensors file, or a damaged one .*; copy or download it again"),
        (lambda whole: whole[:100], "not a safetensors file, or a damaged one .* at 100 bytes"),
        (lambda whole: b"", "the file is empty"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (lambda whole: b"PK\x03\x04" + whole, "not a safetensors file"),
    ],
)
def test_a_damaged_safetensors_file_is_named(model, written: Path, change, message: str):
    written.write_bytes(change(written.read_bytes()))
    with pytest.raises(WeightError, match=rf"weights\.safetensors: .*{message}"):
        load_weights(model, written)


def test_a_description_that_is_no_json_is_refused(tmp_path: Path):
    content = pytest.importorskip("safetensors.torch").save({"a": torch.zeros(1)}, {"hmsa_ext": "road, sky"})
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightError, match="expected a JSON object under hmsa_ext in its metadata, got 'road, sky'"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_comparing_changes_nothing_and_requires_nothing(model, weights):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert compare_weights(model, weights).complete
    last = list(weights)[-1]
    report = compare_weights(model, {last: torch.zeros(99), "odd": torch.zeros(1)})
    assert list(report.mismatched) == [last]
    assert report.unexpected == ["odd"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
