"""Instructions of the package's kernels that ../shared/sass/run.py does not know by itself; its README says how."""

import emulator


def decode_endcollective(parts):
    """The end of what a warp does together behind WARPSYNC.COLLECTIVE, for __syncwarp: nothing is done there."""
    return lambda machine, mask: None


emulator.DECODERS["ENDCOLLECTIVE"] = decode_endcollective
