"""Students that adapt to the faces they meet: batch-norm statistics from unlabelled test batches (AIRD's FaceBN).

A re-derivation from the abstract of arXiv 2409.02049, not the authors' method: the abstract says that a student adapts
its batch normalisation online to the test faces; equations, momentum and code are not public. Here it works layer by
layer in one forward pass, so that a layer's batch has gone through all layers before it as they are adapted:

    mu = (1-a) mu_source + a mu_batch,   var = (1-a) var_source + a var_batch.

mu_source and var_source are the layer's buffers (var_source unbiased, as torch keeps it); mu_batch and var_batch run
over all rows and pixels of the batch, and var_batch is the biased one, 1/n, by which torch normalises in training. The
variances are mixed as they are: the spread between the two means, a (1-a) (mu_source - mu_batch)^2, is not added.

It is transductive: a face's features depend on the other faces of its batch, online on all batches before, so report
with and without it, over batch sizes and orders. A row is what the network sees: `lrkd.evaluation.embedding.embed` with
mirror images gives it two an image. Buffers, parameters and generators are never written: nothing can be left behind.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lrkd.errors import ConfigError


class Moments(NamedTuple):
    """The mean and the variance of each channel, (C,) both."""

    mean: Tensor
    var: Tensor

    def toward(self, other: "Moments", weight: float) -> "Moments":
        """Mix (1 - weight) of these with weight of the other's; 0 and 1 give either to the bit."""
        mean, var = (mine.to(its) for mine, its in zip(self, other, strict=True))
        return Moments(mean.lerp(other.mean, weight), var.lerp(other.var, weight))


def moments(x: Tensor) -> Moments:
    """Compute mean and biased variance (1/n) of each channel, (B,C,...) -> (C,), (C,), in float32 or better.

    Through the running statistics of torch's batch norm: 100 times as fast on a CPU in channels_last as its var_mean.
    """
    wide, count = x.detach().to(torch.promote_types(x.dtype, torch.float32)), x.numel() // x.shape[1]
    mean, var = wide.new_zeros(2, x.shape[1])
    if count == 1:  # which torch refuses
        return Moments(wide.flatten(), var)
    F.batch_norm(wide, mean, var, training=True, momentum=1.0)
    return Moments(mean, var * ((count - 1) / count))


class Adapted(ABC):
    """A context in which a model's batch-norm layers normalise with other statistics; a subclass says which.

    Inside, the model is in evaluation mode. Gradients do not flow through the statistics. Afterwards, also after an
    exception, the model is what it was: layers, modes, and all bits. Copy the model outside. Layers that keep no
    statistics are left alone, and so is a model without batch norm. Entered again, it starts anew.

    Args:
        model: The network.

    Raises:
        ConfigError: On entering a model that is adapted already, and on training one inside.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modes: list[tuple[nn.Module, bool]] = []
        self._layers: dict[str, _BatchNorm] = {}
        self._start()

    def _start(self) -> None:
        self._moved: dict[str, list[Tensor]] = {}
        self._kept: Counter[str] = Counter()

    @abstractmethod
    def _statistics(self, name: str, x: Tensor, source: Moments) -> Moments:
        """Return what layer `name` normalises the batch x with; `source` itself where nothing moves."""

    def __enter__(self) -> Self:
        layers = {name: m for name, m in self.model.named_modules() if isinstance(m, _BatchNorm)}
        layers = {name: layer for name, layer in layers.items() if layer.running_mean is not None}
        if self._modes or any("forward" in vars(layer) for layer in layers.values()):
            raise ConfigError(
                "model: expected one that is not adapted, but its batch norm is already; leave that context first"
            )
        self._start()
        self._layers, self._modes = layers, [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        for name, layer in layers.items():
            vars(layer)["forward"] = partial(self._forward, name, layer)
        return self

    def __exit__(self, *_: Any) -> None:
        for layer in self._layers.values():
            vars(layer).pop("forward")
        for module, training in self._modes:
            module.training = training
        self._modes = []

    def _forward(self, name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
        if layer.training:
            raise ConfigError(
                f"model: expected evaluation mode while adapted, but {name or 'it'} is in training; call eval()"
            )
        source = Moments(cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var))
        with torch.inference_mode(False), torch.no_grad():  # what online forms keep must serve outside as well
            used = self._statistics(name, x, source)
            if used is not source:
                shift = (used.mean - source.mean).square() / (source.var + layer.eps)
                ratio = ((used.var + layer.eps) / (source.var + layer.eps)).log()
                self._moved.setdefault(name, []).append(torch.stack([shift.mean(), ratio.mean()]))
        if used is source:
            self._kept[name] += 1
            return type(layer).forward(layer, x)
        mean, var = used.mean.to(source.mean), used.var.to(source.var)
        return F.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)

    def table(self) -> pd.DataFrame:
        """Tabulate how far the statistics moved, a row a layer in the model's order, inside and afterwards.

        With small batches most of the shift is noise of the batch, not of the domain.

        Returns:
            `layer`, `channels`; `batches`, normalised with other statistics than the source's, and `kept`, with those;
            `shift` of the mean, in the source's standard deviations, root mean square over channels and `batches`;
            `ratio` of the variance to the source's, geometric mean over both. Both with the layer's eps in the
            variances; 0 and 1 where nothing moved.
        """
        rows = []
        for name, layer in self._layers.items():
            moved = [value.double().cpu() for value in self._moved.get(name, [])]
            shift, ratio = torch.stack(moved).mean(0) if moved else torch.zeros(2)
            rows.append((name, layer.num_features, len(moved), self._kept[name], shift.sqrt(), ratio.exp()))
        found = pd.DataFrame(rows, columns=["layer", "channels", "batches", "kept", "shift", "ratio"])
        return found.astype({"shift": float, "ratio": float})


class FaceBN(Adapted):
    """AIRD's adaptation as this module derives it: `with FaceBN(model, 0.3): features = embed(model, images)`.

    Args:
        model: The network.
        momentum: a in [0,1]; 0 is the source model to the bit, 1 pure batch statistics, as in torch's training mode.
        online: The mixture replaces the source for the next batch: s <- (1-a) s + a batch, each batch normalised with
            itself already in s, in the order in which the batches come.
        least: Batches of fewer rows change nothing: they are normalised with the source's statistics, or online with
            those of the batches before. 1: no guard; the default is what `lrkd adapt` chose on validation faces for
            momentum 0.3.

    Raises:
        ConfigError: `momentum` or `least` is out of range.
    """

    def __init__(self, model: nn.Module, momentum: float, *, online: bool = False, least: int = 128) -> None:
        if not 0 <= momentum <= 1:
            raise ConfigError(f"momentum: expected 0 (the source's statistics) to 1 (the batch's), got {momentum}")
        if least < 1:
            raise ConfigError(f"least: expected 1 row (no guard) or more, got {least}")
        self.momentum, self.online, self.least = momentum, online, least
        super().__init__(model)

    def _start(self) -> None:
        super()._start()
        self._state: dict[str, Moments] = {}
        self._rows: Counter[str] = Counter()

    def _weight(self, rows: int, before: int) -> float:
        """Return a for a batch of `rows`, online after `before` rows."""
        return self.momentum

    def _statistics(self, name: str, x: Tensor, source: Moments) -> Moments:
        state = self._state.get(name, source)
        if len(x) < self.least or not (weight := self._weight(len(x), self._rows[name])):
            return state
        used = state.toward(moments(x), weight)
        if self.online:
            self._state[name], self._rows[name] = used, self._rows[name] + len(x)
        return used


class SourcePrior(FaceBN):
    """Schneider et al. 2020 (arXiv 2006.16971): the source counts as N rows, so a = n / (N + n) for a batch of n rows.

    Args:
        model: The network.
        prior: N; 0 is pure batch statistics, inf the source.
        online: n counts the rows of all batches so far.
        least: As in `FaceBN`; the prior is the guard against small batches, so the default is none.

    Raises:
        ConfigError: `prior` or `least` is out of range.
    """

    def __init__(self, model: nn.Module, prior: float, *, online: bool = False, least: int = 1) -> None:
        if not prior >= 0:
            raise ConfigError(f"prior: expected 0 rows or more, got {prior}")
        self.prior = prior
        super().__init__(model, 1.0, online=online, least=least)

    def _weight(self, rows: int, before: int) -> float:
        return rows / (self.prior + before + rows)


class AdaBN(Adapted):
    """AdaBN (arXiv 1603.04779): statistics of a whole test set, so that features do not depend on the batch any more.

    `with AdaBN(model, lambda: embed(model, images)): features = embed(model, images)`. Variances are biased, with the
    spread between batches.

    Args:
        model: The network.
        see: Runs the set through the model once, in batches of any size; called `passes` times on entering, after
            which the statistics are fixed.
        passes: 1 normalises each batch with itself while it is counted, the usual practice. Each further pass
            normalises with the statistics of the pass before: after k passes the first k layers have exactly those of
            the set as one batch, and with as many passes as layers it is AdaBN layer by layer, whatever the batches and
            their order.

    Raises:
        ConfigError: `passes` is below 1.
    """

    def __init__(self, model: nn.Module, see: Callable[[], object], *, passes: int = 1) -> None:
        if passes < 1:
            raise ConfigError(f"passes: expected 1 or more, got {passes}")
        self.see, self.passes = see, passes
        super().__init__(model)

    def __enter__(self) -> Self:
        super().__enter__()
        self._used: dict[str, Moments] = {}
        self._pool: dict[str, tuple[int, Moments]] | None = None
        try:
            for _ in range(self.passes):
                self._pool = {}
                self.see()
                self._used = {name: pooled for name, (_, pooled) in self._pool.items()}
        except BaseException:
            self.__exit__()
            raise
        self._pool = None
        self._start()
        return self

    def _statistics(self, name: str, x: Tensor, source: Moments) -> Moments:
        if self._pool is None or not len(x):
            return self._used.get(name, source)
        batch, count = moments(x), x.numel() // x.shape[1]
        before, pooled = self._pool.get(name, (0, batch))
        weight = count / (before + count)
        spread = weight * (1 - weight) * (batch.mean - pooled.mean).square()
        mixed = pooled.toward(batch, weight)
        self._pool[name] = before + count, Moments(mixed.mean, mixed.var + spread)
        return self._used.get(name, batch)
