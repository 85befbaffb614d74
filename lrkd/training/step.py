"""One training step: augmentation, forward passes, the losses and their sum."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrkd.data.degradation import degrade, to_device
from lrkd.distill.losses import cosine_logits
from lrkd.distill.terms import Term, View
from lrkd.errors import DataError
from lrkd.models.heads import Head
from lrkd.models.layers import Network, Output
from lrkd.training import distributed
from lrkd.training.acceleration import fields_read, said_once
from lrkd.training.schedule import Options


class Images(Protocol):
    """What `fit` needs of `data.Faces`: uint8 images (N,H,W,3), int64 labels (N,), the number of classes, a digest."""

    @property
    def images(self) -> Any: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Teacher:
    """A frozen HR network and the class weights of its head, which only terms on logits need.

    shuffled: it sees each image's neighbour in the batch. low: it sees the LR images that the student sees. itself: it
    is the student, which is then trained on the sharp images as on the LR ones. chosen: (N,) bool, of which training
    images its features are learned by a term that asks (`losses.regression`); None: of all.
    """

    network: Network
    head: Head | None = None
    shuffled: bool = False
    low: bool = False
    itself: bool = False
    chosen: Tensor | None = None


def normalise(images: Tensor) -> Tensor:
    """[0,1] -> [-1,1], what every network here takes."""
    return images * 2 - 1


def step_losses(
    trained: nn.ModuleDict,
    head: Head | distributed.Shard,
    student: Callable[[Tensor], Output],
    teacher: Teacher | None,
    ask: Callable[[Tensor], Output] | None,
    terms: Sequence[Term],
    options: Options,
    shown: Callable[[Tensor], Tensor],
    hr: Tensor,
    labels: Tensor,
    chosen: Tensor | None,
    ramp: float,
    told: Output | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The weighted losses (1 + terms,), identity first, and the share of right labels (1,).

    student, ask: the networks' forward passes. told: what the teacher says, where that is known already.
    """
    side = options.side
    if side is not None:
        enlarge = trained["network"].size != side
        lr = degrade(hr, side, preset=options.preset, generator=generator, enlarge=enlarge)
    seen = hr if side is None else lr
    if teacher is not None and teacher.itself:
        s, t = sharp_and_small(student(shown(torch.cat([seen, hr]))))
        embedding, answers = torch.cat([s.embedding, t.embedding]), labels.repeat(2)
    else:
        s = student(shown(seen))
        embedding, answers = s.embedding, labels
    if isinstance(head, distributed.Shard):
        identity, right = head(embedding, answers, ramp)
    else:
        logits = head(embedding, answers, ramp=ramp)
        identity = F.cross_entropy(logits.float(), answers)
        right = (logits.detach().argmax(1) == answers).float().mean()
    losses = [identity]
    if teacher is not None and ask is not None:
        if not teacher.itself:
            with torch.no_grad():
                sharp = seen if teacher.low else hr.roll(1, 0) if teacher.shuffled else hr
                t = ask(shown(sharp)) if told is None else told
        views = _views(trained, head, teacher, s, t, labels, chosen)
        with torch.autocast(hr.device.type, enabled=False):
            losses += [term.weight * term.function(*map(_float, views)) for term in terms]
    return torch.stack(losses), right[None]


def sharp_and_small(out: Output) -> tuple[Output, Output]:
    """What a network says of the first and of the second half of a batch."""

    def part(rows: slice) -> Output:
        return Output(out.embedding[rows], *(tuple(x[rows] for x in maps) for maps in out[1:]))

    middle = len(out.embedding) // 2
    return part(slice(middle)), part(slice(middle, None))


def _views(
    trained: nn.ModuleDict,
    head: Head | distributed.Shard,
    teacher: Teacher,
    s: Output,
    t: Output,
    labels: Tensor,
    chosen: Tensor | None,
) -> tuple[View, View]:
    """What the terms see of student and teacher; logits are empty where processes share the classes."""
    plain = target = labels.new_empty(0)
    if not isinstance(head, distributed.Shard):
        with torch.autocast(labels.device.type, enabled=False):  # bfloat16 would round a logit of 30 to an eighth
            with torch.no_grad():
                if teacher.head is not None and len(t.embedding):
                    target = cosine_logits(t.embedding.float(), teacher.head.weight, teacher.head.scale)
            plain = cosine_logits(s.embedding.float(), head.weight, head.scale)
    hinted = trained["hints"](s.features) if "hints" in trained else s.features
    return (
        View(s.embedding, s.features, hinted, s.channel, s.spatial, plain, labels),
        View(t.embedding, t.features, t.features, t.channel, t.spatial, target, labels, chosen),
    )


def cache_teacher(
    trained: nn.ModuleDict,
    teacher: Teacher,
    terms: Sequence[Term],
    images: Callable[[Tensor], Tensor],
    count: int,
    options: Options,
    shown: Callable[[Tensor], Tensor],
    device: torch.device,
    batch: int,
) -> Callable[[Tensor, Tensor | None], Output] | None:
    """`device.said_once` of the teacher, for what the terms read of it; None where that is too much to keep."""
    network, head = cast(Network, trained["network"]), cast("Head | distributed.Shard", trained["head"])

    def answer(x: Tensor) -> Output:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            out: Output = teacher.network(shown(x))
        return out

    trained.eval()
    with torch.no_grad():  # two images are enough to see which fields are read
        x = images(torch.arange(2))
        small = x if network.size == x.shape[-1] else F.interpolate(x, (network.size, network.size))
        labels = torch.zeros(2, dtype=torch.int64, device=device)
        some = None if teacher.chosen is None else teacher.chosen[:2].to(device)
        views = _views(trained, head, teacher, network(shown(small)), teacher.network(shown(x)), labels, some)
        fields = fields_read([term.function for term in terms], *map(_float, views))
    trained.train()
    fields = {{"hinted": "features", "logits": "embedding"}.get(name, name) for name in fields}
    room = torch.cuda.mem_get_info(device)[0] / 3 if device.type == "cuda" else _RESIDENT_BYTES
    found = said_once(answer, images, count, fields, options.mirror, room, batch)
    if found is None or not teacher.shuffled:
        return found
    return lambda index, flip: found(index.roll(1), None if flip is None else flip.roll(1))


def move_to(module: nn.Module, device: torch.device, memory: torch.memory_format) -> nn.Module:
    return module.to(device).to(memory_format=memory)  # type: ignore[call-overload]  # torch's stubs leave it out


def _float(view: View) -> View:
    """The same view in float32: distances of bfloat16 tensors would lose what they measure."""

    def cast(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(cast(item) for item in x)
        return x.float() if x is not None and x.is_floating_point() else x

    return View(*(cast(tuple(item) if isinstance(item, Sequence) else item) for item in view))


def draw_augmentation(count: int, options: Options, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Which of `count` images are mirrored (count,) and how far each is shifted (count,2), from a CPU generator."""
    flip = torch.rand(count, generator=generator) < 0.5 if options.mirror else None
    if not options.shift:
        return flip, None
    return flip, torch.randint(-options.shift, options.shift + 1, (2, count), generator=generator).T


def augment(hr: Tensor, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    """Mirrored (B,) and shifted (B,2) images, (B,3,H,W) -> the same shape."""
    size = hr.shape[-1]
    if flip is not None:
        hr = torch.where(to_device(flip, hr.device)[:, None, None, None], hr.flip(3), hr)
    if shift is not None:
        drawn = to_device(shift.T[..., None], hr.device)
        rows, columns = (torch.arange(size, device=hr.device) + drawn).clamp(0, size - 1)
        each = torch.arange(len(hr), device=hr.device)[:, None, None]
        hr = hr.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return hr


def stream_seed(seed: int, step: int) -> int:
    """The seed of this process's random degradations in a step, its own among those that train together."""
    return int(np.random.SeedSequence([seed, step, distributed.rank()]).generate_state(1)[0])


def checked_labels(faces: Images, head: Head) -> Tensor:
    """The labels of all images; DataError for one that the head has no class for, which a GPU would not say."""
    labels = torch.from_numpy(np.asarray(faces.labels))
    if (largest := int(labels.max())) >= head.classes:
        raise DataError(
            f"label {largest} does not fit a head of {head.classes} classes: labels are 0 to {head.classes - 1}"
        )
    return labels


# Images of more bytes than this stay where they lie when a CPU trains on them.
_RESIDENT_BYTES = 2e9


def fits_on_device(faces: Images, device: torch.device, share: float = 0.3) -> bool:
    """Whether all images take less than that share of the device's free memory (2 GB on a CPU)."""
    room = share * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _RESIDENT_BYTES
    return math.prod(faces.images.shape) < room


def resident_images(faces: Images, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from indices to float images (B,3,H,W) in [0,1] on the device.

    All images are put on the device once where they fit; otherwise each batch is read from where it lies.
    """
    if fits_on_device(faces, device):
        everything = torch.from_numpy(np.array(faces.images[:])).to(device).permute(0, 3, 1, 2)
        return lambda index: everything[to_device(index, device)].float() / 255

    def read(index: Tensor) -> Tensor:
        part = torch.from_numpy(np.ascontiguousarray(faces.images[index.numpy()]))
        if device.type == "cuda":
            part = part.pin_memory().to(device, non_blocking=True)
        return part.permute(0, 3, 1, 2).float() / 255

    return read
