"""A file of text, whatever its packing and encoding -> UTF-8 bytes with plain line ends."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from gm_jax.errors import UserError


_GZIP = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a Parquet file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
}


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there.

    Raises:
        UserError: there is none, or it is a directory.
    """
    path = Path(path)
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if folder:
        raise UserError(f"{path} is a directory; expected a CSV file: name one inside it.")
    if not file:
        raise UserError(
            f"No file {path}; expected a CSV with Date, Open, High, Low, Close, Volume."
        )
    return path


def read_text(path: str | Path) -> bytes:
    r"""Read a file as UTF-8 without a byte order mark, every line ended by `\n` alone.

    gzip is unpacked, UTF-16 with a byte order mark is taken as well.

    Args:
        path: the file.

    Raises:
        UserError: it cannot be read, changes meanwhile, is empty, damaged or no text.
    """
    path = existing(path)
    data = _unpacked(_read(path), path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = _from_utf16(data, path)
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data or data.isspace():
        raise UserError(f"{path} is empty. Expected a header and one row per bar.")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    _require_text(data, path)
    return data


def _read(path: Path) -> bytes:
    """Return the bytes of a file that nobody is writing."""
    try:
        before = path.stat()
        data = path.read_bytes()
        after = path.stat()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be read: {reason}. Expected a readable file.") from error
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not same or len(data) != after.st_size:
        raise UserError(
            f"{path} changed while it was read. Expected a finished file: try again when nothing "
            "writes to it any more, or give a copy."
        )
    return data


def _unpacked(data: bytes, path: Path) -> bytes:
    kind = next((kind for mark, kind in _FOREIGN.items() if data.startswith(mark)), None)
    if kind is not None:
        raise UserError(f"{path} is {kind}. Expected CSV text, plain or gzipped: export it so.")
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is a cut or damaged gzip file ({error}). Expected a whole one: fetch or "
            "pack it again."
        ) from error


def _from_utf16(data: bytes, path: Path) -> bytes:
    try:
        return data.decode("utf-16").encode()
    except UnicodeError as error:
        raise UserError(
            f"{path} begins as UTF-16 text but is cut or damaged ({error}). Save it as UTF-8."
        ) from error


def _require_text(data: bytes, path: Path) -> None:
    """Refuse bytes that are no UTF-8 text; CSV has no use for NUL either."""
    offset = data.find(b"\0")
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            offset = error.start if offset < 0 else min(offset, error.start)
    if offset >= 0:
        line = data.count(b"\n", 0, offset) + 1
        raise UserError(
            f"Line {line} of {path} holds the byte 0x{data[offset]:02x}, which is no UTF-8 text. "
            "Expected CSV text: save or export the file as UTF-8."
        )
