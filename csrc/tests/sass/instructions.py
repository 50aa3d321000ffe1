"""What the emulator of the CUDA kernels' machine code has to know of this project's kernels.

The warps of the backward pass hand rows from lane to lane through shared memory, with __syncwarp in between. Where
the compiler proves that a warp is together it makes no instruction of that, so nothing is left to see of it in machine
code. Hence lanes of one warp do not race here; csrc/host_run, where every thread is a fiber of its own, finds a
missing __syncwarp.
"""

from __future__ import annotations

import dataclasses

import emulator
import integers
import machine
import memory
import numpy as np
from operands import integer, predicate, to_register

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


def decode_minimum(parts):
    """VIMNMX and VIADDMNMX with .RELU: of signed numbers, and zero where the result is negative."""
    if not parts.has("RELU"):
        return integers.decode_minimum(parts)
    if parts.has("U32"):
        raise parts.unknown()
    write, *rest = parts.arguments
    write = to_register(write)
    addends = [integer(text) for text in rest[: 2 if parts.opcode == "VIADDMNMX" else 1]]
    other, smaller = integer(rest[len(addends)]), predicate(rest[len(addends) + 1])

    def execute(machine, mask):
        a = addends[0](machine)
        for addend in addends[1:]:
            a = a + addend(machine)
        a, b = a.view(np.int32), other(machine).view(np.int32)
        result = np.where(smaller(machine), np.minimum(a, b), np.maximum(a, b))
        write(machine, np.maximum(result, 0).view(np.uint32), mask)

    return execute


for opcode in ("VIMNMX", "VIADDMNMX"):
    emulator.DECODERS[opcode] = decode_minimum


decode_bytes = integers.decode_idp


def decode_idp(parts):
    """IDP.2A: products of two 16-bit numbers and two bytes of a word, the low or the high ones, and a number."""
    if not parts.has("2A"):
        return decode_bytes(parts)
    if parts.modifiers not in (["2A", "LO", "U16", "U8"], ["2A", "HI", "U16", "U8"]):
        raise parts.unknown()
    write, shift = to_register(parts.arguments[0]), np.uint32(16 if parts.has("HI") else 0)
    numbers, pairs, addend = (integer(text) for text in parts.arguments[1:4])

    def execute(machine, mask):
        a, b = numbers(machine), pairs(machine) >> shift
        low = (a & np.uint32(0xFFFF)) * (b & np.uint32(0xFF))
        write(machine, low + (a >> np.uint32(16)) * (b >> np.uint32(8) & np.uint32(0xFF)) + addend(machine), mask)

    return execute


emulator.DECODERS["IDP"] = decode_idp


def control_with_unanimous_branches(kernel, index, instruction):
    """BRA.U is taken if all threads of the warp that run take it, and if not, the plain branch behind it decides."""
    if instruction.opcode == "BRA" and "U" in instruction.modifiers:
        instruction = dataclasses.replace(instruction, modifiers=(*instruction.modifiers, "ALL"))
    return control(kernel, index, instruction)


control = machine.Kernel._control
machine.Kernel._control = control_with_unanimous_branches


def barrier_in_a_register(modifiers, arguments):
    """BAR.SYNC R0, R0: the number of the barrier in the low bits of a register, the number of threads in the high."""
    operands = barrier_operands(modifiers, arguments)
    if len(arguments) < 2 or arguments[0] != arguments[1] or not arguments[0].startswith("R"):
        return operands
    both = integer(arguments[0])
    return dataclasses.replace(
        operands,
        number=lambda machine: both(machine) & np.uint32(0xF),
        threads=lambda machine: both(machine) >> np.uint32(16),
    )


barrier_operands = machine.BarrierOperands.of
machine.BarrierOperands.of = barrier_in_a_register
