"""What a search compares at a node: the states themselves, x0 predictions, or features of either.

OSS (Pei, Han, Gu, arXiv 2503.21774), section 4.2.2 and Table 4: "x_t-MSE", the default; "x0-MSE" (`X0`); Inception-V3
features of x0 (`Feature`); a perceptual distance by the denoising network on x_t (`Perceptual`).

A weight for every target, such as the one that turns a distance of states into one of x0 at equal predictions of the
noise, cannot change which source of a target is best. x0 is therefore predicted again at the candidate.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from oss_ext.models import Denoiser
from oss_ext.validate import choice, whole_number

NAMES = ("x_t", "x0")
SOURCES = 4
"""How many candidates into each node a cost judges unless told otherwise, those nearest to the teacher's state.
benchmarks/bench_costs.py measures what fewer and more find on the bundled model."""


class Cost(ABC):
    """The mean squared distance between features of a candidate z_ij and of the teacher's state at node j.

    name: for provenance. sources: how many candidates into a node are judged, those of least x_t cost; None: all.
    evaluates: the model is evaluated at every one of them, and once at the teacher's states. clean: there are features
    at the clean node, where no model can be evaluated; without them steps into it are judged by the states, which are
    x0 there. weighted: `features` are numbers of a state, which `dp_search`'s weight can weigh.
    """

    name: str
    sources: int | None
    evaluates: bool
    clean: bool
    weighted: bool = False

    @abstractmethod
    def features(self, states: Tensor, outputs: Tensor | None, t: Tensor) -> Tensor:
        """[n, ...] of states [n, *shape] in flow coordinates at flow times t, float64 [n] on the CPU. outputs: the
        velocities there, 0 at the clean node; None unless `evaluates`."""

    def describe(self) -> dict[str, Any]:
        """What provenance records: JSON values."""
        return {"name": self.name, "sources": self.sources}

    @contextmanager
    def watching(self, model: Denoiser) -> Iterator[Denoiser]:
        """The model to be evaluated during a search, where the cost must see it at work."""
        yield model

    def expect(self) -> None:
        """Called before the model is asked at the very states that `features` are wanted of next."""
        return


class X0(Cost):
    """The x0 prediction x_t - t v of the model at the candidate, against its prediction at the teacher's state."""

    name, evaluates, clean, weighted = "x0", True, False, True

    def __init__(self, sources: int | None = SOURCES) -> None:
        self.sources = _sources(sources)

    def features(self, states: Tensor, outputs: Tensor | None, t: Tensor) -> Tensor:
        assert outputs is not None
        return _x0(states, outputs, t)


class Feature(Cost):
    """What a module makes of x0 predictions at the candidates, as the paper does it, or of the states themselves.

    module: any callable [n, *shape] -> [n, ...]; a `torch.nn.Module` in evaluation mode gets its input on its own
    device and in its own dtype. of: "x0", or "x_t", which needs no evaluations of the model. preprocess: applied before
    the module (resizing, normalisation, a VAE's decoder). layer: take the output of this submodule instead.
    name: for provenance. batch_size: of the module.
    """

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        *,
        of: str = "x0",
        preprocess: Callable[[Tensor], Tensor] | None = None,
        layer: str | None = None,
        sources: int | None = SOURCES,
        name: str | None = None,
        batch_size: int = 64,
    ) -> None:
        if not callable(module):
            raise TypeError(f"module: got {type(module).__name__}, wanted a function or torch.nn.Module")
        if preprocess is not None and not callable(preprocess):
            raise TypeError(f"preprocess: got {type(preprocess).__name__}, wanted a function")
        if isinstance(module, nn.Module) and module.training:
            raise ValueError("module: it is in training mode, wanted evaluation mode (module.eval())")
        self._module, self._preprocess = module, preprocess
        self._layer = None if layer is None else _submodule(module, layer, "layer")
        self._of, self._layer_name = choice("of", of, ("x0", "x_t")), layer
        self.sources, self._rows = _sources(sources), whole_number("batch_size", batch_size, least=1)
        self.name = name or f"{of} features of {getattr(module, '__name__', type(module).__name__)}"
        self.evaluates, self.clean = of == "x0", True

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "of": self._of, "layer": self._layer_name}

    @torch.no_grad()
    def features(self, states: Tensor, outputs: Tensor | None, t: Tensor) -> Tensor:
        seen = states if outputs is None else _x0(states, outputs, t)
        return torch.cat([self._through(part) for part in seen.split(self._rows)])

    def _through(self, x: Tensor) -> Tensor:
        if isinstance(self._module, nn.Module):
            like = next((p for p in self._module.parameters() if p.is_floating_point()), x)
            x = x.to(like)
        x = x if self._preprocess is None else self._preprocess(x)
        if self._layer is None:
            out = self._module(x)
        else:
            caught: list[Tensor] = []
            with _catching(self._layer, caught):
                self._module(x)
            if len(caught) != 1:
                raise ValueError(f"layer: {self._layer_name} ran {len(caught)} times in one call, wanted once")
            out = caught[0]
        if not isinstance(out, Tensor) or not out.is_floating_point():
            raise TypeError(f"module: returned {type(out).__name__}, wanted a floating tensor [{len(x)}, ...]")
        if out.ndim < 1 or len(out) != len(x):
            raise ValueError(f"module: returned shape {list(out.shape)}, wanted [{len(x)}, ...]")
        return out.flatten(1) if out.ndim > 1 else out[:, None]


class Perceptual(Cost):
    """Activations of the denoising network itself, fed the candidate and the teacher's state at the same noise level.

    network: the module that the model evaluates. layers: names of submodules of it, as `named_modules` has them; each
    counts alike, whatever its size. What the network does in several calls for one evaluation, or with a batch several
    times as large (guidance; one condition after the other), is compared together. For `dp_search`, which watches the
    model; not where another loop evaluates it.
    """

    evaluates, clean = True, False

    def __init__(self, network: nn.Module, *layers: str, sources: int | None = SOURCES) -> None:
        if not layers:
            raise ValueError("layers: got none, wanted the name of at least one submodule of the network")
        self._layers = [_submodule(network, layer, "layers") for layer in layers]
        self._names = layers
        self.name = "perceptual"
        self.sources = _sources(sources)
        self._expecting = False
        self._seen: list[Tensor] = []

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "layers": list(self._names)}

    @contextmanager
    def watching(self, model: Denoiser) -> Iterator[Denoiser]:
        caught: list[list[Tensor]] = [[] for _ in self._layers]

        def keep(count: int) -> None:
            if self._expecting:
                self._seen.append(_side_by_side(caught, self._names, count))
            for each in caught:
                each.clear()

        try:
            with ExitStack() as stack:
                for layer, each in zip(self._layers, caught, strict=True):
                    stack.enter_context(_catching(layer, each))
                yield _Watched(model, keep)
        finally:
            self._expecting = False
            self._seen.clear()

    def expect(self) -> None:
        self._expecting = True

    def features(self, states: Tensor, outputs: Tensor | None, t: Tensor) -> Tensor:
        seen, self._seen, self._expecting = self._seen, [], False
        count = sum(map(len, seen))
        if count != len(states):
            raise RuntimeError(
                f"cost: saw activations of {count} evaluations, wanted {len(states)}; perceptual costs work where "
                "dp_search evaluates the model"
            )
        return torch.cat(seen)


class _Watched:
    """A model that says, after each call, how many inputs it had."""

    def __init__(self, model: Denoiser, done: Callable[[int], None]) -> None:
        self._model, self._done = model, done

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        out = self._model.velocity(x, t, cond)
        self._done(len(x))
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _StandIn(Cost):
    """Asks what another cost asks, and looks at nothing."""

    def __init__(self, cost: Cost) -> None:
        self.name, self.sources, self.evaluates, self.clean = cost.name, cost.sources, cost.evaluates, cost.clean

    def features(self, states: Tensor, outputs: Tensor | None, t: Tensor) -> Tensor:
        return states


def check(cost: Any) -> Cost | None:
    """`cost` as `dp_search` takes it; None for "x_t". Raises TypeError or ValueError."""
    if isinstance(cost, Cost):
        return cost
    if not isinstance(cost, str):
        raise TypeError(f"cost: got {type(cost).__name__}, wanted one of {', '.join(NAMES)}, or an oss_ext.costs.Cost")
    return None if choice("cost", cost, NAMES) == "x_t" else X0()


def for_counting(cost: str | Cost) -> str | Cost:
    """What asks for as much as `cost` does, of states of any shape."""
    return cost if isinstance(cost, str) else _StandIn(cost)


def inception_v3(
    weights: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    sources: int | None = SOURCES,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> Feature:
    """The pooled features (2048) of torchvision's Inception-V3 of x0 predictions [n, 3, H, W] in [-1, 1].

    weights: its state dict (`Inception_V3_Weights`), or a .safetensors file of it; never downloaded.
    Raises ImportError without torchvision.
    """
    from safetensors.torch import load_file
    from torchvision.models import inception_v3 as make

    state = dict(weights) if isinstance(weights, Mapping) else load_file(weights)
    network = make(weights=None, init_weights=False, transform_input=True, aux_logits="AuxLogits.fc.weight" in state)
    network.load_state_dict(state)
    network.to(device).eval().requires_grad_(False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def prepare(x: Tensor) -> Tensor:
        x = nn.functional.interpolate((x + 1) / 2, (299, 299), mode="bilinear", antialias=True)
        return (x - mean.to(x).view(-1, 1, 1)) / std.to(x).view(-1, 1, 1)

    return Feature(
        network, preprocess=prepare, layer="avgpool", sources=sources, name="inception_v3", batch_size=batch_size
    )


def _x0(states: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    return states - velocity * t.to(states).view(-1, *[1] * (states.ndim - 1))


def _sources(value: int | None) -> int | None:
    return None if value is None else whole_number("sources", value, least=1)


def _submodule(module: Any, name: str, argument: str) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument}: got {name!r} of {type(module).__name__}, wanted one of a torch.nn.Module")
    known = dict(module.named_modules())
    if not isinstance(name, str) or not name or name not in known:
        some = ", ".join(list(known)[1:9])
        raise ValueError(f"{argument}: got {name!r}, wanted the name of a submodule of the network ({some}, ...)")
    return known[name]


@contextmanager
def _catching(layer: nn.Module, caught: list[Tensor]) -> Iterator[None]:
    """Appends what the layer returns, of several tensors the first, while the context lasts."""

    def hook(module: nn.Module, given: Any, out: Any) -> None:
        first = out[0] if isinstance(out, tuple | list) and out else out
        if not isinstance(first, Tensor):
            raise TypeError(f"layers: {type(module).__name__} returned {type(out).__name__}, wanted a tensor")
        caught.append(first.detach())

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _side_by_side(caught: list[list[Tensor]], names: tuple[str, ...], count: int) -> Tensor:
    """float32 or float64 [count, F]: all that the layers gave for `count` inputs, scaled to count alike in a mean."""
    blocks = []
    for tensors, name in zip(caught, names, strict=True):
        rows = sum(map(len, tensors))
        if rows == 0 or rows % count:
            raise ValueError(f"layers: {name} gave {rows} rows for {count} inputs of the network, wanted a multiple")
        joined = torch.cat([each.flatten(1) for each in tensors])
        joined = joined if joined.dtype == torch.float64 else joined.float()
        blocks.append(joined.unflatten(0, (-1, count)).transpose(0, 1).flatten(1))
    whole = sum(block.shape[1] for block in blocks)
    return torch.cat([block * math.sqrt(whole / (len(blocks) * block.shape[1])) for block in blocks], 1)
