"""What `lrkd verify` scores: which pairs of which images, and by which threshold."""

from typing import NamedTuple

import numpy as np

from lrkd.cli.subject import Subject, warn_of_framing
from lrkd.cli.trained_on import pairs_to_score
from lrkd.data.pairs import Pairs, make_pairs, mark_copies
from lrkd.data.prepared import Prepared, load_prepared, resized_faces
from lrkd.data.tables import Faces
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.verification import Verification, fit_threshold, fixed_verification, kfold_verification
from lrkd.study import presets
from lrkd.study import spec as study_spec
from lrkd.study.measures import pairs_of


class Request(NamedTuple):
    """The pairs that are asked for.

    data: a prepared folder; None: the test people of the run's own data. protocol: of its pairs; None: the only one,
    or drawn where there is none. threshold: the cosine to judge by; threshold_from: the protocol that it is found on;
    of neither, folds. unseen: whether to leave out people who were trained on.
    """

    data: str | None
    protocol: str | None = None
    threshold: float | None = None
    threshold_from: str | None = None
    unseen: bool = False


class Trial(NamedTuple):
    """Faces at the network's size, their pairs, once in `folds`, and what decides: folds, a threshold, or other pairs.

    reference: the pairs that the threshold is found on.
    """

    faces: Faces
    pairs: Pairs
    folds: int
    threshold: float | None = None
    reference: Pairs | None = None

    @property
    def threshold_from(self) -> str:
        """Where the threshold is from, for the table."""
        if self.reference is not None:
            return self.reference.protocol
        return "other folds" if self.threshold is None else "given"

    def score(self, features: np.ndarray) -> Verification:
        """Verify the pairs by embeddings (N,D) of the faces; pairs of faces that were not found are rejected."""
        pairs, reference = self.pairs, self.reference
        ends = features[pairs.left], features[pairs.right], pairs.same
        missing = pairs.touch(self.faces.missing)
        if self.threshold is not None:
            return fixed_verification(*ends, self.threshold, missing=missing)
        if reference is None:
            return kfold_verification(*ends, pairs.fold, missing=missing)
        taught = features[reference.left], features[reference.right], reference.same
        cut, mean = fit_threshold(*taught, missing=reference.touch(self.faces.missing))
        return fixed_verification(*ends, cut, mean=mean, missing=missing)


def load_trial(request: Request, subject: Subject) -> Trial:
    """Load the pairs that are asked for, and the images that they need, at the network's size.

    Raises:
        ConfigError: Something is asked for that goes with a prepared folder only, or --data is missing.
        DataError: Data that cannot be read, that have changed, or that leave no pair.
    """
    if request.data is None:
        return _own_test(request, subject)
    whole, protocol, source = load_prepared(request.data), request.protocol, request.threshold_from
    warn_of_framing(subject, request.data)
    if not whole.protocols and protocol is None:
        pairs = _drawn(request.data, whole.faces)
    else:
        protocol = protocol or (next(iter(whole.protocols)) if len(whole.protocols) == 1 else "")
        pairs = pairs_of(whole.protocol(protocol))
    twin = f"{str(protocol).removesuffix('-test')}-train"
    if source is None and request.threshold is None and np.ptp(pairs.fold) == 0 and twin in whole.protocols:
        source = twin
    reference = None if source is None else pairs_of(whole.protocol(source))
    folds = int(pairs.fold.max()) + 1
    pairs = pairs_to_score(subject, whole, pairs, request.unseen)
    ends = [end for some in (pairs, reference) if some is not None for end in (some.left, some.right)]
    used = np.unique(np.concatenate(ends))
    place = np.full(len(whole.faces), -1, np.int64)
    place[used] = np.arange(len(used))
    faces = resized_faces(whole.faces.subset(used, relabel=False), subject.size)
    moved = [None if some is None else some.keep(place) for some in (pairs, reference)]
    assert moved[0] is not None
    return Trial(faces, moved[0], folds, request.threshold, moved[1])


def _own_test(request: Request, subject: Subject) -> Trial:
    if subject.run is None:
        raise ConfigError("data is not given: a published network, or a file whose run is not here, needs --data DIR")
    for name, value in (("protocol", request.protocol), ("threshold-from", request.threshold_from)):
        if value is not None:
            raise ConfigError(f"{name}: expected --data with it, got {value!r} alone")
    run, source = subject.run, subject.run.result["source"]
    faces = study_spec.splits(presets.scale(run.config["scale"]), source).test
    if faces.digest != run.config["data"]["test"]:
        raise DataError(f"{source}: is not the data that {run.path} was tested on; give --data and --protocol")
    pairs = pairs_of(faces)
    shown = pairs_to_score(subject, Prepared(faces, {}, {}), pairs, request.unseen)
    return Trial(faces, shown, int(pairs.fold.max()) + 1, request.threshold)


def _drawn(path: str, faces: Faces) -> Pairs:
    """Pairs for a folder that has none of its own."""
    try:
        return make_pairs(mark_copies(faces.labels, faces.sha256))
    except DataError as error:
        raise DataError(
            f"{path}: has no verification pairs, and none can be drawn ({error}); without pairs `lrkd identify` ranks "
            "people, and `lrkd embed` writes the embeddings of photographs"
        ) from error
