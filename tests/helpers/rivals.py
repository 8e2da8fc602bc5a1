"""The authors' code of GITS, LD3, DS-Solver and DyWeight, run on any model. It wants OSS_PEERS; see `helpers.peers`."""

from __future__ import annotations

import importlib

import torch
from helpers.peers import checkout

from oss_ext import EDMModel, Schedule, zoo

ONE_PROCESS = {
    "torch_utils": {"__path__": []},
    "torch_utils.distributed": {"print0": lambda *_: None, "get_world_size": lambda: 1, "get_rank": lambda: 0},
    "torch_utils.download_util": {"check_file_by_key": None},
}
LD3_STUBS = {
    "lpips": {},
    "imageio": {},
    "yaml": {},
    "PIL": {"__path__": []},
    "matplotlib": {"__path__": []},
    "matplotlib.pyplot": {},
}
LOW = 1e-6  # their last sigma, where ours is 0


def photo32():
    """The bundled model without a class, float64, as the denoiser in x0 + sigma eps that their code takes, and its
    samples' shape."""
    flow = zoo.load("photo32", dtype=torch.float64)

    def fn(x, sigma):
        t = sigma / (1 + sigma)
        inner = x / (1 + sigma).reshape(-1, 1, 1, 1)
        label = torch.full((len(x),), flow.network.null_label)
        return inner - t.reshape(-1, 1, 1, 1) * flow.network(inner, t, label)

    return EDMModel(fn, LOW, 80.0), flow.shape


class Net:
    """The network that GITS' code wants: net(x, sigma, class_labels) -> x0."""

    label_dim = 0

    def __init__(self, model, shape):
        self.model = model
        self.img_channels, self.img_resolution, _ = shape

    def __call__(self, x, sigma, class_labels=None):
        return self.model.fn(x, sigma.expand(len(x)))


def gits_grid(count):
    """Its nodes as flow times, the last 0."""
    sigma = torch.linspace(80 ** (1 / 7), LOW ** (1 / 7), count, dtype=torch.float64) ** 7
    return torch.cat([sigma[:-1], sigma.new_zeros(1)]) / (1 + sigma)


def gits_nodes(patch, model, shape, samples, count, cases, metric, seed):
    """{(steps, coefficient): nodes} of gits_utils.get_dp_list on one process, with `count` nodes and iPNDM-4. patch:
    a pytest.MonkeyPatch."""
    patch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    settings = {
        "dataset_name": "any", "num_warmup": samples - 1, "max_batch_size": samples, "sigma_min": LOW,
        "sigma_max": 80.0, "num_steps_tea": count, "schedule_type": "polynomial", "schedule_rho": 7, "afs": False,
        "metric": metric, "model_source": "edm", "solver_tea": "ipndm", "solver": "ipndm", "max_order": 4,
        "prompt": None,
    }  # fmt: skip
    found = {}
    with checkout("diff-sampler", source="gits-main", stubs=ONE_PROCESS):
        module = importlib.import_module("gits_utils")
        for steps, coefficient in cases:
            torch.manual_seed(seed)
            found[steps, coefficient] = module.get_dp_list(
                Net(model, shape), torch.device("cpu"), num_steps=steps + 1, coeff=coefficient, **settings
            )
    return found


def ld3_loss_and_slope(model, noise, target, raw):
    """Its loss with DPM-Solver++ (order 2) along the times of `raw` [k + 1], and the loss's slope in `raw`."""
    raw = raw.clone().requires_grad_(True)

    def epsilon(x, sigma, condition=None, unconditional=None):
        return (x - model.fn(x, sigma.reshape(-1).expand(len(x)))) / sigma.reshape(-1, 1, 1, 1)

    with checkout("LD3", "scipy", stubs=LD3_STUBS):
        schedule = importlib.import_module("noise_schedulers").NoiseScheduleVE(sigma_min=LOW)
        wrap = importlib.import_module("trainer").discretize_model_wrapper
        sampler = importlib.import_module("samplers.dpm_solverpp").DPM_SolverPP(schedule)
        distance = importlib.import_module("utils").compute_distance_between_two
        sigma, _ = wrap(raw, 0 * raw, schedule.lambda_max, schedule.lambda_min, schedule, "lambda")()
        end = sampler.sample_simple(epsilon, schedule.prior_transformation(noise), sigma, sigma, order=2)
        loss = distance(target, end, noise.shape[1], noise.shape[2]).mean()
        return loss.detach(), torch.autograd.grad(loss, raw)[0]


@torch.no_grad()
def ds_solver_states(velocity, noise, weights, lengths):
    """[B, k, ...] of NeuralSolverSampler with the raw weights [k, k] and the step lengths [k], and the schedule with
    ours. velocity(x, t); its own time runs from 0, noise, to 1."""
    steps = len(lengths)
    labels = torch.zeros(len(noise), dtype=torch.long)

    def net(x, t, labels):
        return -velocity(x, 1 - t)

    with checkout("NeuralSolver"):
        kind = importlib.import_module("src.diffusion.flow_matching.neuralsolver").NeuralSolverSampler
        sampler = kind(steps, object(), object(), null_class=0, guidance_fn=lambda out, _: out.chunk(2)[1])
        sampler._raw_solver_coeffs.data.copy_(weights)
        sampler._raw_timedeltas.data.copy_(lengths)
        theirs = torch.stack(sampler(net, noise, labels, return_x_trajectory=True), 1)
    t = torch.cat([torch.ones(1), 1 - lengths.cumsum(0)])
    t[-1] = 0
    rows = importlib.import_module("oss_ext.baselines.ds_solver").rows_of(weights, t)
    return theirs, Schedule(t, rows, "ds_solver", t, t[:-1])


@torch.no_grad()
def dyweight_states(model, noise, weights, factors=None):
    """The end [B, ...] of dyweight_sampler from sigma 80, the schedule with ours, and the levels that its network is
    told with those that ours names."""
    steps, levels = len(weights), []

    def net(x, sigma, class_labels=None):
        levels.append(float(sigma))
        return model.fn(x, sigma.reshape(-1).expand(len(x)))

    with checkout("DyWeight", stubs=ONE_PROCESS):
        sampler = importlib.import_module("solvers").dyweight_sampler
        theirs = sampler(
            net, noise, num_steps=steps + 1, sigma_min=LOW, sigma_max=80.0, hybrid_weights=weights, t_scale=factors
        )
    sigma = torch.linspace(80 ** (1 / 7), LOW ** (1 / 7), steps + 1) ** 7
    t = sigma / (1 + sigma)
    t[-1] = 0
    own = importlib.import_module("oss_ext.baselines.dyweight")
    true = own.true_times(weights, t, 0.0)
    reached = true[:-1] / (1 - true[:-1])
    schedule = Schedule(true, own.rows_of(weights, true, t), "dyweight", true, true[:-1], "edm", carries="epsilon")
    return theirs, schedule, (torch.tensor(levels), reached * (1 if factors is None else factors))
