"""Distillation losses: functions of tensors and a distance; `terms.Term` names one with its weight, as data.

Every function averages over the batch. Student tensors come first, teacher tensors second; the teacher's carry no
gradient (the caller runs it under `torch.no_grad`). Shapes: B images, D numbers an embedding, C channels of a map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lrkd.distill.distances import Distance, cosine, lp, unit


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], distance: Distance) -> Tensor:
    """Average `distance(S_l, T_l)` over stages l and the batch.

    L_point of F-SKD (arXiv 2303.04681) with `cosine`; FitNet (arXiv 1412.6550) with `lp(2)`.

    Args:
        student: (B,C,h,w) a stage.
        teacher: As many, of the same shapes.
        distance: One number a sample.

    Returns:
        ().
    """
    return torch.stack([distance(s, t).mean() for s, t in zip(student, teacher, strict=True)]).mean()


def relation_map(x: Tensor, y: Tensor) -> Tensor:
    """Compute `R_XY = X^T Y` of F-SKD (arXiv 2303.04681), position by position, `X = x / |x|_F` and Y alike.

    Args:
        x: (B,C,h,w).
        y: (B,C,h,w).

    Returns:
        (B,hw,hw).
    """
    x, y = (unit(z).view(*z.shape[:2], -1) for z in (x, y))  # (B,C,hw)
    return x.transpose(1, 2) @ y


def partners(teacher: Tensor, labels: Tensor) -> Tensor:
    """Find each sample's partner for `cross_loss`.

    The nearest other sample of the same identity whose teacher cosine lies in (0, .99]; where the batch has none, the
    next sample (batches are shuffled, so this is the in-batch shuffle of arXiv 2303.04681's code).

    Args:
        teacher: (B,D) embeddings.
        labels: (B,).

    Returns:
        (B,) indices into the batch.
    """
    similarity = F.normalize(teacher, dim=1) @ F.normalize(teacher, dim=1).T
    wanted = (labels[:, None] == labels[None]) & (similarity > 0) & (similarity <= 0.99)
    wanted.fill_diagonal_(False)
    best = similarity.masked_fill(~wanted, -2).argmax(1)
    following = torch.arange(len(labels), device=labels.device).roll(-1)
    return torch.where(wanted.any(1), best, following)


def cross_loss(student: Tensor, teacher: Tensor, partner: Tensor, distance: Distance = cosine) -> Tensor:
    """Compute L_cross of F-SKD (arXiv 2303.04681) on one stage.

    `[d(R_HH, R_HL) + d(R_HH, R_LH)] / 2 + d(R_HH, R_LL)`, H the teacher's map, L the student's, R the `relation_map`
    from a sample to its partner.

    Args:
        student: (B,C,h,w).
        teacher: (B,C,h,w).
        partner: (B,) indices, of `partners`.
        distance: The d of the formula.

    Returns:
        ().
    """
    s2, t2 = student[partner], teacher[partner]
    target = relation_map(teacher, t2)
    mixed = distance(relation_map(teacher, s2), target) + distance(relation_map(student, t2), target)
    return (mixed / 2 + distance(relation_map(student, s2), target)).mean()


def attention_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    distance: Distance = cosine,
    centred: bool = False,
    constant: bool = False,
) -> Tensor:
    """Sum `distance(map_S, map_T)` over blocks, averaged over the batch: A-SKD (arXiv 2209.14498).

    Args:
        student: Pre-sigmoid attention maps, (B,C,1,1) or (B,1,h,w) a block.
        teacher: As many, of the same shapes.
        distance: One number a sample.
        centred: Take the batch mean off both maps first, so that a map common to all images carries no loss (ours).
        constant: Put the batch mean of the teacher's maps in place of each, so that nothing else carries one (ours).

    Returns:
        ().
    """

    def centre(x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True) if centred else x

    def target(x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).expand_as(x) if constant else x

    pairs = zip(student, teacher, strict=True)
    return torch.stack([distance(centre(s), centre(target(t))).mean() for s, t in pairs]).sum()


def activation_attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over stages the squared error of unit-norm energy maps `sum_c F_c^2`: AT (arXiv 1612.03928, p = 2).

    Args:
        student: (B,C,h,w) a stage.
        teacher: As many, of the same h and w.

    Returns:
        ().
    """

    def energy(x: Tensor) -> Tensor:
        return F.normalize(x.square().mean(1).flatten(1), dim=1)

    return torch.stack([lp(2)(energy(s), energy(t)).mean() for s, t in zip(student, teacher, strict=True)]).sum()


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Compute `T^2 KL(softmax(teacher / T) || softmax(student / T))` (arXiv 1503.02531).

    Args:
        student: (B,classes).
        teacher: (B,classes).
        temperature: The T of the formula.

    Returns:
        ().
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def _pairwise(x: Tensor) -> Tensor:
    """(B,D) -> (B,B) Euclidean distances with a finite derivative at zero and a zero diagonal."""
    squared = (x[:, None] - x[None]).square().sum(2)
    return squared.clamp_min(1e-12).sqrt() * (1 - torch.eye(len(x), device=x.device, dtype=x.dtype))


def _off_diagonal(x: Tensor) -> Tensor:
    """(B,B) -> (B,B-1) without the diagonal; a mask would make a GPU wait for how many there are."""
    count = len(x)
    return x.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute RKD-D: the Huber loss of pairwise distances over their batch mean (arXiv 1904.05068, eq. 6).

    Args:
        student: (B,D).
        teacher: (B,D), of any other D.

    Returns:
        ().
    """

    def scaled(x: Tensor) -> Tensor:
        distances = _pairwise(x)
        return distances / _off_diagonal(distances).mean()

    return F.smooth_l1_loss(scaled(student), scaled(teacher))


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute RKD-A: the Huber loss of the cosines of all triangles' angles (arXiv 1904.05068, eq. 9).

    Args:
        student: (B,D).
        teacher: (B,D), of any other D.

    Returns:
        ().
    """

    def angles(x: Tensor) -> Tensor:
        edges = F.normalize(x[None] - x[:, None], dim=2)  # (B,B,D)
        return edges @ edges.transpose(1, 2)  # (B,B,B)

    return F.smooth_l1_loss(angles(student), angles(teacher))


def relation_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Compute the relation level of AIRD: `KL(p(T,T) || p(S,S)) + KL(p(T,T) || p(S,T))`, averaged over the batch.

    `p(X,Y)`: the row softmaxes of the in-batch cosines of X with Y over the temperature, without the diagonal: to whom
    a sample is how close. S with S is the student's own geometry, S with T its place in the teacher's. A re-derivation
    from the abstract of arXiv 2409.02049, which gives no equation; a batch of one has no relation and no loss.

    Args:
        student: S, (B,D).
        teacher: T, (B,D).
        temperature: Above 0.

    Returns:
        ().
    """
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)

    def rows(x: Tensor, y: Tensor) -> Tensor:
        return F.log_softmax(_off_diagonal(x @ y.T / temperature), dim=1)

    target = rows(t, t)
    mine, crossed = (F.kl_div(rows(s, y), target, reduction="batchmean", log_target=True) for y in (s, t))
    return mine + crossed


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute SP: `|G_S - G_T|_F^2 / B^2` of row-normalised (B,B) Gram matrices (arXiv 1907.09682, eq. 4).

    Args:
        student: (B,...).
        teacher: (B,...), of any other shape.

    Returns:
        ().
    """

    def gram(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return F.normalize(flat @ flat.T, dim=1)

    return (gram(student) - gram(teacher)).square().mean()


def octuplet_loss(low: Tensor, high: Tensor, labels: Tensor, margin: float = 0.5) -> Tensor:
    """Add up four batch-hard triplet losses across resolutions: the octuplet loss (arXiv 2207.06726).

    Anchors and their candidates are sharp and sharp, sharp and small, small and sharp, small and small; of each the
    mean over anchors of `max(0, margin + |a - farthest of the same person| - |a - nearest of another|)`. Embeddings are
    brought to unit length first. Ours: across resolutions an image's other form is of the same person too (a batch
    drawn at random has few second images of a person); an anchor without a positive or a negative costs nothing.

    Args:
        low: (B,D), of the small images.
        high: (B,D), of the same images when sharp.
        labels: (B,).
        margin: In units of the distance between unit vectors.

    Returns:
        ().
    """
    same = labels[:, None] == labels[None]
    low, high = F.normalize(low, dim=1), F.normalize(high, dim=1)

    def triplets(a: Tensor, b: Tensor, positive: Tensor) -> Tensor:
        distance = (2 - 2 * a @ b.T).clamp_min(1e-8).sqrt()
        far = distance.masked_fill(~positive, -torch.inf).amax(1)
        near = distance.masked_fill(same, torch.inf).amin(1)
        usable = positive.any(1) & ~same.all(1)
        return torch.where(usable, F.relu(margin + far - near), 0).mean()

    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    within = triplets(high, high, others) + triplets(low, low, others)
    return within + triplets(high, low, same) + triplets(low, high, same)


def cosine_logits(embedding: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Compute a margin head's logits without the margin.

    Args:
        embedding: (B,D).
        weight: (classes,D), the head's.
        scale: What the cosines are multiplied by.

    Returns:
        (B,classes).
    """
    return scale * F.normalize(embedding, dim=1) @ F.normalize(weight, dim=1).T
