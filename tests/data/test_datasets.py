"""A torch Dataset or DataLoader trains and embeds to the same bits as a table of the same faces."""

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lrkd.data.datasets import DatasetFaces, as_faces
from lrkd.errors import DataError
from lrkd.evaluation.embedding import embed
from lrkd.training.schedule import Schedule

FACES = toys.faces()
PIXELS = torch.from_numpy(FACES.images).permute(0, 3, 1, 2)


class Pairs(Dataset):
    """(image, label) as torchvision's datasets give them, with a transform."""

    def __init__(self, transform, targets=False):
        self.transform = transform
        if targets:
            self.targets = FACES.labels.tolist()

    def __len__(self):
        return len(FACES)

    def __getitem__(self, row):
        return self.transform(FACES.images[row]), int(FACES.labels[row])


DATASETS = {
    "arrays": Pairs(lambda x: x),
    "pictures with targets": Pairs(Image.fromarray, targets=True),
    "floating point": Pairs(lambda x: torch.from_numpy(x).permute(2, 0, 1) / 255),
    "tensors": TensorDataset(PIXELS, torch.from_numpy(FACES.labels)),
    "loader": DataLoader(TensorDataset(PIXELS, torch.from_numpy(FACES.labels)), batch_size=5, shuffle=True),
}


@pytest.mark.parametrize("name", DATASETS)
def test_it_trains_and_embeds_to_the_bits_of_a_table(name, tmp_path):
    weights = []
    for data in (FACES, DATASETS[name]):
        network, head = toys.pair()
        toys.fit(network, head, data, schedule=Schedule(1, batch=16, lr=0.1), progress=False)
        weights.append(toys.state(network, head))
    assert toys.equal(*weights)
    assert np.array_equal(embed(network, DATASETS[name]), embed(network, FACES.images))


def test_it_is_read_as_an_array():
    found = as_faces(DATASETS["loader"])
    assert found.images.shape == FACES.images.shape
    assert np.array_equal(found.labels, FACES.labels)
    for index in (slice(4, 9), np.array([3, 1, 2]), slice(None), FACES.labels == 1):
        assert np.array_equal(found.images[index], FACES.images[index])
    assert as_faces(FACES) is FACES


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (
            lambda x: torch.from_numpy(x).permute(2, 0, 1) / 127.5 - 1,
            r"not normalised, .* got float32 \(3, 8, 8\) from -",
        ),
        (lambda x: x[..., 0], r"image 0: expected RGB .*, got uint8 \(8, 8\)"),
        (lambda x: "face.jpg", r"image 0: expected RGB"),
    ],
)
def test_other_images_are_refused(transform, says):
    with pytest.raises(DataError, match=says):
        DatasetFaces(Pairs(transform))


def test_sizes_that_differ_and_labels_that_are_none_are_refused():
    sizes = iter((8, 8, 4))
    faces = DatasetFaces(Pairs(lambda x: x[: next(sizes)]))
    with pytest.raises(DataError, match=r"image 1: expected RGB of one size, .* got uint8 \(4, 8, 3\)"):
        faces.images[:2]
    with pytest.raises(DataError, match="labels: expected 64 whole numbers"):
        _ = DatasetFaces(list(FACES.images)).labels
    with pytest.raises(DataError, match=r"labels: expected 64 whole numbers, .* got 1.5"):
        _ = DatasetFaces([(image, 1.5) for image in FACES.images]).labels
    with pytest.raises(DataError, match=r"image 0: expected .* got a dict"):
        as_faces([{"image": image, "label": 0} for image in FACES.images])
    with pytest.raises(DataError, match=r"expected a dataset with a length .* got list of none"):
        as_faces([])
    with pytest.raises(DataError, match="expected a dataset with a length"):
        DatasetFaces(TensorDataset(PIXELS[:0]))
