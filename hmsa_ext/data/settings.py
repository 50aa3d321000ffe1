"""Which data set a run uses, how much of it, and where its index is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from hmsa_ext.data.automatic.folder import open_automatic
from hmsa_ext.data.automatic.trust import Trust
from hmsa_ext.data.by_name import NAMES, source_type
from hmsa_ext.data.index import cache_folder
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.labelled_files import LabelledFiles, Listing
from hmsa_ext.data.source import reads_automatic
from hmsa_ext.data.types import ClassTable, DataError, Dataset
from hmsa_ext.parts import Part, object_name, one_of
from hmsa_ext.settings import FREE, POSITIVE, Flag, Metavar, SettingError, options, require, validate


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
    auto_labels: Annotated[str | None, Metavar("FOLDER"), FREE] = None
    """Folder of automatic labels that hmsa autolabel wrote: their images are trained on, too."""
    auto_images: Annotated[str | None, Metavar("FOLDER"), FREE] = None
    """Folder of these images, if they are no longer where they were labelled."""
    coarse_labels: Annotated[str | None, Metavar("FOLDER"), FREE] = None
    """Folder of coarse label maps of these images by people, with the same tree, for --coarse-use."""
    trust: Trust = field(default_factory=Trust)

    def __post_init__(self) -> None:
        for name in ("auto_labels", "auto_images", "coarse_labels"):
            if getattr(self, name) is not None:  # a run that is resumed elsewhere finds it again
                object.__setattr__(self, name, str(Path(getattr(self, name)).expanduser().absolute()))
        validate(self)
        kind = source_type(self.name)
        if self.source is None:
            object.__setattr__(self, "source", kind())
        elif not isinstance(self.source, kind):
            expected = f"{kind.__qualname__}, the options of {object_name(self.name)}; DataSettings.of(name) makes both"
            raise SettingError("source", type(self.source).__qualname__, expected)
        self.trust.require_used(self.auto_labels is not None or reads_automatic(self.source))
        for option in ("auto_images", "coarse_labels"):
            value = getattr(self, option)
            require(option, value, value is None or self.auto_labels is not None, "none without --auto-labels")

    @classmethod
    def of(cls, name: Any, **options: Any) -> DataSettings:
        """The settings of a data set; ``options`` are fields of its own dataclass (``root``, ``fold`` ...), of
        :class:`Trust`, or of these settings."""
        own = {f.name for f in fields(cls)} - {"name", "source"}
        trust = {f.name: options.pop(f.name) for f in fields(Trust) if f.name in options}
        settings = {name: options.pop(name) for name in sorted(own & options.keys())}
        if trust:
            settings["trust"] = Trust(**trust)
        return cls(name, source_type(name)(**options), **settings)

    def open(self, split: str) -> Dataset:
        """One split, cut to ``length`` (train) or ``val_length`` (any other). Raises DataError."""
        return self._open(split, self._length_of(split))

    def _open(self, split: str, length: int | None = None) -> Dataset:
        if reads_automatic(self.source):
            return self.source.open(split, length=length, trust=self.trust)
        return self.source.open(split, length=length)

    def find(self, split: str) -> Listing:
        """The files of one split of a data set on disk, cut as by :meth:`open`, and everything that is wrong with them.

        Raises DataError for a missing root and for a split that does not exist.
        """
        given = {"trust": self.trust} if reads_automatic(self.source) else {}
        listing = self.source.find(split, **given)
        listing.items = listing.items[: self._length_of(split)]
        return listing

    def _length_of(self, split: str) -> int | None:
        return self.length if split == "train" else self.val_length

    @property
    def extra_split(self) -> str | None:
        """The split with further training images that the options of the data set ask for; None for none."""
        return getattr(self.source, "extra_split", None)

    @property
    def has_extra(self) -> bool:
        """Whether there are further training images, of the data set or with automatic labels."""
        return self.extra_split is not None or self.auto_labels is not None

    def open_extra(self, training: Dataset) -> list[Dataset]:
        """Further images for those of the training: of the data set, and with automatic labels. Raises DataError."""
        found = [] if self.extra_split is None else [self._open(self.extra_split)]
        if self.auto_labels is not None:
            table = training.labels.table if isinstance(training, LabelledFiles) else None
            found.append(self.open_automatic(training.classes, table))
        return found

    def open_automatic(self, classes: ClassTable, table: LabelTable | None) -> LabelledFiles:
        """The images with automatic labels, which there are; ``table`` is that of the data set's label files, if any.

        Raises DataError.
        """
        if self.auto_labels is None:
            raise DataError("auto_labels: expected a folder of automatic labels, got none")
        return open_automatic(
            self.auto_labels, classes, self.trust, images=self.auto_images, coarse=self.coarse_labels,
            coarse_table=table,
        )  # fmt: skip

    @property
    def cache_path(self) -> Path | None:
        """The folder of the index; None where no index is kept."""
        if self.cache == "none":
            return None
        return Path(self.cache).expanduser() if self.cache else cache_folder()
