"""Small files in the layouts that owners distribute, made by the tests."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

MAGIC = struct.pack("<I", 0xCED7230A)
MINI = Path(__file__).parent / "data" / "insightface_mini"


def image(seed: int = 0, width: int = 24, height: int = 24, kind: str = "JPEG") -> bytes:
    """A smooth picture with structure."""
    small = np.random.default_rng(seed).integers(256, size=(5, 5, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def part(kind: int, data: bytes) -> bytes:
    """One part of a RecordIO record, padded."""
    return MAGIC + struct.pack("<I", kind << 29 | len(data)) + data + bytes(-len(data) % 4)


def record(key: int, labels: Sequence[float], data: bytes = b"", vector: bool = False) -> bytes:
    """A record as the original library writes it: cut where the magic word stands at a multiple of 4."""
    many = vector or len(labels) != 1
    body = struct.pack("<IfQQ", len(labels) if many else 0, 0.0 if many else labels[0], key, 0)
    body += (np.array(labels, "<f4").tobytes() if many else b"") + data
    cuts = [i for i in range(0, len(body) - 3, 4) if body[i : i + 4] == MAGIC]
    pieces = [body[a:b] for a, b in zip([0, *(c + 4 for c in cuts)], [*cuts, len(body)], strict=True)]
    if len(pieces) == 1:
        return part(0, body)
    kinds = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(part(kind, piece) for kind, piece in zip(kinds, pieces, strict=True))


def write_rec(where: Path, records: Sequence[tuple[int, bytes]], idx: bool = True, name: str = "train") -> Path:
    """`name`.rec and maybe `name`.idx from (key, record)."""
    where.mkdir(parents=True, exist_ok=True)
    offset, lines = 0, []
    with (where / f"{name}.rec").open("wb") as file:
        for key, data in records:
            lines.append(f"{key}\t{offset}\n")
            offset += file.write(data)
    if idx:
        (where / f"{name}.idx").write_text("".join(lines))
    return where / f"{name}.rec"


def face_set(people: Sequence[int] = (2, 3), vector: bool = False, seed: int = 0) -> list[tuple[int, bytes]]:
    """Records of a face set with so many images a person, its identities' records, and record 0 at the end."""
    found, key = [], 1
    for label, count in enumerate(people):
        for _ in range(count):
            found.append((key, record(key, [label, 0.5] if vector else [label], image(key + 100 * seed))))
            key += 1
    first, start = key, 1
    for count in people:
        found.append((key, record(key, [start, start + count])))
        key, start = key + 1, start + count
    return [*found, (0, record(0, [first, key]))]
