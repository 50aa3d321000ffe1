"""Reads the dynamic section and symbols of a 64-bit little-endian ELF file: what ``readelf -d`` and ``nm -D`` print."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple


class Symbol(NamedTuple):
    """A dynamic symbol; ``defined`` tells whether this file provides it."""

    name: str
    defined: bool
    weak: bool


class Elf:
    """``needed``: names of the libraries that the file asks for; ``symbols``: its dynamic symbols."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        if self.data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path}: expected a 64-bit little-endian ELF file, got {self.data[:6]!r}")
        self.needed = self._needed()
        self.symbols = self._symbols()

    def _sections(self, kind: int) -> list[tuple[int, int, int, int]]:
        """Sections of a type, as (offset, size, entry size, offset of the string table linked to it)."""
        (table,) = struct.unpack_from("<Q", self.data, 0x28)
        entry_size, count = struct.unpack_from("<HH", self.data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQIIQQ", self.data, table + i * entry_size) for i in range(count)]
        return [(h[4], h[5], h[9], headers[h[6]][4]) for h in headers if h[1] == kind]

    def _text(self, offset: int) -> str:
        return self.data[offset : self.data.index(b"\0", offset)].decode()

    def _needed(self) -> list[str]:
        names = []
        for offset, size, entry, strings in self._sections(6):  # SHT_DYNAMIC
            for at in range(offset, offset + size, entry):
                tag, value = struct.unpack_from("<qQ", self.data, at)
                if tag == 1:  # DT_NEEDED
                    names.append(self._text(strings + value))
        return names

    def _symbols(self) -> list[Symbol]:
        symbols = []
        for offset, size, entry, strings in self._sections(11):  # SHT_DYNSYM
            for at in range(offset + entry, offset + size, entry):  # the first is empty
                name, info, _, section = struct.unpack_from("<IBBH", self.data, at)
                symbols.append(Symbol(self._text(strings + name), section != 0, info >> 4 == 2))
        return symbols
