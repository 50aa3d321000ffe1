"""The small YAML that describes your own folder: the names of the classes and the values that the label maps store.

    names: [background, road, car]      # class numbers 0, 1, 2; or stored values with names: {0: road, 7: car}
    ignore: 255                         # a stored value or several; 255 unless given
    ids: {0: background, 255: road}     # stored value: class name or number; without it the values are class numbers
    colours: [[0, 0, 0], "#804080", "#000080"]    # one per class, to show it; or class name: colour
    masks: colours                      # the masks are colour pictures: the colours (or the colours in ids) decide
    images: images                      # folder of the images, by split
    masks_dir: masks                    # folder of the label maps
    mask_suffix: _L                     # the label map of NAME.jpg is NAME_L.png
    white: 4095                         # the value of white in images of 16 bits; 65535 unless given
    train: train.txt                    # list file (lines of IMAGE LABEL) or folder of images; so val and test

Only ``names`` is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml

from hmsa_ext.data.files import WHITE
from hmsa_ext.data.label_table import NO_CLASS, LabelTable, show_value
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError

SPLITS = ("train", "val", "test")
KEYS = ("names", "ignore", "ids", "colours", "masks", "images", "masks_dir", "mask_suffix", "white", *SPLITS)
_TEXTS = ("images", "masks_dir", "mask_suffix", *SPLITS)


@dataclass(frozen=True)
class Description:
    """The content of a description; ``None`` for keys that it does not have.

    places: list file or folder of images of each split that has one.
    """

    classes: ClassTable
    table: LabelTable
    images: str | None
    masks_dir: str | None
    mask_suffix: str
    places: Mapping[str, str]
    white: int = WHITE


def read_description(path: Path) -> Description:
    """Reads a description. Raises DataError that names the file and the key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected keys with values, such as names: [background, road], got {content!r}")
    try:
        return _describe(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _describe(content: Mapping[str, Any]) -> Description:
    for key in content:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(KEYS)}"
            raise DataError(f"unknown key {key!r}; {hint}")
    for key in _TEXTS:
        if not isinstance(content.get(key, ""), str):
            raise DataError(f"{key}: expected a text, got {content[key]!r}")
    white = content.get("white", WHITE)
    if not _is_number(white) or not 0 < white <= WHITE:
        raise DataError(f"white: expected a value from 1 to {WHITE}, got {white!r}")
    masks = content.get("masks", "indices")
    if masks not in ("indices", "colours"):
        raise DataError(f"masks: expected indices or colours, got {masks!r}")
    numbers = _names(content.get("names"))  # class number in the file: name
    names = list(numbers.values())
    colours = _colours(content.get("colours"), names)
    table = _table(content, numbers, colours, by_colour=masks == "colours")
    shown = distinct_colours(len(names)) if colours is None else np.array([_split_colour(c) for c in colours])
    return Description(
        ClassTable(tuple(names), shown, ids=table.ids(len(names))),
        table,
        content.get("images"),
        content.get("masks_dir"),
        content.get("mask_suffix", ""),
        {split: content[split] for split in SPLITS if split in content},
        white,
    )


def _names(value: Any) -> dict[int, str]:
    """Names by the number that the file gives them, in the order of the numbers."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        raise DataError(f"names: expected a list of class names, or a map from stored value to name, got {value!r}")
    for number, name in value.items():
        if not _is_number(number) or number < 0:
            raise DataError(f"names: expected numbers from 0 up before the names, got {number!r}")
        if not isinstance(name, str):
            raise DataError(f"names: expected texts, got {name!r}; {_quotes(name)}")
    names = list(value.values())
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise DataError(f"names: expected each class once, got {', '.join(double)} more often; ids may join values")
    if len(names) > NO_CLASS:
        raise DataError(f"names: expected at most {NO_CLASS} classes, got {len(names)}")
    return dict(sorted(value.items()))


def _colours(value: Any, names: list[str]) -> list[int] | None:
    """One colour per class, as numbers; None where there are none."""
    if value is None:
        return None
    if isinstance(value, dict):
        if set(value) != set(names):
            odd = sorted(map(str, set(value) ^ set(names)))
            raise DataError(f"colours: expected one for each name and no others; these differ: {', '.join(odd)}")
        value = [value[name] for name in names]
    if not isinstance(value, list) or len(value) != len(names):
        raise DataError(f"colours: expected {len(names)}, one for each name, got {value!r}")
    return [_read_colour("colours", colour) for colour in value]


def _table(
    content: Mapping[str, Any], numbers: dict[int, str], colours: list[int] | None, *, by_colour: bool
) -> LabelTable:
    order = {number: place for place, number in enumerate(numbers)}
    meaning: dict[int, int]
    if "ids" in content:
        meaning = _ids(content["ids"], numbers, by_colour=by_colour)
    elif by_colour:
        if colours is None:
            raise DataError('masks: colours, but there is neither colours: (one per name) nor ids: {"#rrggbb": name}')
        meaning = {colour: place for place, colour in enumerate(colours)}
        if len(meaning) < len(colours):
            raise DataError("colours: expected a colour of its own for each class, as the masks are told by them")
    else:
        meaning = dict(order)
    ignored = _ignored(content.get("ignore"), meaning, by_colour=by_colour)
    for value in ignored:
        if value in meaning:
            shown = show_value(value, colours=by_colour)
            raise DataError(f"ignore: {shown} is also class {list(numbers.values())[meaning[value]]!r}")
    limit = 1 << (24 if by_colour else 16)
    if max(*meaning, *ignored, 0) >= limit:
        raise DataError(f"names, ids, ignore: expected stored values of 0..{limit - 1}, got {max(*meaning, *ignored)}")
    expected = _expectation(sorted(meaning), sorted(ignored), by_colour=by_colour)
    return LabelTable({**meaning, **dict.fromkeys(ignored, IGNORE_LABEL)}, expected=expected, colours=by_colour)


def _ids(value: Any, numbers: dict[int, str], *, by_colour: bool) -> dict[int, int]:
    if not isinstance(value, dict) or not value:
        raise DataError(f"ids: expected a map from stored value to class, got {value!r}")
    places = {name: place for place, name in enumerate(numbers.values())}
    places |= {number: place for place, number in enumerate(numbers)}
    meaning = {}
    for stored, name in value.items():
        if not by_colour and (not _is_number(stored) or stored < 0):
            raise DataError(f"ids: expected stored values from 0 up, got {stored!r}")
        if isinstance(name, bool):
            raise DataError(f"ids: {stored!r} is {name!r}; {_quotes(name)}")
        if not isinstance(name, str | int) or name not in places:
            raise DataError(f"ids: {stored!r} is {name!r}, which is not in names: {', '.join(numbers.values())}")
        meaning[_read_colour("ids", stored) if by_colour else stored] = places[name]
    return meaning


def _ignored(value: Any, meaning: Mapping[int, int], *, by_colour: bool) -> list[int]:
    if value is None:
        return [] if by_colour or IGNORE_LABEL in meaning else [IGNORE_LABEL]
    if by_colour:
        several = isinstance(value, list) and not (len(value) == 3 and all(map(_is_number, value)))
        return [_read_colour("ignore", colour) for colour in (value if several else [value])]
    values = value if isinstance(value, list) else [value]
    if not all(_is_number(number) and number >= 0 for number in values):
        raise DataError(f"ignore: expected a stored value or a list of them, got {value!r}")
    return values


def _expectation(values: Sequence[int], ignored: Sequence[int], *, by_colour: bool) -> str:
    if not by_colour and list(values) == list(range(len(values))):
        text = f"0..{len(values) - 1}"
    else:
        text = ", ".join(show_value(value, colours=by_colour) for value in values)
    rest = ", ".join(show_value(value, colours=by_colour) for value in ignored)
    return f"{text}, or {rest} for ignored" if rest else text


def _read_colour(key: str, value: Any) -> int:
    """A colour, [red, green, blue] or "#rrggbb", as red * 65536 + green * 256 + blue."""
    if isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(v) and 0 <= v <= 255 for v in value):
        return value[0] << 16 | value[1] << 8 | value[2]
    if isinstance(value, str) and len(value) == 7 and value[0] == "#":
        try:
            return int(value[1:], 16)
        except ValueError:
            pass
    raise DataError(f'{key}: expected colours as [128, 64, 128] or "#804080" (in quotes), got {value!r}')


def _split_colour(colour: int) -> tuple[int, int, int]:
    return colour >> 16, colour >> 8 & 255, colour & 255


def _quotes(value: Any) -> str:
    """How a value that YAML does not take for a text is written."""
    if isinstance(value, bool):
        words = '"yes", "on" or "true"' if value else '"no", "off" or "false"'
        return f"YAML reads yes, no, on and off as true and false: write {words} in quotes"
    return f'write "{value}" in quotes'


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
