"""What JPEG and PNG bytes hold, looked at before a decoder sees them: decoders trust their input too much.

A few hundred bytes can make one allocate gigabytes (sizes and chunk lengths are only claims), or work for minutes
(endless scans, compressed text), or give back a half image without a word (OpenCV 4 of a truncated JPEG).
"""

import struct
from dataclasses import dataclass

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""The chunks that pixels are made of."""

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by PNG's colour type."""

_DEFLATE_RATIO = 1032
"""Largest ratio at which PNG's compression can expand."""

_TRUNCATED = "is truncated: its end is missing"
_TOO_FEW_BYTES = "is damaged: so few bytes cannot hold so many pixels"


@dataclass(frozen=True)
class CompressedFile:
    """A JPEG or PNG file as its header describes it.

    data: what to give to the decoder. scans: how often all pixels are gone through. problem: what keeps the file from
    being decoded, the end of a sentence; None: nothing that can be seen from here.
    """

    width: int
    height: int
    data: bytes
    scans: int = 1
    problem: str | None = None


def inspect(data: bytes) -> CompressedFile | None:
    """Return what a JPEG or PNG file holds; None where it is neither, or its header is damaged."""
    if data.startswith(_PNG_SIGNATURE):
        return _inspect_png(data)
    if data.startswith(b"\xff\xd8"):
        return _inspect_jpeg(data)
    return None


def _inspect_png(data: bytes) -> CompressedFile | None:
    if data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, bits, colour_type = struct.unpack(">IIBB", data[16:26])
    row_bytes = (width * bits * _PNG_CHANNELS.get(colour_type, 1) + 7) // 8
    # Only the chunks with pixels are kept: animation, profiles and texts can be bombs, and nobody asks for them.
    kept, kind, at = [_PNG_SIGNATURE], b"", len(_PNG_SIGNATURE)
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[at : at + 8]) if at + 8 <= len(data) else (0, b"")
        end = at + 12 + length  # with a checksum behind
        if not kind or end > len(data):
            return CompressedFile(width, height, data, problem=_TRUNCATED)
        if kind in _PNG_PIXELS:
            kept.append(data[at:end])
        at = end
    problem = _TOO_FEW_BYTES if height * row_bytes > _DEFLATE_RATIO * len(data) else None
    return CompressedFile(width, height, b"".join(kept), problem=problem)


def _inspect_jpeg(data: bytes) -> CompressedFile | None:
    # Marker segments up to the frame header (SOF0..SOF15 but for DHT, JPG and DAC, which share the range).
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            # Among compressed data a byte 0xFF is never followed by one of these.
            scans = data.count(b"\xff\xda", at)
            problem = None
            if not scans or data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                problem = _TRUNCATED
            elif -(-width // 8) * -(-height // 8) > 8 * len(data):  # a block of 8 x 8 takes one bit at least
                problem = _TOO_FEW_BYTES
            return CompressedFile(width, height, data, scans, problem)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
