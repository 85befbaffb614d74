"""Damaged and hostile files against every reader: no crash, no hang, no memory, no code, always one named DataError.

Each case takes a good file, damages it (bits, cuts, numbers that claim too much, pieces repeated, moved or taken from
another file), and reads it. What may happen is that the file is read after all, or a `DataError`; for single images
anything that `data_prep` counts as a broken image. Anything else is a fault. A hook of the interpreter watches for
code: processes, sockets, imports, files opened for writing, `exec` and `compile`.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from data_prep import align, cfp, images, journal, lfw, matlab, pairs_bin, recordio, writer
from lrkd.data.alignment import NoFace
from lrkd.data.images import FORMATS
from lrkd.data.layout import read_layout
from lrkd.errors import DataError
from lrkd.evaluation.templates import read_templates
from lrkd.files import Table
from lrkd.models.checkpoints import read_checkpoint
from lrkd.study.experiment import commit

SECONDS, MEGABYTES = 5.0, 1024
TABLE = Table("python -m benchmarks.fuzz", ("reader", "seed"))
FORBIDDEN = ("exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
FORBIDDEN += ("socket.connect", "ctypes.dlopen", "shutil.rmtree", "os.remove", "os.rename", "pty.spawn")
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x1FFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**64 - 1]
TOKENS = [b"\n", b",", b'"', b"\t", b"-1", b"9" * 20, b"nan", b"inf", b"../../etc/passwd", b"\0", b"\xff\xfe", b"\x93"]
TOKENS += [b"[" * 3000, b"cos\nsystem\n", b"(S'x'\ntR.", b"c__builtin__\neval\n", struct.pack("<I", recordio.MAGIC)]
# What `writer.write` catches around each image is any Exception; another than these would be worth a look.
BROKEN_IMAGE: tuple[type[BaseException], ...] = (
    ValueError, OSError, SyntaxError, IndexError, TypeError, KeyError, AttributeError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning, UserWarning,
)  # fmt: skip
Injury = tuple[int, int, int]  # kind, place, and a number that the kind makes something of


def _image(seed: int, kind: str = "JPEG", side: int = 16) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(side // 4, side // 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(buffer, kind)
    return buffer.getvalue()


def _records() -> tuple[bytes, bytes]:
    """A small .rec and its .idx."""
    rec, idx = b"", b""
    bodies = [struct.pack("<IfQQ", 0, k // 2, k + 1, 0) + _image(k) for k in range(4)]
    bodies += [struct.pack("<IfQQ", 2, 0, 5 + k, 0) + struct.pack("<ff", 1 + 2 * k, 3 + 2 * k) for k in range(2)]
    bodies.append(struct.pack("<IfQQ", 2, 0, 0, 0) + struct.pack("<ff", 5, 7))
    for key, body in zip((1, 2, 3, 4, 5, 6, 0), bodies, strict=True):
        idx += f"{key}\t{len(rec)}\n".encode()
        half = len(body) // 8 * 4
        parts = [(1, body[:half]), (3, body[half:])] if key == 2 else [(0, body)]
        for kind, part in parts:
            rec += struct.pack("<II", 0xCED7230A, kind << 29 | len(part)) + part + bytes(-len(part) % 4)
    return rec, idx


def _mat(kind: int, shape: tuple[int, ...], body: bytes, name: bytes) -> bytes:
    def element(number: int, data: bytes) -> bytes:
        return struct.pack("<II", number, len(data)) + data + bytes(-len(data) % 8)

    sizes = np.array(shape, "<i4").tobytes()
    head = element(6, struct.pack("<II", kind, 0)) + element(5, sizes) + element(1, name)
    return element(14, head + (element(9, body) if kind == 6 else element(16, body) if kind == 4 else body))


def _mats() -> list[bytes]:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    cells = b"".join(_mat(4, (1, 7), f"{k}_a.jpg".encode(), b"") for k in range(3))
    both = _mat(1, (3, 1), cells, b"probe_set") + _mat(6, (3, 1), np.arange(3.0).tobytes(), b"probe_ids")
    packed = zlib.compress(both[: len(both) // 2]) if not both else zlib.compress(_mat(1, (3, 1), cells, b"probe_set"))
    return [header + both, header + struct.pack("<II", 15, len(packed)) + packed]


def _gone() -> bytes:
    raise NoFace("gone")


def _prepared(where: Path) -> dict[str, bytes]:
    photos = [journal.Photo(f"p{k // 2}", f"p{k // 2}/{k}.jpg", lambda k=k: _image(k), k, "probe") for k in range(6)]  # type: ignore[misc]
    photos.append(journal.Photo("p2", "p2/6.jpg", _gone, 6, "probe"))
    pairs = [(0, 1, 1, 0, "a"), (0, 2, 0, 0, "a"), (2, 3, 1, 1, "a"), (3, 5, 0, 1, "a")]
    extra = writer.Extras(pairs=pairs, splits={"train": [0], "test": [1, 2]})
    error, sys.stderr = sys.stderr, io.StringIO()
    try:
        writer.write(where, photos, 7, lambda _: extra, writer.Recipe("x", 4, "", "x"))
    finally:
        sys.stderr = error
    return {file.name: file.read_bytes() for file in where.iterdir()}


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("lfw/Ada/Ada_0001.jpg", "../Ada/Ada_0002.jpg", "lfw/Ben/Ben_0001.jpg"):
            info, data = tarfile.TarInfo(name), _image(1)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _checkpoints() -> list[bytes]:
    """Weights under the three families' names, as torch saves them and as it did before 1.6."""
    small = {"layer1.0.conv1.weight": torch.ones(2, 2, 3, 3), "fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)}
    other = {"input_layer.0.weight": torch.ones(2, 3, 3, 3), "layer1.0.res_layer.1.weight": torch.ones(2, 2, 3, 3)}
    found = []
    for content in (
        small,
        {"net_state_dict": other},
        {"net_state_dict": small | {"hint_layer1.hint.weight": torch.ones(2)}},
    ):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            found.append(buffer.getvalue())
    return found


@dataclass(frozen=True)
class Reader:
    """A parser: good files to start from (by name), which of them is damaged, and what reads them."""

    name: str
    seeds: list[dict[str, bytes]]
    damaged: tuple[str, ...]
    read: Callable[[Path], object]
    may_raise: tuple[type[BaseException], ...] = (DataError,)


def _all(records: recordio.Records) -> None:
    for number in recordio.images(records):
        records[int(number)]


def _pairs(file: Path) -> None:
    images, same = pairs_bin.read(file)
    pairs_bin.people([str(len(image)) for image in images], same)


def readers(where: Path) -> list[Reader]:
    """Every reader of files that others made; `where` is a folder to make a prepared set in."""
    rec, idx = _records()
    items, same = [_image(k) for k in range(4)], [True, False]
    arrays = [np.frombuffer(item, np.uint8) for item in items]
    columns, odd = [array[:, None] for array in arrays], np.array([[1.0], [0.0]])
    kinds = ((items, same), (arrays, same), (columns, odd), (items, [np.int64(1), 0.0]))
    pickles = [pickle.dumps(kind, p) for kind in kinds for p in (0, 2, 4, 5)]
    folder = _prepared(where / "prepared")
    points = ",".join(align.COLUMNS) + "\na.jpg,1,2,3,4,5,6,7,8,9,10\nb.jpg" + "," * 10 + "\n"
    known = {1: "a", 2: "b"}
    two = b"1 ../Data/Images/001/frontal/01.jpg\n2 ../Data/Images/001/frontal/02.jpg\n"
    return [
        Reader(
            "recordio",
            [{"train.rec": rec, "train.idx": idx}],
            ("train.rec", "train.idx"),
            lambda d: _all(recordio.Records(d / "train.rec", d / "train.idx")),
        ),
        Reader("recordio scanned", [{"x.rec": rec}], ("x.rec",), lambda d: _all(recordio.Records(d / "x.rec"))),
        Reader("property", [{"p": b"10572,112,112"}], ("p",), lambda d: recordio.read_property(d / "p")),
        Reader("pairs_bin", [{"x.bin": data} for data in pickles], ("x.bin",), lambda d: _pairs(d / "x.bin")),
        Reader("matlab", [{"x.mat": data} for data in _mats()], ("x.mat",), lambda d: matlab.read(d / "x.mat")),
        Reader("landmarks", [{"x.csv": points.encode()}], ("x.csv",), lambda d: align.read_landmarks(d / "x.csv")),
        Reader("cfp lists", [{"x": two}], ("x",), lambda d: cfp.read_list(d / "x", "frontal")),
        Reader("cfp pairs", [{"x": b"1,2\n2,1\n"}], ("x",), lambda d: cfp.read_pairs(d / "x", known, known)),
        Reader("lfw pairs", [{"x": b"1\t1\nAda\t1\t2\nAda\t1\tBen\t1\n"}], ("x",), lambda d: lfw.read_pairs(d / "x")),
        Reader("lfw people", [{"x": b"2\nAda\t2\nBen\t1\n"}], ("x",), lambda d: lfw.read_people(d / "x")),
        Reader("lfw archive", [{"x.tgz": _tar()}], ("x.tgz",), lambda d: list(lfw.archived(d / "x.tgz", True))),
        Reader(
            "prepared folder",
            [folder],
            ("manifest.csv", "pairs.csv", "meta.json", "images-00000.npy"),
            lambda d: read_layout(d, checksum=True),
        ),
        Reader(
            "checkpoint",
            [{"x.pth": data} for data in _checkpoints()],
            ("x.pth",),
            lambda d: read_checkpoint(d / "x.pth"),
        ),
        Reader(
            "templates",
            [{"x.csv": b"source,template,subject,media\na.jpg,1,7,3\nb.jpg,1,7,3\nb.jpg,2,9,4\n"}],
            ("x.csv",),
            lambda d: read_templates(d / "x.csv", ["a.jpg", "b.jpg"]),
        ),
        Reader(
            "images",
            [{"x": _image(0, kind)} for kind in FORMATS],
            ("x",),
            lambda d: images.convert((d / "x").read_bytes(), 8, images.whole_padded),
            BROKEN_IMAGE,
        ),
    ]


KINDS = 9


def damage(data: bytes, injuries: list[Injury], other: bytes) -> bytes:
    """`data` after each injury in turn; `other` is a file that pieces may come from."""
    out = bytearray(data)
    for kind, where, number in injuries:
        place = where % (len(out) + 1)
        if kind == 0 and out:
            out[where % len(out)] ^= 1 << number % 8
        elif kind == 1:
            del out[place:]
        elif kind == 2:
            del out[place : place + (1, 4, 30)[number % 3]]
        elif kind == 3:
            size = (1, 2, 4, 8)[number % 4]
            value = NUMBERS[number // 4 % len(NUMBERS)] % 256**size
            out[place : place + size] = value.to_bytes(size, "big" if number % 5 == 0 else "little")
        elif kind == 4:
            out[place:place] = TOKENS[number % len(TOKENS)]
        elif kind == 5:
            out[place:place] = out[place : place + number % 4096] * (1, 2, 50)[number % 3]
        elif kind == 6:
            out[place:] = other[number * 97 % (len(other) + 1) :]
        elif kind == 7:
            out[place : place + 8] = random.Random(number).randbytes(8)
        elif kind == 8:
            lines = bytes(out).split(b"\n")
            random.Random(number).shuffle(lines)
            out = bytearray(b"\n".join(lines))
    return bytes(out[: 2**20])


# Python imports a codec at its first use, which is no fault of the file whose text is in it.
for _codec in ("ascii", "cp437", "latin-1", "raw_unicode_escape", "utf-8"):
    codecs.lookup(_codec)
for _bits in (16, 32):
    for _order in ("", "-le", "-be"):
        codecs.lookup(f"utf-{_bits}{_order}")


class Watch:
    """Counts what the interpreter reports of `FORBIDDEN` events, and files opened for writing, while it is on."""

    def __init__(self, deaf: bool = False) -> None:
        self.on, self.seen = False, Counter[str]()
        if not deaf:
            sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        literal = event == "compile" and arguments[1] == "<unknown>"  # numpy reads a header by `ast.literal_eval`
        if (event in FORBIDDEN and not literal) or writes:
            self.seen[f"{event} {arguments[0] if arguments else ''}"[:80]] += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


def attempt(reader: Reader, files: dict[str, bytes], folder: Path, watch: Watch) -> tuple[str, float]:
    """(what happened, seconds of CPU): "read", "refused", or what must not be."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    watch.seen.clear()
    begun = time.process_time()
    try:
        with watch.watching():
            reader.read(folder)
        what = "read"
    except reader.may_raise:
        what = "refused"
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:200]
    seconds = time.process_time() - begun
    if seconds > SECONDS:
        what = f"{seconds:.1f} s"
    return (f"code: {dict(watch.seen)}" if watch.seen else what), seconds


def run(reader: Reader, cases: int, seed: int, where: Path, watch: Watch) -> dict[str, object]:
    """`cases` damaged files through one reader: counts, the slowest one, and the first fault."""
    draw, outcomes, first, slowest = random.Random(f"{reader.name} {seed}"), Counter[str](), "", 0.0
    folder = where / "case"
    folder.mkdir(exist_ok=True)
    for case in range(cases):
        good = draw.choice(reader.seeds)
        files = dict(good)
        for name in draw.sample(reader.damaged, draw.randint(1, min(2, len(reader.damaged)))):
            other = draw.choice(reader.seeds)[draw.choice(reader.damaged)]
            injuries = [(draw.randrange(KINDS), draw.randrange(2**20), draw.randrange(2**16)) for _ in range(4)]
            files[name] = damage(good[name], injuries[: draw.randint(1, 4)], other)
        what, seconds = attempt(reader, files, folder, watch)
        slowest = max(slowest, seconds)
        outcomes[what if what in ("read", "refused") else "fault"] += 1
        if what not in ("read", "refused"):
            first = first or f"case {case}: {what}"
    for file in folder.iterdir():
        file.unlink()
    return {
        "reader": reader.name,
        "cases": cases,
        "read": outcomes["read"],
        "refused": outcomes["refused"],
        "faults": outcomes["fault"],
        "slowest_ms": round(1000 * slowest, 1),
        "seed": seed,
        "first_fault": first,
    }


def main() -> int:
    """Run, print, and with --out write the table; 1 where there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="damaged files a reader (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="draws the damage (default: 0)")
    parser.add_argument("--only", metavar="READER", help="one reader")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        chosen = [r for r in readers(where) if arguments.only in (None, r.name)]
        for reader in chosen:  # what is imported at first use is no fault
            run(reader, 50, -1, where, Watch(deaf=True))
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + MEGABYTES * 2**20,) * 2)
        watch, rows = Watch(), []
        for reader in chosen:
            rows.append(run(reader, arguments.cases, arguments.seed, where, watch))
            rows[-1]["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            rows[-1]["commit"] = commit()
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        TABLE.merge(arguments.out, pd.DataFrame(rows))
    return int(any(row["faults"] for row in rows))


def _addresses() -> int:
    """Bytes of address space that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
