"""`data_prep.jpeg`: what is packed comes back with everything but the last bits of its pixels, or is refused."""

import zipfile

import numpy as np
import pytest

from benchmarks.gpu import photographs
from data_prep import jpeg
from lrkd.data.prepared import load_prepared
from lrkd.errors import DataError


@pytest.fixture
def packed(tmp_path):
    return photographs.toy(tmp_path)


def test_a_packed_folder_comes_back(packed, tmp_path):
    jpeg.unpack(packed, tmp_path / "again")
    before, after = load_prepared(tmp_path / "prepared"), load_prepared(tmp_path / "again", checksum=True)
    assert np.array_equal(after.faces.labels, before.faces.labels)
    assert after.faces.names == before.faces.names
    assert after.protocols.keys() == before.protocols.keys()
    a, b = (found.faces.images[:].reshape(len(after.faces), -1).astype(np.float64) for found in (after, before))
    alike = np.corrcoef(a, b)[: len(a), len(a) :]  # of noise, JPEG keeps little; but each is most like its own
    assert np.array_equal(alike.argmax(1), np.arange(len(a)))
    assert (after.faces.name, after.meta["jpeg"]["quality"]) == ("noise-jpeg88", 88)
    assert after.faces.digest != before.faces.digest, "its results are others"


def test_the_same_folder_packs_to_the_same_bytes(packed, tmp_path):
    jpeg.pack(tmp_path / "prepared", tmp_path / "twice")
    assert (tmp_path / "twice" / jpeg.IMAGES).read_bytes() == (packed / jpeg.IMAGES).read_bytes()


def _rewritten(path, change):
    with zipfile.ZipFile(path) as archive:
        items = [(item.filename, archive.read(item)) for item in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(items):
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda items: items[:-1], "in this order"),
        (lambda items: [("../x.jpg", items[0][1]), *items[1:]], "in this order"),
        (lambda items: [(items[0][0], b"no image"), *items[1:]], "000000.jpg cannot be decoded"),
    ],
)
def test_a_damaged_archive_is_refused_and_leaves_nothing(packed, tmp_path, damage, match):
    _rewritten(packed / jpeg.IMAGES, damage)
    with pytest.raises(DataError, match=match):
        jpeg.unpack(packed, tmp_path / "again")
    assert not list(tmp_path.glob("again*"))


def test_an_archive_that_is_cut_short_is_refused(packed, tmp_path):
    path = packed / jpeg.IMAGES
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="broken or cut short"):
        jpeg.unpack(packed, tmp_path / "again")
    (packed / "pairs.csv").unlink()
    with pytest.raises(DataError, match=r"pairs.csv is missing"):
        jpeg.unpack(packed, tmp_path / "again")
