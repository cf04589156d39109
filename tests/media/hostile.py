"""Files made to hurt whoever decodes them, each of a few kilobytes to a few megabytes; made in memory, harmless unread."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def plain_png(width: int = 8, height: int = 8, colour: Any = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def exif_png(tags: int = 100, size: int = 8_000_000) -> bytes:
    """EXIF tags that all point at one long value: a reader that copies it for each needs tags x size bytes."""
    plain, start = plain_png(), 8 + 2 + 12 * (tags + 1) + 4
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    entries += b"".join(struct.pack("<HHII", 1000 + i, 7, size, start) for i in range(tags))
    exif = b"II*\0" + struct.pack("<IH", 8, tags + 1) + entries + struct.pack("<I", 0) + bytes(size)
    return plain[:33] + png_chunk(b"eXIf", exif) + plain[33:]


def progressive_jpeg(side: int = 4000, scans: int = 10_000) -> bytes:
    """A progressive JPEG that goes over all of its blocks once a scan, of a few bytes each."""
    blocks = ((side + 7) // 8) ** 2
    head = b"\xff\xd8\xff\xdb" + struct.pack(">H", 67) + b"\0" + b"\x01" * 64  # quantisation
    head += b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\x01\x11\x00"  # progressive, grey
    head += b"\xff\xc4" + struct.pack(">HB", 20, 0x00) + bytes([1] + [0] * 15) + b"\x00"  # a DC code
    head += b"\xff\xc4" + struct.pack(">HB", 21, 0x10) + bytes([1, 1] + [0] * 14) + b"\xe0\x00"  # AC: end of bands
    head += b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x00\x00\x00" + bytes((blocks + 7) // 8)
    bits, left = "", blocks
    while left > 0:
        run = min(left, 32767)
        bits += "0" + (format(run - 16384, "014b") if run >= 16384 else "0" * 14)
        left -= max(run, 16384)
    bits += "1" * (-len(bits) % 8)
    body = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\x00")
    return head + (b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x01\x3f\x00" + body) * scans + b"\xff\xd9"


def png_that_claims(side: int) -> bytes:
    """A decompression bomb: a kilobyte that says it is side x side."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(500_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )  # fmt: skip


def png_with_chunk(kind: bytes, size: int = 400_000_000, times: int = 1) -> bytes:
    """A small picture with compressed text (``zTXt``, ``iTXt``) or a compressed profile (``iCCP``) of ``size`` zeros."""
    head = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"profile\0\0"}[kind]
    packer, parts = zlib.compressobj(9), []
    for _ in range(size // 10_000_000):
        parts.append(packer.compress(bytes(10_000_000)))
    data, plain = head + b"".join(parts) + packer.flush(), plain_png()
    return plain[:33] + png_chunk(kind, data) * times + plain[33:]


def long_gif(frames: int = 5000, side: int = 2000) -> bytes:
    """An animation of many frames that each fill the canvas."""
    out = io.BytesIO()
    Image.new("P", (side, side)).save(out, "GIF")
    whole = out.getvalue()
    start = whole.index(b",", 13 + 3 * (2 << (whole[10] & 7)))
    return whole[:-1] + whole[start:-1] * (frames - 1) + b";"


def many_samples_mp4(samples: int = 80_000_000) -> bytes:
    """A film of two frames whose sample table claims many more (needs PyAV to write)."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for value in (0, 10):
            picture = np.full((16, 16, 3), value, np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
    tables = {
        b"stsz": struct.pack(">III", 0, 1, samples), b"stts": struct.pack(">IIII", 0, 1, samples, 0),
        b"stsc": struct.pack(">IIIII", 0, 1, 1, samples, 1), b"stco": struct.pack(">III", 0, 1, 48),
    }  # fmt: skip

    def rewritten(data: bytes) -> bytes:
        result, at = b"", 0
        while at < len(data):
            size, kind = struct.unpack(">I4s", data[at : at + 8])
            payload = data[at + 8 : at + size]
            at += size
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                payload = rewritten(payload)
            elif kind in (b"ctts", b"stss", b"edts", b"udta"):
                continue
            payload = tables.get(kind, payload)
            result += struct.pack(">I", 8 + len(payload)) + kind + payload
        return result

    return rewritten(out.getvalue())


def sound_that_claims(kind: str, seconds: int = 36_000) -> bytes:
    """A WAV, FLAC or OGG of half a second whose header says hours (needs soundfile to write)."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(8000) * 0.05) / 2, 16000, format=kind.upper())
    data = bytearray(out.getvalue())
    if kind == "wav":
        at = data.index(b"data") + 4
        data[at : at + 4] = struct.pack("<I", min(seconds * 32_000, 0x7FFE_0000))
    elif kind == "flac":
        at = 8 + 13  # the last 36 bits before the checksum of STREAMINFO
        total = seconds * 16_000
        data[at] = (data[at] & 0xF0) | (total >> 32)
        data[at + 1 : at + 5] = (total & 0xFFFF_FFFF).to_bytes(4, "big")
    else:  # the granule position of the last page, with the page's checksum made right again
        at = data.rindex(b"OggS")
        data[at + 6 : at + 14] = struct.pack("<Q", seconds * 16_000)
        data[at + 22 : at + 26] = bytes(4)
        data[at + 22 : at + 26] = struct.pack("<I", _ogg_checksum(bytes(data[at:])))
    return bytes(data)


def _ogg_checksum(page: bytes) -> int:
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = ((value << 1) ^ 0x04C1_1DB7 if value & 0x8000_0000 else value << 1) & 0xFFFF_FFFF
    return value
