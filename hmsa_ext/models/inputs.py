"""The error for images that a network refuses."""

from hmsa_ext.errors import HmsaError


class InputError(HmsaError, ValueError):
    """Images of a size that the network cannot work on; the message says which size, and what helps."""
