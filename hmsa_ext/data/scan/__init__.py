"""``python -m hmsa_ext.data scan``: everything that is wrong with a data set, before training finds it."""

from hmsa_ext.data.scan.command import add_data_options, main

__all__ = ["add_data_options", "main"]
