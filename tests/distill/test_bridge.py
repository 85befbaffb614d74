"""Bridge Distillation: the compact head against scikit-learn's, and a teacher that passes through it in a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from lrkd.distill import bridge, methods
from lrkd.errors import ConfigError
from lrkd.evaluation.verification import best_threshold, cosine_scores
from lrkd.models.layers import Output
from lrkd.models.wrap import Embeddings
from lrkd.study import experiment, networks
from lrkd.study import spec as study_spec
from lrkd.study.presets import SCALES
from lrkd.study.spec import Spec


def people(seed: int, count: int, each: int = 6, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of which the last six numbers say nothing, and loudly."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), each)
    own = random.standard_normal((count, size)) * ([1.0] * 6 + [0.0] * 6)
    return (own[labels] + random.standard_normal((len(labels), size)) * ([0.5] * 6 + [4.0] * 6)).astype("f4"), labels


def test_the_directions_are_scikit_learns(monkeypatch):
    monkeypatch.setattr(bridge, "_SHRUNK", 0.0)
    features, labels = people(0, 40)
    mean, directions = bridge.compact_head(features, labels, 5)
    oracle = LinearDiscriminantAnalysis(solver="eigen", n_components=5).fit(features.astype(float), labels)
    ours, theirs = (features - mean) @ directions, oracle.transform(features.astype(float))
    for k in range(5):
        assert abs(np.corrcoef(ours[:, k], theirs[:, k])[0, 1]) > 0.9999
    with pytest.raises(ConfigError, match="length: expected 1 to 12, the teacher's, got 13"):
        bridge.compact_head(features, labels, 13)


def test_other_people_are_recognised_better_behind_the_head():
    mean, directions = bridge.compact_head(*people(1, 60), 6)
    features, labels = people(2, 30)

    def accuracy(x: np.ndarray) -> float:
        a, b = np.triu_indices(len(x), 1)
        keep = (labels[a] == labels[b]) | (np.random.default_rng(0).random(len(a)) < 0.03)
        return best_threshold(cosine_scores(x[a[keep]], x[b[keep]]), labels[a[keep]] == labels[b[keep]])[1]

    assert accuracy((features - mean) @ directions) > accuracy(features) + 0.1


class Quarters(nn.Module):
    """A teacher whose embedding is the mean colours of an image's quarters."""

    embedding, widths = 12, ()

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x):
        return Output(nn.functional.avg_pool2d(x, self.size // 2).flatten(1), (), (), ())


def test_a_network_and_its_table_of_embeddings_become_the_same_teacher():
    faces = study_spec.splits(SCALES["smoke"]).train
    quarters = Quarters(faces.size)
    seen = torch.from_numpy(np.array(faces.images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    table = quarters(seen).embedding
    own, kept = networks.compacted(quarters, faces, "cpu"), networks.compacted(Embeddings(table), faces, "cpu")
    np.testing.assert_allclose(own(seen).embedding, kept.table, rtol=1e-3, atol=1e-3)
    assert own.embedding == kept.embedding == 12
    assert kept.table.mean(0).abs().max() < 1e-3


def test_the_method_says_what_it_is_and_trains(smoke):
    method = methods.get("bridge")
    assert method.describe()["compact"] is True
    assert "compact" not in replace(method, compact=False).describe()
    run = experiment.train(Spec(method, 6, 0, SCALES["smoke"]), smoke, device="cpu", progress=False)
    assert run.result["status"] == "ok"
