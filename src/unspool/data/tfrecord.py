"""TFRecord files of `tf.train.Example` messages, read without TensorFlow.

A record is [length u64][crc u32][payload][crc u32], little endian; the payload is a protocol buffer
`Example{1: Features{1: map<string, Feature>}}`, of whose features the lists of bytes are read.
Sources: tensorflow: core/lib/io/record_writer.h, core/example/example.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from unspool.errors import DataError

HEADER, FOOTER = 12, 4  # bytes
POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


@dataclass(frozen=True)
class Record:
    """Where a payload lies in a file."""

    path: Path
    start: int  # byte
    length: int  # bytes

    def example(self) -> dict[str, list[bytes]]:
        """Its features that are lists of bytes, by name. Raises DataError where it is no such message."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            payload = file.read(self.length)
        try:
            return parse_example(payload)
        except (IndexError, ValueError) as error:
            raise DataError(f"{self.path}: the record at byte {self.start} is no tf.train.Example") from error


def records(path: Path) -> list[Record]:
    """The records of a file, from their headers alone. Raises DataError where it is cut off, or no TFRecord.

    Of the checksums only that of the length is looked at: the images inside have their own.
    """
    size = path.stat().st_size
    found: list[Record] = []
    at = 0
    with path.open("rb") as file:
        while at < size:
            header = file.read(HEADER)
            if len(header) < HEADER or _masked(crc32c(header[:8])) != struct.unpack("<I", header[8:])[0]:
                raise DataError(f"{path}: no TFRecord from byte {at} on (is it damaged?); download it again")
            (length,) = struct.unpack("<Q", header[:8])
            if at + HEADER + length + FOOTER > size:
                raise DataError(f"{path}: is cut off in its record {len(found)}; download it again")
            found.append(Record(path, at + HEADER, length))
            at += HEADER + length + FOOTER
            file.seek(at)
    if not found:
        raise DataError(f"{path}: is empty (0 bytes); download it again")
    return found


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _table()[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
        found.append(crc)
    return tuple(found)


def _masked(crc: int) -> int:
    """As files hold it: a checksum of data that holds checksums would be weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# ----------------------------------------------------------------------------------- protocol buffers


def parse_example(payload: bytes) -> dict[str, list[bytes]]:
    """The features of an `Example` that are lists of bytes. Raises ValueError or IndexError if it is none."""
    found = {}
    for features in _messages(payload, 1):
        for entry in _messages(features, 1):
            names, values = list(_messages(entry, 1)), list(_messages(entry, 2))
            lists = [items for value in values for items in _messages(value, 1)]
            if names and lists:
                found[bytes(names[-1]).decode()] = [bytes(item) for item in _messages(lists[-1], 1)]
    return found


def _messages(message: bytes | memoryview, wanted: int) -> Iterator[memoryview]:
    """The length-delimited fields of that number, in order; others are passed over."""
    view, at = memoryview(message), 0
    while at < len(view):
        key, at = _varint(view, at)
        number, kind = key >> 3, key & 7
        if kind == 2:
            length, at = _varint(view, at)
            if at + length > len(view):
                raise ValueError("a field ends behind its message")
            if number == wanted:
                yield view[at : at + length]
        elif kind == 0:
            length, (_, at) = 0, _varint(view, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"fields of kind {kind} do not occur")
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
