"""Data sets, training crops and loaders.

>>> from hmsa_ext import data
>>> scenes = data.build("synthetic", "train", length=4)
>>> training = data.prepare(scenes, data.Augment((96, 128)), data.Sampling("class_uniform"), seed=0, quiet=True)
>>> decoded = data.training_loader(training, batch_size=2, epoch=0)  # worker processes decode,
>>> [tuple(data.cut(batch.to("cpu")).images.shape) for batch in decoded]  # the device crops
[(2, 3, 96, 128), (2, 3, 96, 128)]
"""

from __future__ import annotations

from hmsa_ext.data.augment import MOST_BLUR, Augment, Looks
from hmsa_ext.data.by_name import NAMES, build, source_type
from hmsa_ext.data.check import check
from hmsa_ext.data.crops import Cropped, DecodedBatch, collate, cut, piece_of
from hmsa_ext.data.fit import fit_augment, fit_crop, fit_epochs, fit_zoom, typical_size
from hmsa_ext.data.frequencies import balanced_weights
from hmsa_ext.data.index import ClassIndex, build_index, cache_folder
from hmsa_ext.data.labelled_files import LabelledFiles
from hmsa_ext.data.learnable import require_labels, require_two_classes
from hmsa_ext.data.loader import batches_per_epoch, evaluation_loader, training_loader, whole_piece
from hmsa_ext.data.normalise import colourise, denormalise
from hmsa_ext.data.sampling import EpochSampler, Sampling
from hmsa_ext.data.settings import DataSettings, recipe
from hmsa_ext.data.source import Source
from hmsa_ext.data.synthetic import Synthetic
from hmsa_ext.data.training_set import TrainingSet, open_training, prepare
from hmsa_ext.data.types import IGNORE_LABEL, Batch, ClassTable, DataError, Dataset, Sample

__all__ = [
    "IGNORE_LABEL",
    "MOST_BLUR",
    "NAMES",
    "Augment",
    "Batch",
    "ClassIndex",
    "ClassTable",
    "Cropped",
    "DataError",
    "DataSettings",
    "Dataset",
    "DecodedBatch",
    "EpochSampler",
    "LabelledFiles",
    "Looks",
    "Sample",
    "Sampling",
    "Source",
    "Synthetic",
    "TrainingSet",
    "balanced_weights",
    "batches_per_epoch",
    "build",
    "build_index",
    "cache_folder",
    "check",
    "collate",
    "colourise",
    "cut",
    "denormalise",
    "evaluation_loader",
    "fit_augment",
    "fit_crop",
    "fit_epochs",
    "fit_zoom",
    "open_training",
    "piece_of",
    "prepare",
    "recipe",
    "require_labels",
    "require_two_classes",
    "source_type",
    "training_loader",
    "typical_size",
    "whole_piece",
]
