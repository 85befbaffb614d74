"""Worlds: everything of a study drawn anew from one number, so that one interval covers people, teacher and seed.

A world draws its training people, validation people, test people, teacher, initialisation and order. Some worlds are
for choosing and show their validation people only, the others are for judging and show their test people only.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from lrkd.data.procedural import People
from lrkd.errors import ConfigError
from lrkd.study.presets import Scale

Setting = Literal["S", "T", "D"]
SETTINGS: dict[str, str] = {
    "S": "teacher and student know the same people",
    "T": "the teacher knows many more people than the student is shown",
    "D": "teacher and student know the same many people",
}
CHOOSING = (0, 1)
JUDGING = tuple(range(100, 110))
_SEED = 1_000_000  # the people of world w come from this seed + w, far from those of the data that are no world


@dataclass(frozen=True)
class World:
    """Where a run takes place: numbers below 100 are for choosing, those from 100 on for judging.

    setting: what the teacher knows, a key of SETTINGS. On photographs there is one set of people: there a number is no
    more than a seed, and still says whether validation or test people are looked at.
    Raises ConfigError for a number below zero and an unknown setting.
    """

    number: int
    setting: Setting = "S"

    def __post_init__(self) -> None:
        if self.setting not in get_args(Setting):
            raise ConfigError(f"setting: expected one of {', '.join(SETTINGS)}, got {self.setting!r}")
        if not 0 <= self.number < 2**31:
            raise ConfigError(f"world: expected a whole number from 0 on, got {self.number}")

    @property
    def judging(self) -> bool:
        return self.number >= JUDGING[0]

    @property
    def shown(self) -> str:
        """The split that is measured: "validation" or "test"."""
        return "test" if self.judging else "validation"

    def many(self, role: str) -> bool:
        """Whether a "teacher" or a "student" is trained on the many people here."""
        return self.setting == "D" or (self.setting == "T" and role == "teacher")

    def splits(self, role: str) -> dict[str, str]:
        """Part of `tables.Splits` -> the set of people that it is here: only what a run of that role may look at."""
        return {"train": "many" if self.many(role) else "train", self.shown: self.shown}


def people(scale: Scale, world: World, name: str, device: str = "cpu") -> People:
    """Return the set "train", "many", "validation" or "test" of a world at a scale, not rendered yet.

    The four share no person, and none with another world's. Raises ConfigError at a scale without a population.
    """
    found = scale.population
    if found is None:
        raise ConfigError(f"scale {scale.name} has no worlds: expected one with a population")
    identities, images = getattr(found, name)
    pairs = dict(zip(("validation", "test"), found.pairs, strict=True)).get(name)
    face = tuple(sorted(scale.face.items()))
    return People(name, scale.size, identities, images, pairs, _SEED + world.number, face, device)


def epochs_on(scale: Scale, world: World, role: str, epochs: int) -> int:
    """Translate a study's length over the small training set into epochs over a role's own.

    A student of many people takes as many steps as one of few (as nearly as whole epochs allow), so that who knows more
    does not also train longer. A teacher of many takes half the epochs: each image half as often, in more steps.
    """
    if scale.population is None or not world.many(role):
        return epochs
    if role == "teacher":
        return max(1, -(-epochs // 2))
    few, many = (count * images for count, images in (scale.population.train, scale.population.many))
    return max(1, round(epochs * few / many))
