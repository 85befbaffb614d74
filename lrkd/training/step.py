"""One training step: augmentation, forward passes, the losses and their sum, the update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrkd.data.degradation import degrade, to_device
from lrkd.distill.losses import cosine_logits
from lrkd.distill.terms import Term, View
from lrkd.models.heads import Head
from lrkd.models.layers import Network, Output
from lrkd.training import distributed
from lrkd.training.acceleration import compile_network
from lrkd.training.batches import Batches, augment, draw_augmentation
from lrkd.training.execution import Execution
from lrkd.training.graphs import RecordedUpdate
from lrkd.training.partial_classes import Shard
from lrkd.training.schedule import Options, Schedule, make_scheduler

# (B,) indices on the device, (B,) bool of which are mirrored or None -> what a teacher answers.
Answers = Callable[[Tensor, Tensor | None], Output]


@dataclass(frozen=True)
class Teacher:
    """A frozen HR network, and what a student learns from it.

    Attributes:
        network: What teaches.
        head: Its class weights, which only terms on logits need.
        shuffled: It sees each image's neighbour in the batch.
        low: It sees the LR images that the student sees.
        itself: It is the student, which is then trained on the sharp images as on the LR ones.
        chosen: (N,) bool, of which training images its features are learned by a term that asks
            (`lrkd.distill.terms.regression`); None: of all.
        terms: The distillation losses; a run needs at least one.
    """

    network: Network
    head: Head | None = None
    shuffled: bool = False
    low: bool = False
    itself: bool = False
    chosen: Tensor | None = None
    terms: tuple[Term, ...] = ()


def normalise(images: Tensor) -> Tensor:
    """Bring images from [0,1] to [-1,1], which every network here takes."""
    return images * 2 - 1


def memory_format(options: Options) -> torch.memory_format:
    """Return in which order weights and images lie."""
    return torch.channels_last if options.channels_last else torch.contiguous_format


def move_to(module: nn.Module, device: torch.device, memory: torch.memory_format) -> nn.Module:
    """Move a module to a device and a memory format, in place."""
    return module.to(device).to(memory_format=memory)  # type: ignore[call-overload]  # torch's stubs leave it out


@dataclass(frozen=True)
class StepLosses:
    """The losses of a batch, before the backward pass.

    Attributes:
        trained: "network", "head" (or a `Shard` of one), and "hints" where a term has hint layers.
        options: How a run computes.
        teacher: Whose terms are computed, if any.
        student: The network's forward pass, compiled or not.
        ask: The teacher's.
    """

    trained: nn.ModuleDict
    options: Options
    teacher: Teacher | None
    student: Callable[[Tensor], Output]
    ask: Callable[[Tensor], Output] | None

    def shown(self, x: Tensor) -> Tensor:
        """Make the images that networks take of images in [0,1]."""
        return normalise(x).contiguous(memory_format=memory_format(self.options))

    def small(self, x: Tensor) -> Tensor:
        """Bring images (B,3,H,W) to the student's own size, as an example of what it takes."""
        size = cast(Network, self.trained["network"]).size
        return x if size == x.shape[-1] else F.interpolate(x, (size, size))

    def small_images(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        """Make of images (B,3,H,W) in [0,1] what the student is shown of them; `generator` draws degradations."""
        side = self.options.side
        if side is None:
            return hr
        enlarge = self.trained["network"].size != side
        return degrade(hr, side, preset=self.options.preset, generator=generator, enlarge=enlarge)

    def __call__(
        self,
        hr: Tensor,
        seen: Tensor,
        labels: Tensor,
        ramp: float | Tensor,
        chosen: Tensor | None = None,
        told: Output | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of a batch; nothing is drawn for them.

        Args:
            hr: (B,3,H,W) in [0,1].
            seen: What `small_images` makes of them.
            labels: (B,) int64.
            ramp: The share of the head's margin that is used.
            chosen: (B,) bool, see `Teacher`.
            told: What the teacher answers, where that is known already.

        Returns:
            The weighted losses (1 + terms,), identity first, and the share of right labels (1,).
        """
        teacher = self.teacher
        if teacher is not None and teacher.itself:
            s, t = halves(self.student(self.shown(torch.cat([seen, hr]))))
            embedding, answers = torch.cat([s.embedding, t.embedding]), labels.repeat(2)
        else:
            s = self.student(self.shown(seen))
            embedding, answers = s.embedding, labels
        identity, right = self.identity(embedding, answers, ramp)
        losses = [identity]
        if teacher is not None and self.ask is not None:
            if not teacher.itself:
                with torch.no_grad():
                    sharp = seen if teacher.low else hr.roll(1, 0) if teacher.shuffled else hr
                    t = self.ask(self.shown(sharp)) if told is None else told
            views = self.views(s, t, labels, chosen)
            with torch.autocast(hr.device.type, enabled=False):
                losses += [term.weight * term.function(*views) for term in teacher.terms]
        return torch.stack(losses), right[None]

    def identity(self, embedding: Tensor, labels: Tensor, ramp: float | Tensor) -> tuple[Tensor, Tensor]:
        """Compute the identity loss () and the share of right labels ()."""
        head = self.trained["head"]
        if isinstance(head, Shard):
            loss, right = head(embedding, labels, ramp)
            return loss, right
        logits = head(embedding, labels, ramp=ramp)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return F.cross_entropy(logits.float(), labels), right

    def views(self, s: Output, t: Output, labels: Tensor, chosen: Tensor | None) -> tuple[View, View]:
        """Make what the terms see of student and teacher; logits are empty where processes share the classes."""
        assert self.teacher is not None
        head, its = self.trained["head"], self.teacher.head
        plain = target = labels.new_empty(0)
        if not isinstance(head, Shard):
            with torch.autocast(labels.device.type, enabled=False):  # bfloat16 would round a logit of 30 to an eighth
                with torch.no_grad():
                    if its is not None and len(t.embedding):
                        target = cosine_logits(t.embedding.float(), its.weight, its.scale)
                plain = cosine_logits(s.embedding.float(), cast(Head, head).weight, cast(Head, head).scale)
        hinted = self.trained["hints"](s.features) if "hints" in self.trained else s.features
        return (
            _float(View(s.embedding, s.features, hinted, s.channel, s.spatial, plain, labels)),
            _float(View(t.embedding, t.features, t.features, t.channel, t.spatial, target, labels, chosen)),
        )


def halves(out: Output) -> tuple[Output, Output]:
    """Split what a network returns for a batch into that of its first and of its second half."""

    def part(rows: slice) -> Output:
        return Output(out.embedding[rows], *(tuple(x[rows] for x in maps) for maps in out[1:]))

    middle = len(out.embedding) // 2
    return part(slice(middle)), part(slice(middle, None))


def _float(view: View) -> View:
    """The same view in float32: distances of bfloat16 tensors would lose what they measure."""

    def convert(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(convert(item) for item in x)
        return x.float() if x is not None and x.is_floating_point() else x

    return View(*(convert(tuple(item) if isinstance(item, Sequence) else item) for item in view))


class TrainingStep:
    """A step of a run: draws its augmentation, computes the losses and updates the weights.

    Attributes:
        trained: What is trained, see `StepLosses`.
        optimizer, scheduler, generator: The state of the training beside the weights.
        losses: What is minimised.
    """

    def __init__(
        self,
        trained: nn.ModuleDict,
        teacher: Teacher | None,
        schedule: Schedule,
        options: Options,
        execution: Execution,
        steps_an_epoch: int,
    ) -> None:
        self.trained, self.schedule, self.options, self.execution = trained, schedule, options, execution
        self.device, self.steps = torch.device(execution.device), schedule.epochs * steps_an_epoch
        self.generator = torch.Generator().manual_seed(execution.seed)
        self.optimizer = torch.optim.SGD(
            trained.parameters(),
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
            fused=execution.speed.uses("fused", self.device),
        )
        self.scheduler = make_scheduler(self.optimizer, schedule, self.steps, steps_an_epoch)
        student = cast(Network, trained["network"])
        self.losses = StepLosses(trained, options, teacher, student, None if teacher is None else teacher.network)
        self._chosen = None if teacher is None or teacher.chosen is None else teacher.chosen.to(self.device)
        self._amp = options.precision == "bfloat16"

    def start(self, batches: Batches, answers: Answers | None, compiled: bool, recorded: bool) -> None:
        """Make ready for the first step, when all weights are what they are to be.

        Args:
            batches: What is trained on.
            answers: What the teacher answers, where that is stored.
            compiled: Whether to compile the networks.
            recorded: Whether to record a step as a graph of the GPU's and replay it.
        """
        losses, teacher = self.losses, self.losses.teacher
        self._batches, self._answers = batches, answers
        if compiled:
            x = batches.example()
            student = compile_network(self.trained["network"], losses.shown(losses.small(x)), self._amp)
            losses = replace(losses, student=student)
            if teacher is not None and answers is None and not teacher.itself:
                losses = replace(losses, ask=compile_network(teacher.network, losses.shown(x), self._amp))
        head = self.trained["head"]
        alone = head.weight if isinstance(head, Shard) else None
        self._compute = distributed.data_parallel(self.trained, losses, alone)
        self._recorded = RecordedUpdate(self._update, self.optimizer) if recorded else None

    def ramp(self, step: int) -> float:
        """Return the share of the margin that the head uses in a step, counted from 0."""
        return min(1.0, step / (self.schedule.ramp * self.steps)) if self.schedule.ramp else 1.0

    def __call__(self, step: int, index: Tensor, images: Tensor) -> Tensor:
        """Take a step.

        Args:
            step: The number of steps done before.
            index: (B,) indices of the images.
            images: (B,3,H,W) in [0,1].

        Returns:
            The losses and the share of right labels (1 + terms + 1,).
        """
        share, device = self._batches.share, self.device
        drawn = draw_augmentation(self._batches.batch, self.options, self.generator)
        flip, shift = (None if x is None else x[share] for x in drawn)
        hr, here = augment(images, flip, shift), to_device(index, device)
        chosen = None if self._chosen is None else self._chosen[here]
        told = None
        if self._answers is not None:
            told = self._answers(here, None if flip is None else to_device(flip, device))
        own = self.generator
        if distributed.world_size() > 1:  # each process draws its own random degradations
            seed = np.random.SeedSequence([self.execution.seed, step, distributed.rank()]).generate_state(1)[0]
            own = torch.Generator().manual_seed(int(seed))
        seen = self.losses.small_images(hr, own)
        given = (hr, seen, self._batches.labels[here], self.ramp(step), chosen, told)
        values = self._update(*given) if self._recorded is None else self._recorded(*given)
        self.scheduler.step()
        return values

    def _update(self, hr: Tensor, seen: Tensor, labels: Tensor, *more: Any) -> Tensor:
        """Compute the losses and change the weights; what a graph records. -> (1 + terms + 1,)"""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._amp):
            losses, right = self._compute(hr, seen, labels, *more)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        return torch.cat([losses.detach(), right])
