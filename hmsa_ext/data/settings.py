"""Which data set a run uses, how much of it, and where its index is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hmsa_ext.data.by_name import NAMES, source_type
from hmsa_ext.data.index import cache_folder
from hmsa_ext.data.labelled_files import Listing
from hmsa_ext.data.types import Dataset
from hmsa_ext.parts import Part, object_name, one_of
from hmsa_ext.settings import FREE, POSITIVE, Flag, Metavar, SettingError, options, validate


def recipe(name: Any) -> Mapping[str, object]:
    """Settings by flat name that a data set declares to fit it; none for most.

    >>> recipe("synthetic")["crop"]
    (112, 224)
    """
    return getattr(source_type(name), "recipe", {})


def options_of_others(name: Any) -> dict[str, str]:
    """Options that only other data sets have, by flat name, each with the text of the error.

    >>> options_of_others("camvid")["vistas_version"]
    'camvid has no such option; mapillary has it'
    """
    own = {option.name for option in options(source_type(name)())}
    owners: dict[str, list[str]] = {}
    for other in NAMES:
        for option in options(source_type(other)()):
            owners.setdefault(option.name, []).append(other)
    return {
        option: f"{object_name(name)} has no such option; {', '.join(have)} {'has' if len(have) == 1 else 'have'} it"
        for option, have in owners.items()
        if option not in own
    }


@dataclass(frozen=True)
class DataSettings:
    """Which images are trained on and validated on.

    :meth:`of` makes the settings of a data set with its options.
    """

    name: Annotated[Part, one_of(NAMES), Flag("data")] = "synthetic"
    """Data set: a name, or package.module:factory for one of your own. "folder" is images and masks."""
    source: Any = None
    """Options of the data set: the dataclass that it declares."""
    length: Annotated[int | None, POSITIVE] = None
    """Use the first so many training images; default: all."""
    val_length: Annotated[int | None, POSITIVE] = None
    """Use the first so many validation images; default: all."""
    damaged: Literal["stop", "skip"] = "stop"
    """If a training image cannot be read: "stop" the run, or "skip" to another image with a warning."""
    cache: Annotated[str | None, Metavar("FOLDER"), FREE] = None
    """Folder for the index of the label maps, or "none"; default: hmsa_ext in the user's cache folder."""

    def __post_init__(self) -> None:
        validate(self)
        kind = source_type(self.name)
        if self.source is None:
            object.__setattr__(self, "source", kind())
        elif not isinstance(self.source, kind):
            expected = f"{kind.__qualname__}, the options of {object_name(self.name)}; DataSettings.of(name) makes both"
            raise SettingError("source", type(self.source).__qualname__, expected)

    @classmethod
    def of(cls, name: Any, **options: object) -> DataSettings:
        """The settings of a data set; ``options`` are fields of its own dataclass (``root``, ``fold`` ...)."""
        return cls(name, source_type(name)(**options))

    def open(self, split: str) -> Dataset:
        """One split, cut to ``length`` (train) or ``val_length`` (any other). Raises DataError."""
        return self.source.open(split, length=self._length_of(split))

    def find(self, split: str) -> Listing:
        """The files of one split of a data set on disk, cut as by :meth:`open`, and everything that is wrong with them.

        Raises DataError for a missing root and for a split that does not exist.
        """
        listing = self.source.find(split)
        listing.items = listing.items[: self._length_of(split)]
        return listing

    def _length_of(self, split: str) -> int | None:
        return self.length if split == "train" else self.val_length

    @property
    def extra_split(self) -> str | None:
        """The split with further training images that the options of the data set ask for; None for none."""
        return getattr(self.source, "extra_split", None)

    def open_extra(self) -> Dataset | None:
        """Further training images that the options of the data set ask for; None for none. Raises DataError."""
        return None if self.extra_split is None else self.source.open(self.extra_split)

    @property
    def cache_path(self) -> Path | None:
        """The folder of the index; None where no index is kept."""
        if self.cache == "none":
            return None
        return Path(self.cache).expanduser() if self.cache else cache_folder()
