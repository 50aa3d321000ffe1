"""From names on a command line to items with places: trees are kept, nothing counts twice, faults are found at once."""

import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from hmsa_ext.data import DataError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import OutputError
from hmsa_ext.prediction import sources
from hmsa_ext.prediction.sources import Item, Shard, find_sources, shard
from hmsa_ext.settings import SettingError, options, replace, validate


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tree of empty files: their content is never looked at, but for TIFF."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")


def find(*names: str, output: str = "out", stdin: str = "") -> list[Item]:
    return find_sources(names, output=Path(output), stdin=io.StringIO(stdin))


def places(*names: str, output: str = "out", stdin: str = "") -> dict[str, str]:
    return {item.path: str(item.place) for item in find(*names, output=output, stdin=stdin)}


# ---- names ------------------------------------------------------------------------------------------------------


def test_a_file_has_its_stem_as_place(here):
    make("a/b/street.jpg", "clip.MP4", "frame_0.5.png", "a/unknown")
    assert find("a/b/street.jpg") == [Item("a/b/street.jpg", PurePosixPath("street"), "photo")]
    assert find(str(here / "clip.MP4")) == [Item(str(here / "clip.MP4"), PurePosixPath("clip"), "video")]
    assert places("frame_0.5.png", "a/unknown") == {"frame_0.5.png": "frame_0.5", "a/unknown": "unknown"}


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"])
def test_videos_are_told_by_their_ending(ending):
    make(f"clip{ending}")
    assert [item.kind for item in find(f"clip{ending}")] == ["video"]


def test_a_folder_gives_its_tree_sorted():
    make("in/b/2.png", "in/b/1.JPG", "in/a/9.tif", "in/z.webp", "in/clip.mov", "in/notes.txt", "in/a/deep/er/x.bmp")
    found = find("in")
    assert [str(item.place) for item in found] == ["a/9", "a/deep/er/x", "b/1", "b/2", "clip", "z"]
    assert [item.kind for item in found] == ["photo"] * 4 + ["video", "photo"]
    assert places("in/") == {item.path: str(item.place) for item in found}
    assert list(places("./in//").values()) == list(places("in").values())


def test_hidden_files_and_folders_are_left_out_unless_named():
    make("in/a.png", "in/.b.png", "in/.c/d.png")
    assert places("in") == {"in/a.png": "a"}
    assert places("in/.c", "in/.b.png") == {"in/.c/d.png": "d", "in/.b.png": ".b"}


def test_links_are_followed_and_loops_have_an_end():
    make("other/b.png", "in/z/a.png")
    os.symlink("../other", "in/link")
    os.symlink("../in", "in/loop")
    os.symlink("../z", "in/z/again")
    os.symlink("z", "in/a_link")
    os.symlink("z/a.png", "in/first.png")
    # Each file once, under the name without links where it has one.
    assert places("in") == {"in/link/b.png": "link/b", "in/z/a.png": "z/a"}
    assert places("in/**/*.png") == places("in")


def test_a_link_that_leads_nowhere_stays_an_item():
    make("in/a.png")
    os.symlink("gone.png", "in/b.png")
    assert places("in") == {"in/a.png": "a", "in/b.png": "b"}


def test_a_folder_without_pictures_is_an_error_that_says_what_is_there():
    make("in/a.heic", "in/b.HEIC", "in/c.txt", "in/LICENSE", "in/.hidden.png")
    with pytest.raises(DataError) as caught:
        find("in")
    assert "no picture or video in the folder in; looked for .png .jpg .jpeg" in str(caught.value)
    assert ".mp4" in str(caught.value)
    assert "found 2 .heic, 1 .txt, 1 without an ending (hidden" in str(caught.value)
    Path("empty").mkdir()
    with pytest.raises(DataError, match="found no files"):
        find("empty")


def test_patterns_keep_the_tree_below_their_fixed_part():
    make("in/a/1.png", "in/a/2.jpg", "in/b/c/1.png", "in/b/notes.txt", "in/.h/1.png")
    assert places("in/*/1.png") == {"in/a/1.png": "a/1"}
    assert places("in/**/1.png") == {"in/a/1.png": "a/1", "in/b/c/1.png": "b/c/1"}
    assert places("in/**") == places("in/*") == places("in/[ab]") == places("in")
    assert places("*/a/?.*") == {"in/a/1.png": "in/a/1", "in/a/2.jpg": "in/a/2"}


def test_a_pattern_that_finds_nothing_is_an_error():
    make("in/a/1.png", "in/b.txt")
    with pytest.raises(DataError, match=r"not found: in/\*\.jpg \(a pattern that nothing matches\)"):
        find("in/*.jpg")
    with pytest.raises(DataError, match=r"no picture or video in the pattern in/\*\.txt; looked for .* found 1 \.txt"):
        find("in/*.txt")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file():
    make("photo[1].png", "photo1.png")
    assert places("photo[1].png") == {"photo[1].png": "photo[1]"}


# ---- lists ------------------------------------------------------------------------------------------------------


def test_a_list_counts_from_its_folder_and_keeps_the_tree_its_entries_share():
    make("data/x/a/1.png", "data/x/b/1.png", "data/x/b/2.mp4")
    Path("data/list.txt").write_text("\ufeff# photos\n\nx/a/1.png\r\n  x/b/1.png \nx/b/2.mp4\n", encoding="utf-8")
    expected = {"data/x/a/1.png": "a/1", "data/x/b/1.png": "b/1", "data/x/b/2.mp4": "b/2"}
    assert places("@data/list.txt") == expected
    Path("data/whole.txt").write_text("x/a\nx/b\n")
    assert places("@data/whole.txt") == expected
    Path("data/one.txt").write_text("x/a/1.png\n")
    assert places("@data/one.txt") == {"data/x/a/1.png": "1"}


def test_a_list_in_a_folder_with_a_bracket_takes_patterns():
    make("[old]/a/1.png")
    Path("[old]/list.txt").write_text("*/1.png\n")
    assert places("@[old]/list.txt") == {"[old]/a/1.png": "a/1"}


def test_names_on_standard_input_count_from_the_current_folder(here):
    make("x/a/1.png", "x/b/1.png")
    assert places("-", stdin=f"x/a/1.png\n{here}/x/b/1.png\n") == {"x/a/1.png": "a/1", f"{here}/x/b/1.png": "b/1"}


def test_lists_that_cannot_be_used_are_errors():
    Path("empty.txt").write_text("# nothing\n")
    Path("wide.txt").write_text("a.png\n", encoding="utf-16")
    make("in/a.png")
    Path("in/list.txt").write_text("a.png\ngone.png\n")
    for name, text in [
        ("@gone.txt", r"the list gone\.txt cannot be read: No such file"),
        ("@empty.txt", r"empty\.txt names nothing"),
        ("@wide.txt", r"wide\.txt is no list: expected text in UTF-8"),
        ("-", "standard input names nothing"),
        ("@in/list.txt", r"not found: gone\.png \(line 2 of in/list\.txt\)"),
    ]:
        with pytest.raises(DataError, match=text):
            find(name)


# ---- streams ----------------------------------------------------------------------------------------------------


def test_cameras_and_addresses_are_streams():
    found = find("camera:1", "rtsp://user:secret@cam.local:554/front/live.sdp?token=abc", "https://host/a b/clip.mp4")
    assert {item.kind for item in found} == {"stream"}
    assert [str(item.place) for item in found] == ["camera-1", "cam.local-front-live", "host-a-b-clip"]
    assert found[1].path.startswith("rtsp://user:secret@"), "it is opened as it was given"
    assert found[1].shown == "rtsp://cam.local:554/front/live.sdp?token=abc"


def test_a_password_is_in_no_message():
    with pytest.raises(DataError, match="cam/a and rtsp://cam/a") as caught:
        find("rtsp://u:secret@cam/a", "rtsp://u:secret2@cam/a")
    assert "secret" not in str(caught.value)


def test_an_address_that_is_none_is_an_error():
    with pytest.raises(DataError, match=r"rtsp://\[cam/a is no address"):
        find("rtsp://user:secret@[cam/a")


def test_a_camera_without_a_number_is_an_error_with_the_spelling():
    with pytest.raises(DataError, match=r"not found: camera \(a camera is camera:0"):
        find("camera")


# ---- faults and files that count once ---------------------------------------------------------------------------


def test_all_names_that_do_not_exist_are_in_one_error():
    make("a.png")
    with pytest.raises(DataError) as caught:
        find("gone.png", "a.png", *(f"no{k}" for k in range(12)), "")
    assert "not found: gone.png, no0, no1" in str(caught.value)
    assert str(caught.value).endswith("no8, and 4 more")
    with pytest.raises(ArgumentValueError, match="sources: got none"):
        find()


@pytest.mark.parametrize(
    "names", [("in/a.png", "in"), ("in", "in/a.png"), ("in", "in/*"), ("in", "link"), ("link", "in"), ("in", "in/")]
)
def test_a_file_counts_once(names):
    make("in/a.png", "in/b/c.png")
    os.symlink("in", "link")
    assert sorted(str(item.place) for item in find(*names)) == ["a", "b/c"]


def test_two_sources_for_one_file_are_an_error_that_names_both():
    make("x/1.png", "y/1.png", "y/2.jpg", "y/2.png", "x/2.png")
    with pytest.raises(DataError, match=r"results of x/1\.png and y/1\.png would be the same files, .*out/1; rename"):
        find("x/1.png", "y/1.png")
    with pytest.raises(DataError, match=r"y/2\.jpg and y/2\.png .*or run them into two output folders"):
        find("y")
    with pytest.raises(DataError, match=r"\(2 more such pairs\)"):
        find("x", "y")


def test_names_that_differ_in_case_are_an_error_where_the_file_system_does_not_tell_them_apart(monkeypatch):
    make("x/a.png", "y/A.png")
    monkeypatch.setattr(sources, "_tells_case_apart", lambda folder: True)
    assert places("x/a.png", "y/A.png") == {"x/a.png": "a", "y/A.png": "A"}
    monkeypatch.setattr(sources, "_tells_case_apart", lambda folder: False)
    with pytest.raises(DataError, match=r"x/a\.png and y/A\.png .*file system does not tell capital letters"):
        find("x/a.png", "y/A.png")


def test_whether_a_file_system_tells_case_apart_is_tried_out_and_leaves_nothing(here):
    make("probe")
    assert sources._tells_case_apart(here / "none" / "yet") == (not Path("PROBE").exists())
    assert [path.name for path in here.iterdir()] == ["probe"]


def test_the_output_folder_is_left_out_of_the_sources():
    make("in/a.png", "in/out/a.png", "in/out/deep/b.png", "in/z/c.png")
    for name in ("in", "in/**/*.png", "in/*"):
        assert list(places(name, output="in/out").values()) == ["a", "z/c"]
    assert list(places("in", output="elsewhere").values()) == ["a", "out/a", "out/deep/b", "z/c"]


def test_results_among_their_sources_are_an_error(here):
    make("in/a.png", "in/b/c.png")
    os.symlink("in", "link")
    for output in ("in", "link", "in/b/..", str(here / "in")):
        for name in ("in", "in/*.png"):
            with pytest.raises(OutputError, match="output: in is the folder of the sources, too"):
                find(name, output=output)
    for name, output in [("in/a.png", "in"), ("in/b/c.png", "link/b")]:
        with pytest.raises(OutputError, match=r"output: the results of in/.*png would lie beside it"):
            find(name, output=output)
    assert places("in/a.png", output=".") == {"in/a.png": "a"}


# ---- pages ------------------------------------------------------------------------------------------------------


def test_a_tiff_with_several_pages_gives_one_item_each():
    Path("in/s").mkdir(parents=True)
    first, *rest = (Image.fromarray(np.full((4, 5, 3), k, np.uint8)) for k in range(3))
    first.save("in/s/scan.tif", save_all=True, append_images=rest)
    first.save("in/s/one.tiff")
    make("in/damaged.tif")
    found = find("in")
    assert [str(item.place) for item in found] == [
        "damaged",
        "s/one",
        "s/scan-page-1",
        "s/scan-page-2",
        "s/scan-page-3",
    ]
    assert [item.page for item in found] == [0, 0, 0, 1, 2]
    make("in/s/scan-page-2.png")
    with pytest.raises(DataError, match=r"scan-page-2\.png and .*scan\.tif|scan\.tif and .*scan-page-2\.png"):
        find("in")


# ---- shards -----------------------------------------------------------------------------------------------------


def test_shards_are_together_all_items():
    make(*(f"in/{k}.png" for k in range(8)))
    items = find("in")
    parts = [shard(items, k, 3) for k in range(3)]
    assert [len(part) for part in parts] == [3, 3, 2]
    assert sorted(str(item.place) for part in parts for item in part) == [str(item.place) for item in items]
    for wrong in (3, -1):
        with pytest.raises(ArgumentValueError, match=f"index: got {wrong} of 3, expected 0 to 2"):
            shard(items, wrong, 3)


@dataclass(frozen=True)
class Work:
    """Settings with a shard."""

    shard: Shard = (1, 1)
    """Part of the items."""

    def __post_init__(self) -> None:
        validate(self)


def test_a_shard_is_written_k_of_n():
    assert replace(Work(), {"shard": "3/8"}).shard == (3, 8)
    assert replace(Work(), {"shard": [3, 8]}).shard == (3, 8)
    assert [option.show(option.value) for option in options(Work((3, 8)))] == ["3/8"]
    for wrong in ("0/8", "9/8", "3", "3/8/9", "a/b", "1.5/2", "-1/2", 3, None):
        with pytest.raises(SettingError, match="expected K/N with K from 1 to N, for example 3/8"):
            replace(Work(), {"shard": wrong})


def test_a_link_to_itself_stays_an_item_where_it_has_the_ending_of_a_picture():
    make("in/a.png")
    os.symlink("self", "in/self")
    os.symlink("b.png", "in/b.png")
    assert places("in") == {"in/a.png": "a", "in/b.png": "b"}


def test_standard_input_that_is_closed_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        find_sources(["-"], output=Path("out"))
