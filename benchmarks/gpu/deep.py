"""A student whose teacher is deeper than itself."""

from dataclasses import dataclass, replace

from lrkd.study.presets import SCALES
from lrkd.study.spec import Spec, teacher_spec


@dataclass(frozen=True)
class DeepTaught(Spec):
    """A run of scale gpu whose teacher is the IResNet-50 of scale gpu50; its weights' hash says so by the teacher's."""

    @property
    def teacher_run(self) -> Spec | None:
        own = super().teacher_run
        found = teacher_spec(SCALES["gpu50"], self.teacher_seed, self.source)
        return own and replace(found, epochs=self.epochs)
