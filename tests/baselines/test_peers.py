"""The baselines beside their authors' code. OSS_PEERS names a folder with checkouts diff-sampler/ (zju-pi),
DM-NonUniform/ (scxue) and LD3/ (vinhsuhi); skipped without."""

from __future__ import annotations

import importlib

import pytest
import torch
from helpers.analytic import mixture
from helpers.peers import checkout

from oss_ext import EDMModel
from oss_ext.baselines import dm, gits
from oss_ext.baselines.dm import objective


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


ONE_PROCESS = {
    "torch_utils": {"__path__": []},
    "torch_utils.distributed": {"print0": lambda *_: None, "get_world_size": lambda: 1, "get_rank": lambda: 0},
    "torch_utils.download_util": {"check_file_by_key": None},
}
SHAPE = (2, 3, 3)


class Net:
    """The network that GITS' code wants: net(x, sigma, class_labels) -> x0."""

    img_channels, img_resolution, label_dim = 2, 3, 0

    def __init__(self, model):
        self.model = model

    def __call__(self, x, sigma, class_labels=None):
        return self.model.fn(x, sigma.expand(len(x)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("metric, theirs", [("deviation", "dev"), ("l2", "l2"), ("l1", "l1")])
def test_gits_nodes(monkeypatch, double, seed, metric, theirs):
    """gits_utils.get_dp_list on one process, 61 nodes, iPNDM-4, float64. Its last node is sigma_min, ours 0: sigma_min
    is tiny."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    low = 1e-6
    model = EDMModel(mixture(seed, shape=SHAPE).edm().fn, low, 80.0)
    settings = {
        "dataset_name": "mixture", "num_warmup": 31, "max_batch_size": 32, "sigma_min": low, "sigma_max": 80.0,
        "num_steps_tea": 61, "schedule_type": "polynomial", "schedule_rho": 7, "afs": False, "metric": theirs,
        "model_source": "edm", "solver_tea": "ipndm", "solver": "ipndm", "max_order": 4, "prompt": None,
    }  # fmt: skip
    grid = torch.linspace(80 ** (1 / 7), low ** (1 / 7), 61, dtype=torch.float64) ** 7
    grid = torch.cat([grid[:-1], grid.new_zeros(1)])
    with checkout("diff-sampler", source="gits-main", stubs=ONE_PROCESS):
        module = importlib.import_module("gits_utils")
        for coefficient in (1.0, 1.15):
            for steps in (3, 5, 8, 10):
                torch.manual_seed(seed)
                nodes = module.get_dp_list(
                    Net(model), torch.device("cpu"), num_steps=steps + 1, coeff=coefficient, **settings
                )
                torch.manual_seed(seed)
                noise = torch.randn(32, *SHAPE)
                ours = gits(
                    model, noise, steps, grid=grid / (1 + grid), metric=metric, coefficient=coefficient
                ).details["nodes"]
                assert ours[steps].tolist() == nodes


def schedule_of(module):
    """The continuous linear schedule of DM's code, of t in 1e-3..1: sigma / alpha from 0.0101 to 152."""
    return module.StepOptim(module.NoiseScheduleVP("linear"))


@pytest.mark.parametrize("count", [3, 4, 5, 7, 8, 12, 20])
def test_dm_objective(count):
    """Its latent form with its hard-coded truncation."""
    with checkout("DM-NonUniform", "scipy"):
        theirs = schedule_of(importlib.import_module("step_optim"))
        low, high = float(theirs.lambda_func(1.0)), float(theirs.lambda_func(1e-3))
        for seed in range(5):
            gaps = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
            lambdas = low + (high - low) * torch.cat([gaps.new_zeros(1), gaps.cumsum(0) / gaps.sum()])
            lambdas[0], lambdas[-1] = low, high
            wanted = float(theirs.sel_lambdas_lof_obj(lambdas[1:-1].numpy(), 1e-3))
            assert float(objective(lambdas, 2, 3)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [5, 10])
def test_dm_minimum(count):
    """Its get_ts_lambdas from uniform time: ours ends no higher."""
    with checkout("DM-NonUniform", "scipy"):
        theirs = schedule_of(importlib.import_module("step_optim"))
        found = theirs.get_ts_lambdas(count, 1e-3, "unif_t")[1]
        low, high = (-found[[-1, 0]]).exp().tolist()
        model = EDMModel(lambda x, sigma: x, low, high)
        ours = dm(model, count, error="latent").details["objective"]
        print(f"\n  {count} steps: theirs {wanted:.6f}, ours {ours:.6f}", end="")
        assert ours <= wanted * (1 + 1e-6)
