"""``python -m hmsa_ext.info``: what it prints is there, true and readable by programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hmsa_ext
from hmsa_ext import info, models
from hmsa_ext.ops import library


def test_json_has_versions_build_devices_and_kernels(capsys):
    assert info.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["hmsa_ext"] == hmsa_ext.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["library"]["compiler"] == library.build_info()["compiler"]
    assert facts["system"]["threads"] == torch.get_num_threads()
    assert len(facts["devices"]) == torch.cuda.device_count()
    assert facts["kernels"]["hmsa::fuse_scales"]["CPU"]


def test_kernel_table_agrees_with_what_was_built():
    table = info.kernels()
    assert {"hmsa::fuse_scales", "hmsa::_fuse_scales_backward"} <= table.keys()
    for name, row in table.items():
        assert row["CPU"], name
        assert row["CUDA"] == library.has_cuda_kernels(), name


def test_command_prints_aligned_sections():
    done = subprocess.run([sys.executable, "-m", "hmsa_ext.info"], capture_output=True, text=True, check=True)
    for title in ("versions", "library", "system", "devices", "kernels"):
        assert any(line.split()[:1] == [title] for line in done.stdout.splitlines()), title
    rows = [line for line in done.stdout.split("\n\n")[0].splitlines() if line.startswith("  ")]
    columns = {len(line) - len(line[2:].split("  ", 1)[1].lstrip()) for line in rows}
    assert len(columns) == 1, rows


def row_primitives(wish: str | None) -> str:
    """What a process shows that has ``HMSA_SIMD=wish``: the library chooses once for each process."""
    environment = {name: value for name, value in os.environ.items() if name != "HMSA_SIMD"}
    if wish is not None:
        environment["HMSA_SIMD"] = wish
    command = [sys.executable, "-m", "hmsa_ext.info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)["system"]["row primitives"]


def test_row_primitives_are_those_that_the_library_uses():
    built = library.build_info()["simd"]
    assert row_primitives(None) in built
    assert row_primitives(built[0]) == built[0]  # the least instruction set, which every processor has


def test_wrong_wish_for_row_primitives_is_shown_as_the_ops_refuse_it():
    assert row_primitives("v9").startswith("HMSA_SIMD: expected ")


def test_two_opencv_wheels_are_explained():
    text = info.opencv_clash(["opencv-python", "opencv-python-headless"])
    assert text is not None
    assert "opencv-python and opencv-python-headless" in text
    assert "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless" in text


@pytest.mark.parametrize("wheels", [[], ["opencv-python"], ["opencv-python-headless"]])
def test_one_opencv_wheel_is_fine(wheels: list[str]):
    assert info.opencv_clash(wheels) is None


def test_instruction_set_level_is_the_highest_that_is_complete():
    v2 = ["cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"]
    v3 = [*v2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]
    v4 = [*v3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
    assert info.x86_level(["neon"]) is None
    assert info.x86_level(v2) == "x86-64-v2"
    assert info.x86_level(v3) == "x86-64-v3"
    assert info.x86_level(v4) == "x86-64-v4"
    assert info.x86_level([flag for flag in v4 if flag != "fma"]) == "x86-64-v2"


def test_models_are_listed_with_what_they_cost(capsys):
    assert info.main(["--models", "--image-size", "128x256", "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    listed = {entry["name"]: entry for entry in facts["networks"]}
    assert list(listed) == list(models.NAMES)
    network = models.hrnet_small_ocr(19).eval()
    assert listed["hrnet_small_ocr"]["parameters"] == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, 128, 256), scales=(1.0,))
    assert listed["hrnet_small_ocr"]["flops"] == counter.get_total_flops()
    assert listed["resnet50_deeplabv3plus"]["stride"] == 4
    assert "mscale.DeepV3R50" in listed["resnet50_deeplabv3plus"]["weights"]
    assert facts["trunks"].keys() == models.TRUNKS.keys()
    assert facts["trunks"]["resnet50"] == "resnet50 of torchvision"


def test_models_are_a_table_for_people(capsys):
    text = info.models_as_text(info.collect_models((64, 128)))
    assert "FLOPs at 64x128" in text
    assert all(f"\n{name}  " in text for name in models.NAMES)
    assert capsys.readouterr().out == ""


def test_memory_of_one_network_is_told_in_both_kinds_of_arithmetic(capsys):
    assert info.main(["--memory", "--model", "hrnet_small_ocr", "--image-size", "64x128", "--json", "-"]) == 0
    single, half = json.loads(capsys.readouterr().out)["networks"]
    assert (single["dtype"], half["dtype"]) == ("float32", "bfloat16")
    assert single["parameters"] == half["parameters"]
    for row in (single, half):
        assert row["training"]["none"] > row["training"]["all"] > row["parameters"]
        assert row["evaluation"] > row["parameters"]
    assert half["training"]["none"] < single["training"]["none"]
    assert half["evaluation"] < single["evaluation"]


def test_memory_is_a_table_for_people(capsys):
    names = ["hrnet_small_ocr", "resnet50_deeplabv3plus"]
    text = info.memory_as_text(info.collect_memory((64, 128), names))
    assert "training, none" in text
    assert "one crop of 64x128" in text
    assert "\nhrnet_small_ocr  " in text
    assert "\nresnet50_deeplabv3plus*" in text  # it does not train on one crop
    assert "* of 2 crops" in text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "hrnet_small_ocr"], "model: got 'hrnet_small_ocr', expected no value without --memory"),
        (["--memory", "--models"], "memory: got True, expected one of --models and --memory"),
        (["--memory", "--model", "unet"], "model: got 'unet', expected"),
    ],
)
def test_flags_of_memory_that_do_not_fit_are_errors(flags, message, capsys):
    assert info.main(flags) == 2
    assert message in capsys.readouterr().err
