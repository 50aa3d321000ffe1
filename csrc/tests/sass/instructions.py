"""What the emulator of the CUDA kernels' machine code has to know of this project's kernels.

The warps of the backward pass hand rows from lane to lane through shared memory, with __syncwarp in between. Where
the compiler proves that a warp is together it makes no instruction of that, so nothing is left to see of it in machine
code. Hence lanes of one warp do not race here; csrc/host_run, where every thread is a fiber of its own, finds a
missing __syncwarp.
"""

from __future__ import annotations

import emulator
import memory
import numpy as np

LANE_BITS = 5
WARPS = np.uint32(1 << (memory.THREAD_BITS - LANE_BITS))


class SharedMemoryOfWarps(memory.SharedMemory):
    """Tags name a thread; threads of one warp count as one."""

    @staticmethod
    def _by_others(tags: np.ndarray, mine: np.ndarray) -> np.ndarray:
        return ((tags ^ mine) >> np.uint32(LANE_BITS)) - np.uint32(1) < WARPS - np.uint32(1)

    def note_read(self, index: np.ndarray, mine: np.ndarray) -> list[str]:
        races = ["read after write"] if self._by_others(self.writers[index], mine).any() else []
        several = np.uint32(memory.SEVERAL)
        self.readers[index] = np.where(self._by_others(self.readers[index], mine), mine | several, mine)
        lost = self._by_others(self.readers[index], mine)  # a thread of another warp reads the same word at once
        self.readers[index[lost]] = mine[lost] | several
        return races


memory.SharedMemory = SharedMemoryOfWarps


def decode_endcollective(parts):
    """The end of what a warp does together behind WARPSYNC.COLLECTIVE, for __syncwarp: nothing is done there."""
    return lambda machine, mask: None


emulator.DECODERS["ENDCOLLECTIVE"] = decode_endcollective
