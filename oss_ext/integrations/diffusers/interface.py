"""What diffusers' pipelines want of a scheduler, without a path of its own: the base of the two that have one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from oss_ext.evaluate import state_dtype
from oss_ext.integrations.diffusers.family import Family


class StepOutput(NamedTuple):
    """As diffusers' own: by name or by index."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class PipelineScheduler:
    """Stands where a pipeline's scheduler stood. What it does not define (config, alphas_cumprod, ...) is asked of the
    scheduler that it replaces, `native`.

    The latents in the loop are the network's own input, so `scale_model_input` has nothing to do.
    """

    order = 1

    def __init__(self, native: Any, family: Family) -> None:
        self.native, self.family = native, family
        self.timesteps = torch.zeros(0)
        self.sigmas = torch.zeros(1)
        self.noised = 0  # how often noise was added to something, and how often the first latents' scale was read
        self.scale_reads = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("native", "family") or name.startswith("__"):  # copies ask before there is anything
            raise AttributeError(name)
        return getattr(self.native, name)

    def __len__(self) -> int:
        return self.family.train_steps

    @property
    def start_scale(self) -> float:
        """What the pipeline's unit noise is multiplied with before the first evaluation."""
        raise NotImplementedError

    @property
    def init_noise_sigma(self) -> float:
        self.scale_reads += 1
        return self.start_scale

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **_: Any,
    ) -> None:
        raise NotImplementedError

    def set_begin_index(self, begin_index: int = 0) -> None:
        raise NotImplementedError

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *_: Any, **__: Any) -> Tensor:
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *_: Any,
        return_dict: bool = True,
        **__: Any,
    ) -> StepOutput | tuple[Tensor, ...]:
        """The next latents, and the x0 prediction. model_output, sample: [batch, ...]; of an output with twice the
        channels the second half, a variance, is not used. Other arguments (eta, generator, ...) are those of samplers
        with noise, and do nothing."""
        found = self.advance(without_variance(model_output, sample), timestep, sample)
        return found if return_dict else tuple(found)

    def advance(self, output: Tensor, timestep: Any, sample: Tensor) -> StepOutput:
        raise NotImplementedError

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        raise NotImplementedError

    def scale_noise(self, sample: Tensor, timestep: Any = None, noise: Tensor | None = None) -> Tensor:
        """`add_noise` under the name that flow-matching pipelines call it by."""
        if noise is None:
            raise ValueError("noise: got None, wanted a tensor like the sample")
        return self.add_noise(sample, noise, timestep)


def without_variance(output: Tensor, sample: Tensor) -> Tensor:
    """Networks with learned variance return it behind the prediction, along the channels."""
    if output.ndim == sample.ndim >= 2 and output.shape[1] == 2 * sample.shape[1]:
        return output[:, : sample.shape[1]]
    return output


def wide(x: Tensor) -> Tensor:
    """In the dtype that states are kept in."""
    return x.to(state_dtype(x.dtype))


def as_told(family: Family, told: Tensor, device: Any) -> Tensor:
    """Timesteps as the loop holds them: int64 where a table's are whole, else float32."""
    table = family.alphas_cumprod is not None
    if table and bool((told == told.round()).all()):
        return told.long().to(device)
    return told.float().to(device)
