"""A study's grid with other methods and other networks."""

from collections.abc import Sequence
from dataclasses import replace

from lrkd.distill.methods import Method
from lrkd.study.networks import teacher_kind
from lrkd.study.spec import Spec


def with_methods(wanted: Sequence[Spec], chosen: Sequence[Method]) -> list[Spec]:
    """Keep the runs of the chosen methods; one that the grid does not have runs wherever the grid distils.

    Args:
        wanted: The runs of a study; its teachers stay.
        chosen: Methods of the study, or others.

    Returns:
        The runs, in the order of the grid.
    """
    known = [spec.method for spec in wanted if spec.role == "student"]
    new = [method for method in chosen if method not in known]
    found: list[Spec] = []
    for spec in wanted:
        if spec.role == "teacher" or spec.method in chosen:
            found.append(spec)
        if spec.role == "student" and spec.method.teacher != "none":
            others = (replace(spec, method=method) for method in new)
            found += [other for other in others if other not in found]
    return found


def with_networks(wanted: Sequence[Spec], student: str = "", teacher: str = "") -> list[Spec]:
    """Give every student of a grid another network, another teacher, or both.

    Args:
        wanted: The runs of a study.
        student: As `Spec.student`; "" keeps each run's own.
        teacher: As `Spec.teacher`; "" keeps the study's teachers. One that is trained here is trained for each of
            their seeds.

    Returns:
        The runs, teachers first, each once.
    """
    if not student and not teacher:
        return list(wanted)
    found: list[Spec] = []
    for spec in wanted:
        if spec.role == "student":
            spec = replace(spec, student=student or spec.student, teacher=teacher or spec.teacher)
        elif teacher and teacher_kind(teacher) != "trained":
            continue
        elif teacher:
            spec = replace(spec, student=teacher)
        if spec not in found:
            found.append(spec)
    return found
