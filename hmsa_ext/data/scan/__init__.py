"""``hmsa data scan``: everything that is wrong with a data set, before training finds it."""

from hmsa_ext.data.scan.command import ScanSettings, main

__all__ = ["ScanSettings", "main"]
