"""insightface's .bin pair sets: read exactly whoever wrote them; a pickle that does anything else is refused unrun."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from formats import MINI, image
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import commandline, pairs_bin
from lrkd.data.prepared import load_prepared
from lrkd.errors import DataError

ROOT = Path(__file__).parents[2]
IMAGES = [image(k) for k in range(6)]
SAME = [True, False, True]


def saved(tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "set.bin"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("kind", ["bytes", "ndarray"])
def test_files_of_the_original_library_are_read_exactly(kind, tmp_path):
    wanted = json.loads((MINI / "manifest.json").read_text())
    images, same = pairs_bin.read(MINI / f"pairs_{kind}.bin")
    assert same == wanted["same"]
    assert [hashlib.sha256(data).hexdigest() for data in images] == wanted["pair_sha256"]
    meta = pairs_bin.prepare(MINI / f"pairs_{kind}.bin", tmp_path / "out")
    assert meta["counts"]["pairs"] == {f"pairs_{kind}": wanted["pairs"]}
    whole = load_prepared(tmp_path / "out", checksum=True)
    pairs = whole.protocols[f"pairs_{kind}"]
    assert pairs.same.tolist() == wanted["same"]
    assert pairs.fold.tolist() == list(range(10))
    lines = (tmp_path / "out" / "manifest.csv").read_text().splitlines()[1:]
    digests = [line.split(",")[4] for line in lines]
    assert [digests[row] for both in zip(pairs.left, pairs.right, strict=True) for row in both] == wanted["pair_sha256"]


TRUTHS = {
    "bools": lambda same: same,
    "ints": lambda same: [int(value) for value in same],
    "numpy bools": lambda same: [np.bool_(value) for value in same],
    "array": lambda same: np.array(same),
    "floats": lambda same: [float(value) for value in same],
    "numpy ints": lambda same: [np.int64(value) for value in same],
    "an array of floats": lambda same: np.array(same, np.float32),
    "an array of bytes": lambda same: np.array(same, np.uint8),
    "the other order": lambda same: np.array(same, ">i8"),
    "a column": lambda same: np.array(same, np.int64)[:, None],
    "arrays": lambda same: [np.array([value]) for value in same],
    "tuple": tuple,
}
FORMS = {
    "bytes": lambda images: images,
    "arrays": lambda images: [np.frombuffer(data, np.uint8) for data in images],
    "columns": lambda images: [np.frombuffer(data, np.uint8)[:, None] for data in images],
    "copies": lambda images: [np.frombuffer(data, np.uint8).copy() for data in images],
    "mixed": lambda images: (images[0], *(np.frombuffer(data, np.uint8) for data in images[1:])),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("truths", TRUTHS)
@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_one_is_read(tmp_path, protocol, truths, form):
    data = pickle.dumps((FORMS[form](IMAGES), TRUTHS[truths](SAME)), protocol)
    images, same = pairs_bin.read(saved(tmp_path, data))
    assert ([bytes(item) for item in images], same) == (IMAGES, SAME)


def test_bytearrays_are_read_from_protocol_5_on(tmp_path):
    images, same = pairs_bin.read(saved(tmp_path, pickle.dumps(([bytearray(data) for data in IMAGES], SAME), 5)))
    assert ([bytes(item) for item in images], same) == (IMAGES, SAME)


def string(data: bytes) -> bytes:
    """As Python 2 writes a str at protocol 2."""
    return b"T" + struct.pack("<i", len(data)) + data


def test_what_python_2_wrote_is_read(tmp_path):
    body = b"".join(string(data) + b"q" + bytes([k + 1]) for k, data in enumerate(IMAGES))
    data = b"\x80\x02]q\x00(" + body + b"e]q\x20(\x88\x89\x88e\x86q\x21."
    assert pairs_bin.read(saved(tmp_path, data)) == (IMAGES, SAME)


def test_arrays_that_python_2_wrote_are_read(tmp_path):
    def array(data: bytes) -> bytes:
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        return made + b"(K\x01" + b"M" + struct.pack("<H", len(data)) + b"\x85" + kind + b"\x89" + string(data) + b"tb"

    data = b"\x80\x02](" + b"".join(map(array, IMAGES)) + b"e](\x88\x89\x88e\x86."
    images, same = pairs_bin.read(saved(tmp_path, data))
    assert ([bytes(item) for item in images], same) == (IMAGES, SAME)


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=10), st.integers(0, 5), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back_as_they_were_written(tmp_path_factory, items, protocol, arrays):
    items = items[: len(items) // 2 * 2]
    same = [len(item) % 2 == 0 for item in items[::2]]
    written = [np.frombuffer(item, np.uint8) for item in items] if arrays else items
    images, truths = pairs_bin.read(saved(tmp_path_factory.mktemp("bin"), pickle.dumps((written, same), protocol)))
    assert ([bytes(item) for item in images], truths) == (items, same)


# ---------------------------------------------------------------------------------------------------------- people


def test_people_are_what_pairs_and_files_tie_together():
    # a-b genuine, c-d impostor, b-e genuine: a, b, e are one person
    owner, wrong = pairs_bin.people(["a", "b", "c", "d", "b", "e"], [True, False, True])
    assert (owner, wrong) == ([0, 0, 2, 3, 0, 0], 0)


def test_contradictions_are_left_untied():
    # a-b genuine, b-a impostor: the files say one person, the pair says two
    owner, wrong = pairs_bin.people(["a", "b", "b", "a", "c", "d"], [True, False, True])
    assert (owner, wrong) == ([0, 0, 2, 3, 4, 4], 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_pair_ever_contradicts_its_people(made):
    owner, _ = pairs_bin.people([str(k) for pair in made for k in pair[:2]], [same for *_, same in made])
    assert [owner[2 * i] == owner[2 * i + 1] for i in range(len(made))] == [same for *_, same in made]


def test_folds_are_parts_in_a_row(tmp_path):
    file = saved(tmp_path, pickle.dumps(([image(k % 7) for k in range(26)], [False] * 13)))
    pairs_bin.prepare(file, tmp_path / "out", size=8, folds=4)
    pairs = load_prepared(tmp_path / "out").protocols["set"]
    assert pairs.fold.tolist() == [0] * 4 + [1] * 3 + [2] * 3 + [3] * 3


def test_pairs_of_broken_images_are_left_out_and_counted(tmp_path):
    data = pickle.dumps(([*IMAGES[:2], b"no image", *IMAGES[3:]], SAME))
    meta = pairs_bin.prepare(saved(tmp_path, data), tmp_path / "out", size=8, max_broken=0.5)
    assert (meta["counts"]["images"], meta["counts"]["pairs_of_broken_images"]) == (5, 1)
    assert load_prepared(tmp_path / "out").protocols["set"].same.tolist() == [True, True]


def test_images_that_are_not_aligned_are_said(tmp_path, capsys):
    data = pickle.dumps(([image(0, 250, 250), image(1, 112, 112), b"no image", image(3, 112, 112)], [True, False]))
    pairs_bin.prepare(saved(tmp_path, data), tmp_path / "out", size=8, max_broken=0.5)
    said = capsys.readouterr().err
    assert "set.bin: 25% of 4 images are larger than the 112 px of aligned faces (up to 250 x 250)" in said
    assert "set.bin: 2 folds instead of 10: there are no more pairs" in said
    pairs_bin.prepare(saved(tmp_path, pickle.dumps((IMAGES, SAME))), tmp_path / "small", size=8, folds=3)
    said = capsys.readouterr().err
    assert "aligned" not in said
    assert "folds" not in said


# --------------------------------------------------------------------------------------------------------- hostile


class Runs:
    def __init__(self, call, *arguments) -> None:
        self.what = call, arguments

    def __reduce__(self):
        return self.what


def good(*extra: object) -> tuple:
    return ([*IMAGES, *extra], SAME)


GLOBAL_CALL = b"\x80\x02cos\nsystem\nU\x05touchU\x01x\x85R."
HOSTILE = {
    "system": lambda file: pickle.dumps(good(Runs(os.system, f"touch {file}"))),
    "eval": lambda file: pickle.dumps(good(Runs(eval, f"open({str(file)!r}, 'w')"))),
    "at the very start": lambda file: b"cos\nsystem\n(S'touch " + bytes(file) + b"'\ntR.",
    "old instance": lambda file: b"(S'touch " + bytes(file) + b"'\nios\nsystem\n.",
    "new object": lambda file: b"\x80\x02csubprocess\nPopen\n]U\x05touch\x61\x85\x81.",
    "getattr": lambda file: pickle.dumps(good(Runs(getattr, "x", "upper"))),
    "a dotted name": lambda file: b"\x80\x04\x8c\x05numpy\x8c\x0dos.system\x00\x00\x00\x00\x93.",
    "numpy's load": lambda file: b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x01x\x85R.",
    "stack global": lambda file: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x07touch x\x85R.",
    "persistent": lambda file: b"Px\n.",
    "extension": lambda file: b"\x80\x02\x82\x01.",
    "objects in an array": lambda file: pickle.dumps(good(np.array([Runs(os.system, f"touch {file}")], dtype=object))),
    "a real reconstruct": lambda file: (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R."
    ),
    "nested": lambda file: b"\x80\x02" + b"]" * 50000 + b"a" * 49999 + b".",
    "nested tuples": lambda file: b"\x80\x02)" + b"\x85" * 50000 + b".",
    "nested marks": lambda file: b"\x80\x02" + b"(" * 50000 + b"t" * 50000 + b".",
    "a list of itself": lambda file: b"\x80\x02]q\x00h\x00a.",
    "a huge string": lambda file: b"\x80\x02T\xff\xff\xff\x7f" + b"x" * 100 + b".",
    "a negative string": lambda file: b"\x80\x02T\xff\xff\xff\xff" + b"x" * 100 + b".",
    "huge bytes": lambda file: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x" * 100 + b".",
    "huger bytes": lambda file: b"\x80\x04\x8e" + struct.pack("<Q", 2**64 - 1) + b"x" * 100 + b".",
    "a huge frame": lambda file: b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
    "a huge place in memory": lambda file: b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a huge place in words": lambda file: b"\x80\x02Np99999999999\n.",
    "a huge number": lambda file: b"\x80\x02L" + b"9" * 10000 + b"L\n.",
    "a long number": lambda file: b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "no place": lambda file: b"\x80\x02h\x07.",
    "the same text a thousand times": lambda file: (
        b"\x80\x02](c_codecs\nencode\nq\x00X"
        + struct.pack("<I", 10**5)
        + b"x" * 10**5
        + b"q\x01X\x06\x00\x00\x00latin1q\x02\x86R"
        + b"h\x00h\x01h\x02\x86R" * 1000
        + b"e\x89\x86."
    ),
    "many small objects": lambda file: b"\x80\x02(" + b"]" * 500000 + b"l.",
    "wide text": lambda file: pickle.dumps(("\U0001f600" * 10, SAME)),
    "a set": lambda file: pickle.dumps((set(IMAGES), SAME)),
    "a dict": lambda file: pickle.dumps({"images": IMAGES}),
    "state for a bytes": lambda file: b"\x80\x02U\x01xNb.",
    "state for a function": lambda file: b"\x80\x02c_codecs\nencode\n(NNtb.",
    "state for a type": lambda file: b"\x80\x02cnumpy\ndtype\n(NNtb.",
}
WRONG = {
    "empty": b"",
    "no pickle": image(0),
    "cut short": pickle.dumps(good())[:-5],
    "one list": pickle.dumps(IMAGES),
    "three parts": pickle.dumps((IMAGES, SAME, 1)),
    "an odd image": pickle.dumps((IMAGES[:5], SAME)),
    "no pairs": pickle.dumps(([], [])),
    "no truths": pickle.dumps((IMAGES, [0.5, 0.0, 1.0])),
    "not a number": pickle.dumps((IMAGES, np.array([np.nan, 0, 1]))),
    "a complex truth": pickle.dumps((IMAGES, np.array([1j, 0, 1]))),
    "a table of truths": pickle.dumps((IMAGES[:2], np.ones((2, 2)))),
    "a row of pixels": pickle.dumps(([np.zeros((2, 3), np.uint8)] * 6, SAME)),
    "other truths": pickle.dumps((IMAGES, [0, 1, 2])),
    "text": pickle.dumps((["a"] * 6, SAME)),
    "lists": pickle.dumps(([[1]] * 6, SAME)),
    "pixels": pickle.dumps(([np.zeros((4, 4, 3), np.uint8)] * 6, SAME)),
    "floats": pickle.dumps(([np.zeros(4)] * 6, SAME)),
    "bools for images": pickle.dumps(([np.zeros(4, bool)] * 6, SAME)),
    "bytes for truths": pickle.dumps((IMAGES, b"\1\0\1")),
    "a shape that lies": pickle.dumps(([np.frombuffer(b"abcdefgh", np.uint8)] * 6, SAME), 2).replace(
        b"K\x08", b"K\x09"
    ),
}


@pytest.mark.parametrize("case", [*HOSTILE, *WRONG])
def test_anything_else_is_one_error_and_nothing_is_run(tmp_path, case):
    marker = tmp_path / "executed"
    data = HOSTILE[case](marker) if case in HOSTILE else WRONG[case]
    with pytest.raises(DataError, match=r"set\.bin: (no pair set|0 bytes)"):
        pairs_bin.read(saved(tmp_path, data))
    assert not marker.exists()


def test_a_file_that_would_run_code_does_run_it_elsewhere(tmp_path):
    """The hostile files above are no straw men: Python's own loader runs this one."""
    marker = tmp_path / "executed"
    file = saved(tmp_path, HOSTILE["system"](marker))
    subprocess.run([sys.executable, "-m", "pickle", file], check=False, capture_output=True)
    assert marker.exists()


def test_what_claims_much_memory_is_refused_before_it_is_taken(tmp_path):
    """In a process that may not take more than 2 GB of addresses, and must not need 100 MB."""
    cases = [case for case in HOSTILE if any(word in case for word in ("huge", "text", "many", "long"))]
    for number, case in enumerate(cases):
        (tmp_path / f"{number}.bin").write_bytes(HOSTILE[case](tmp_path / "x"))
    code = """
        import resource, sys
        from pathlib import Path
        from data_prep import pairs_bin
        from lrkd.errors import DataError
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        # Not ru_maxrss: that of a new process begins with what its parent had.
        peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        for name in sys.argv[1:]:
            before = peak()
            try:
                pairs_bin.read(Path(name))
            except DataError as error:
                print(peak() - before, error)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *(str(tmp_path / f"{n}.bin") for n in range(len(cases)))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    said = found.stdout.splitlines()
    assert len(said) == len(cases) > 8
    assert "needs more memory" not in found.stdout
    assert max(int(line.split()[0]) for line in said) < 100_000


def test_a_file_larger_than_any_pair_set_is_refused_unread(tmp_path):
    with (tmp_path / "set.bin").open("wb") as file:
        file.truncate(pairs_bin.MAX_BYTES + 1)
    with pytest.raises(DataError, match="bytes: up to"):
        pairs_bin.read(tmp_path / "set.bin")


def test_the_command(tmp_path, capsys):
    argv = ["--source", str(MINI / "pairs_bytes.bin"), "--out", str(tmp_path / "out"), "--size", "16", "--name", "mini"]
    assert commandline.run(pairs_bin.main, [*argv, "--folds", "5"]) == 0
    assert "20 images of 15 people at 16 px, 0 broken; pairs: mini 10" in capsys.readouterr().out
    assert set(load_prepared(tmp_path / "out").protocols["mini"].fold.tolist()) == set(range(5))
    argv[1] = str(saved(tmp_path, GLOBAL_CALL))
    argv[3] = str(tmp_path / "other")
    assert commandline.run(pairs_bin.main, argv) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "other").exists()
