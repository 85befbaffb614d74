"""What a frozen teacher answers for each training image, computed once and kept on its device.

It pays on a GPU, where a teacher's forward pass is a third of a step; on a CPU it is used where asked for.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from lrkd.distill.parts import Watched
from lrkd.models.layers import Network, Output
from lrkd.models.wrap import Embeddings
from lrkd.training import batches as batches_
from lrkd.training.acceleration import Speed
from lrkd.training.batches import Batches
from lrkd.training.step import Answers, StepLosses


def stored_answers(losses: StepLosses, batches: Batches, speed: Speed) -> Answers | None:
    """Find what the teacher answers without its network: a table of embeddings, or a cache filled now; else None."""
    teacher, device = losses.teacher, batches.device
    if teacher is None:
        return None
    if isinstance(teacher.network, Embeddings):
        return teacher.network.answers(batches.count, teacher.shuffled)
    if losses.options.shift or teacher.low or teacher.itself or not speed.uses("cache_teacher", device):
        return None
    fields = fields_read(losses, batches)
    room = torch.cuda.mem_get_info(device)[0] / 3 if device.type == "cuda" else batches_.RESIDENT_BYTES

    def ask(x: Tensor) -> Output:
        with torch.autocast(device.type, torch.bfloat16, enabled=losses.options.precision == "bfloat16"):
            return teacher.network(losses.shown(x))

    found = cache_answers(ask, batches, fields, losses.options.mirror, room)
    if found is None or not teacher.shuffled:
        return found
    return lambda index, flip: found(index.roll(1), None if flip is None else flip.roll(1))


def fields_read(losses: StepLosses, batches: Batches) -> set[str]:
    """Find which fields of the teacher's Output its terms read, by computing them on two images."""
    teacher, network = losses.teacher, cast(Network, losses.trained["network"])
    assert teacher is not None
    index = torch.arange(2)
    losses.trained.eval()
    with torch.no_grad():
        x = batches.images(index)
        chosen = None if teacher.chosen is None else teacher.chosen[:2].to(batches.device)
        labels = torch.zeros(2, dtype=torch.int64, device=batches.device)
        outputs = network(losses.shown(losses.small(x))), teacher.network(losses.shown(x))
        student, view = losses.views(*outputs, labels, chosen)
        watched = Watched(view)
        for term in teacher.terms:
            term.function(student, watched)  # type: ignore[arg-type]
    losses.trained.train()
    return {"embedding" if name == "logits" else name for name in watched.seen}


def cache_answers(
    ask: Callable[[Tensor], Output], batches: Batches, fields: set[str], mirror: bool, room: float
) -> Answers | None:
    """Keep what a frozen network answers for each image.

    Args:
        ask: (B,3,H,W) in [0,1] -> Output.
        batches: The images.
        fields: Those of Output that are kept; the others are empty in what comes back.
        mirror: Whether to keep the answers for the mirror images too.
        room: How many bytes they may take.

    Returns:
        The answers; None where they would take more than `room`.
    """

    def wanted(x: Tensor) -> list[list[Tensor]]:
        out = ask(x)
        parts: list[Sequence[Tensor]] = [[out.embedding], out.features, out.channel, out.spatial]
        return [list(part) if name in fields else [] for name, part in zip(Output._fields, parts, strict=True)]

    sides, count = 2 if mirror else 1, batches.count
    with torch.no_grad():
        first = wanted(batches.images(torch.arange(min(2, count))))
        each = sum(x[0].numel() * x.element_size() for part in first for x in part)
        if sides * count * each > room:
            return None
        kept = [[x.new_empty((sides, count, *x.shape[1:])) for x in part] for part in first]
        together = len(range(batches.batch)[batches.share])
        for index in torch.arange(count).split(max(together, 512) if batches.device.type == "cuda" else together):
            x = batches.images(index)
            here = index.to(x.device)
            for side, shown in enumerate((x, x.flip(3))[:sides]):
                for store, found in zip(kept, wanted(shown), strict=True):
                    for into, value in zip(store, found, strict=True):
                        into[side, here] = value

    def look_up(index: Tensor, flip: Tensor | None) -> Output:
        side = torch.zeros_like(index) if flip is None else flip.to(index)
        embedding, *others = [tuple(store[side, index] for store in part) for part in kept]
        return Output(embedding[0] if embedding else index.new_empty(0), *others)

    return look_up
