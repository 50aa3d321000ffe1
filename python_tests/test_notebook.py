"""The notebook of the examples runs from its first cell to its last, in miniature; what is stored of it is tidy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hmsa_ext
from hmsa_ext.prediction import Prediction, Predictor

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "own_photos.ipynb"
SMALL = {"PHOTOS": "16", "SIZE": "(64, 96)", "EPOCHS": "1"}


def cells(kind: str) -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def source_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which all cells ran, on few small photos, and the names that they left."""
    folder = tmp_path_factory.mktemp("notebook")
    names: dict[str, Any] = {"__name__": "__main__"}
    first, *others = (source_of(cell) for cell in cells("code"))
    for name, value in SMALL.items():
        first, count = re.subn(rf"^{name} = [^#\n]+", f"{name} = {value}  ", first, flags=re.M)
        assert count == 1, f"the first cell sets {name} once"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HMSA_CACHE", str(folder / "cache"))
        for cell in (first, *others):
            exec(cell, names)
    return folder, names


def test_it_goes_from_masks_to_a_prediction(ran: tuple[Path, dict[str, Any]]) -> None:
    _, names = ran
    assert isinstance(names["predictor"], Predictor)
    assert isinstance(names["found"], Prediction)
    assert names["found"].labels.shape == (64, 96)
    assert names["found"].classes.names == ("background", "road")
    assert names["found"]._repr_png_().startswith(b"\x89PNG")


def test_the_predicted_photos_are_no_training_photos(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    known = {path.read_bytes() for path in (folder / "mine" / "images").rglob("*.jpg")}
    new = {path.read_bytes() for path in (folder / "new").glob("*.jpg")}
    assert len(known) == 18
    assert len(new) == 6
    assert not known & new


def test_its_commands_write_what_they_promise(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    assert {"last.pt", "results.json"} <= {path.name for path in (folder / "runs" / "mine").iterdir()}
    written = {path.name for path in (folder / "out" / "new").iterdir()}
    assert written == {"classes.json", *(f"{n:04}{end}" for n in range(6) for end in (".png", ".overlay.jpg"))}
    classes = json.loads((folder / "out" / "new" / "classes.json").read_text())["classes"]
    assert {entry["name"]: entry["id"] for entry in classes} == {"background": 0, "road": 255}
    assert (folder / "out" / "one.overlay.jpg").exists()


def test_a_second_run_keeps_what_is_there(ran: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, names = ran
    monkeypatch.chdir(folder)
    kept = [folder / "runs" / "mine" / "last.pt", folder / "mine" / "dataset.yaml", *(folder / "new").iterdir()]
    kept[1].write_text("names: [other, street]\nids: {0: other, 255: street}\n")
    before = [path.read_bytes() for path in kept]
    for cell in cells("code")[1:6]:
        exec(source_of(cell), names)
    assert [path.read_bytes() for path in kept] == before


def test_it_needs_nothing_but_the_package() -> None:
    text = "\n".join(source_of(cell) for cell in cells("code"))
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.M))
    assert imported == {"cv2", "json", "numpy", "pathlib", "hmsa_ext"}


def test_links_and_public_names_in_its_text_exist() -> None:
    text = "\n".join(source_of(cell) for cell in cells("markdown"))
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link).exists(), link
    for name in re.findall(r"`hmsa_ext\.(\w+)", text):
        assert hasattr(hmsa_ext, name), name


def test_it_is_stored_with_outputs_and_without_traces_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 600_000
    assert not re.search(r"/(tmp|home|root|Users|work)/", text)
    assert not re.search(r" at 0x[0-9a-f]+", text)
    content = json.loads(text)
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    assert all(cell["metadata"] == {} for cell in content["cells"])
    shown = [output for cell in cells("code") for output in cell["outputs"]]
    assert {kind for output in shown for kind in output.get("data", {})} >= {"image/png", "image/jpeg"}
    assert not [output for output in shown if output["output_type"] == "error"]
    counts = [cell["execution_count"] for cell in cells("code")]
    assert counts == list(range(1, len(counts) + 1)), "executed once, from top to bottom"
