"""Refinement of schedules: never worse, clearly better where there is something to gain, exact where it starts."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers.analytic import ddpm_table, mixture, normal
from helpers.counting import Counting

from oss_ext import FlowModel, Schedule, dp_search, grids, refine, solvers
from oss_ext.models import EpsilonModel
from oss_ext.mover import nearer
from oss_ext.objective import level, steepness
from oss_ext.progress import Counter
from oss_ext.refine_gradient import Problem, gradient, level_of, polish
from oss_ext.refine_knobs import Knobs
from oss_ext.teacher import DEFAULT_SOLVER

MIXTURE = mixture(1, std=0.6)
NOISE = normal(32, 4, seed=1)
FINE = torch.linspace(1, 0, 41, dtype=torch.float64)
EVERY = ("times", "coefficients", "noise_scale", "network_t")
METHODS = ("nodes", "gradient")
TEACHER = {"teacher_steps": 40}
SHORT = {**TEACHER, "iterations": 30}


def teacher_of(model, noise=NOISE, grid=FINE):
    return Schedule.from_grid(grid, DEFAULT_SOLVER, model).sample(model, noise)


def error_of(schedule, model, noise=NOISE, target=None):
    target = teacher_of(model, noise) if target is None else target
    return float((schedule.sample(model, noise) - target).double().square().mean())


def fell(schedule, before, model):
    """How many noises end nearer to the teacher."""
    target = teacher_of(model)
    after, first = ((each.sample(model, NOISE) - target).square().mean(1) for each in (schedule, before))
    return int((after < first).sum())


def searched(solver="dpmpp_2m", steps=4, noise=NOISE, **options):
    return dp_search(MIXTURE.flow(), noise, steps, **TEACHER, solver=solver, candidates=12, **options).schedule


def stock(solver="dpmpp_2m", steps=4, grid="flow"):
    return Schedule.from_grid(grids.make(grid, steps), solver, MIXTURE.flow())


def problem_of(schedule, model, noise=NOISE, judges=8, rows=100, grid=FINE):
    target = teacher_of(model, noise, grid).flatten(1)
    return Problem(model, noise, target, {}, noise.dtype, rows, judges, schedule.carries, Counter(0, False, ""))


# --- what it buys ---


@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp_2m", "unipc", "ipndm", "fitted", "mixed"])
@pytest.mark.parametrize("start", ["fixed", "free"])
def test_nodes_are_never_worse_and_stay_on_the_grid(solver, start):
    model, schedule = MIXTURE.flow(), searched(solver, start=start)
    refined = refine(schedule, model, NOISE, method="nodes", **TEACHER)
    before, after = error_of(schedule, model), error_of(refined, model)
    assert after <= before
    if solver != "mixed" and not torch.equal(refined.t, schedule.t):
        assert after < before and fell(refined, schedule, model) > 0
    assert refined.provenance.cost == pytest.approx(after, rel=1e-9)
    assert torch.equal(refined.t, FINE[refined.nodes])
    if solver not in ("fitted", "mixed"):
        assert torch.equal(refined.coefficients, solvers.along(solvers.get(solver), refined.t))


@pytest.mark.parametrize(
    ("solver", "method", "share"),
    [
        ("euler", "nodes", 0.8),
        ("dpmpp_2m", "nodes", 0.8),
        ("euler", "gradient", 0.2),
        ("dpmpp_2m", "gradient", 0.5),
    ],
)
def test_a_stock_schedule_comes_clearly_nearer_on_noises_that_it_never_saw(solver, method, share):
    model, unseen = MIXTURE.flow(), normal(128, 4, seed=2)
    schedule = stock(solver, grid="flow:shift=3")
    refined = refine(schedule, model, normal(64, 4, seed=1), method=method, **TEACHER)
    before, after = error_of(schedule, model, unseen), error_of(refined, model, unseen)
    print(f"{solver}, {method}: {before:.3e} -> {after:.3e}, {after / before:.2f}")
    assert after < share * before


def test_fitted_coefficients_follow_their_nodes():
    model, schedule = MIXTURE.flow(), searched("fitted")
    refined = refine(schedule, model, NOISE, **TEACHER)
    before, after = error_of(schedule, model), error_of(refined, model)
    print(f"{before:.3e} -> {after:.3e}")
    assert refined.solver == "fitted" and refined.coefficients.shape == schedule.coefficients.shape
    assert not torch.equal(refined.nodes, schedule.nodes)
    assert after < 0.7 * before


def test_nodes_end_where_no_move_of_one_helps():
    model, schedule = MIXTURE.flow(), stock("dpmpp_2m", steps=3)
    refined = refine(schedule, model, NOISE, evaluations=10_000, **TEACHER)
    least = error_of(refined, model)
    for place in (1, 2):
        for way in (-1, 1):
            nodes = refined.nodes.clone()
            nodes[place] += way
            if nodes.diff().min() > 0:
                moved = Schedule.from_grid(FINE[nodes], "dpmpp_2m", model)
                assert error_of(moved, model) >= least * (1 - 1e-6) or fell(moved, refined, model) < len(NOISE) / 2


def test_the_first_node_moves_where_it_is_not_the_grids():
    model = MIXTURE.flow()
    late = Schedule.from_grid(FINE[torch.tensor([24, 28, 34, 40])], "euler", model)
    refined = refine(late, model, NOISE, **TEACHER)
    assert refined.t[0] > late.t[0] and refined.noise_scale == pytest.approx(float(refined.t[0]))
    assert error_of(refined, model) < 0.5 * error_of(late, model)
    assert refine(stock(), model, NOISE, **TEACHER).nodes[0] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_refined_on_the_noises_is_not_made_worse_by_refining_it_again(method):
    model = MIXTURE.flow()
    once = refine(stock(), model, NOISE, method="nodes", evaluations=10_000, **TEACHER)
    again = refine(once, model, NOISE, method=method, **SHORT)
    judges = NOISE[-8:] if method == "gradient" else NOISE
    assert error_of(again, model, judges) <= error_of(once, model, judges)
    if method == "nodes":
        assert torch.equal(again.t, once.t) and torch.equal(again.coefficients, once.coefficients)


@pytest.mark.parametrize("seed", range(6))
def test_gradient_is_never_worse_on_the_noises_that_judge(seed):
    """Few samples and many parameters: what the learning ones lead to may be worse on others."""
    model, noise = mixture(seed).flow(), normal(4, 4, seed=seed)
    schedule = dp_search(model, noise, 4, teacher_steps=40, solver="fitted").schedule
    refined = refine(schedule, model, noise, method="gradient", learn=EVERY, **SHORT)
    assert error_of(refined, model, noise[-1:]) <= error_of(schedule, model, noise[-1:]) * (1 + 1e-9)


def test_the_recorded_cost_is_that_of_the_network_time_that_was_learned():
    model = MIXTURE.flow()
    learned = refine(searched(), model, NOISE, method="gradient", learn=("network_t",), **SHORT)
    assert learned.network_t is not None and not torch.equal(learned.network_t, learned.t[:-1])
    assert learned.provenance.cost == pytest.approx(error_of(learned, model), rel=1e-9)


def test_a_network_time_of_its_own_pays_beside_a_formula():
    model, unseen, learners = MIXTURE.flow(), normal(128, 4, seed=2), normal(64, 4, seed=1)
    schedule = stock()
    errors = {}
    for learn in (("times",), ("times", "network_t")):
        refined = refine(schedule, model, learners, method="gradient", learn=learn, **TEACHER)
        assert refined.solver == "dpmpp_2m"
        assert torch.equal(refined.coefficients, solvers.along(solvers.get("dpmpp_2m"), refined.t)) or torch.allclose(
            refined.coefficients, solvers.along(solvers.get("dpmpp_2m"), refined.t), rtol=0, atol=1e-12
        )
        assert (refined.network_t is not None) == ("network_t" in learn)
        errors[learn] = error_of(refined, model, unseen)
    print(errors)
    assert errors["times", "network_t"] < 0.8 * errors[("times",)]


def test_a_move_must_help_half_of_the_samples():
    before = torch.tensor([1.0, 1.0, 1.0, 9.0], dtype=torch.float64)
    after = {
        "one that has most of the error": ([1.1, 1.1, 1.1, 1.0], False),
        "half": ([0.9, 1.1, 1.1, 1.0], True),
        "most, but not the mean": ([0.9, 0.9, 0.9, 9.4], False),
        "none": ([1.0, 1.0, 1.0, 9.0], False),
    }
    for name, (error, wanted) in after.items():
        assert nearer(torch.tensor(error, dtype=torch.float64), before) == wanted, name


# --- the objective ---


def logarithm(schedule, model, noise, target):
    """Of the errors, their mean: what falls as the mean of the noises' PSNRs rises."""
    return float((schedule.sample(model, noise) - target).square().mean(1).log().mean())


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "mixed", "fitted"])
@pytest.mark.parametrize("method", METHODS)
def test_every_noise_counts_alike_with_psnr(method, solver):
    model = MIXTURE.flow()
    schedule = searched(solver, steps=5) if solver in ("mixed", "fitted") else stock(solver, grid="flow:shift=3")
    target = teacher_of(model)
    how = {**TEACHER, "method": method, "evaluations": 800, "iterations": 60}
    plain, alike = (refine(schedule, model, NOISE, objective=objective, **how) for objective in ("mse", "psnr"))
    judges = slice(-8, None) if method == "gradient" else slice(0, None)
    before, after, other = (logarithm(s, model, NOISE[judges], target[judges]) for s in (schedule, alike, plain))
    print(f"{method}, {solver}: {before:.3f} -> {after:.3f}, by the mean {other:.3f}")
    assert after <= before + 1e-9
    assert alike.provenance.refined["objective"] == "psnr"
    assert alike.provenance.cost == pytest.approx(error_of(alike, model, NOISE), rel=1e-9)
    if method == "nodes" and solver != "mixed":  # whose choices follow the squared error
        assert after <= other + 0.05


def test_gradients_of_the_logarithms_are_those_of_finite_differences():
    model, schedule = MIXTURE.flow(), stock()
    problem = replace(problem_of(schedule, model), objective="psnr")
    knobs = Knobs(schedule, frozenset(EVERY[:3]), model.t_min, model.t_max)
    with torch.enable_grad():
        slopes = dict(zip(knobs.values, gradient(problem, knobs, unit=123.0), strict=True))
    with torch.no_grad():
        for name, value in knobs.values.items():
            flat, levels = value.data.view(-1), []
            kept = float(flat[-1])
            for way in (1e-5, -1e-5):
                flat[-1] = kept + way
                levels.append(math.log(level_of(problem, knobs.numbers(), problem.learners)))
            flat[-1] = kept
            wanted = (levels[0] - levels[1]) / 2e-5
            assert float(slopes[name].view(-1)[-1]) == pytest.approx(wanted, rel=1e-4), name


def test_weights_are_the_slope_of_the_level():
    error = torch.tensor([0.1, 2.0, 0.7], dtype=torch.float64, requires_grad=True)
    for objective, wanted in (("mse", error.mean()), ("psnr", error.log().mean().exp())):
        assert level(error.detach(), objective) == pytest.approx(wanted.item(), rel=1e-12)
        (slope,) = torch.autograd.grad(wanted, error)
        torch.testing.assert_close(steepness(error.detach(), objective), slope / slope.mean())
    zero = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert level(zero, "psnr") > 0 and bool(steepness(zero, "psnr").isfinite().all())


# --- back-propagation ---


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "unipc_3", "deis_2", "fitted"])
@pytest.mark.parametrize("family", ["flow", "edm"])
def test_gradients_are_those_of_finite_differences(solver, family):
    model = MIXTURE.families()[family]
    grid = grids.for_model("flow", 40, model)
    if solver == "fitted":
        schedule = dp_search(model, NOISE, 4, grid=grid, solver=solver).schedule
    else:
        schedule = Schedule.from_grid(grids.for_model("flow", 4, model), solver, model)
    problem = problem_of(schedule, model, grid=grid)
    with torch.enable_grad():
        knobs = Knobs(schedule, frozenset(EVERY), model.t_min, model.t_max)
        generator = torch.Generator().manual_seed(0)
        for name, value in knobs.values.items():
            size = 0.02 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.data += -size if name == "network_t" else size  # down: up is beyond the noisiest time
        slopes = dict(zip(knobs.values, gradient(problem, knobs), strict=True))
    compared = 0
    with torch.no_grad():
        for name, value in knobs.values.items():
            for place in range(value.numel()):
                flat, kept, errors = value.data.view(-1), float(value.data.view(-1)[place]), []
                for way in (1e-5, -1e-5):
                    flat[place] = kept + way
                    errors.append(level_of(problem, knobs.numbers(), problem.learners))
                flat[place] = kept
                wanted = (errors[0] - errors[1]) / 2e-5
                got = float(slopes[name].view(-1)[place])
                assert got == pytest.approx(wanted, rel=2e-4, abs=1e-7), (name, place)
                compared += abs(wanted) > 1e-6
    assert compared >= 12


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "ab3", "fitted"])
def test_the_first_iterate_is_the_schedule(solver):
    model = MIXTURE.flow()
    schedule = searched(solver) if solver == "fitted" else stock(solver)
    knobs = Knobs(schedule, frozenset(EVERY), model.t_min, model.t_max)
    knobs.whiten(torch.eye(schedule.coefficients.shape[1], dtype=torch.float64).repeat(4, 1, 1), 0.1)
    numbers = knobs.numbers()
    assert torch.equal(numbers.t, schedule.t) and torch.equal(numbers.rows, schedule.coefficients)
    assert torch.equal(numbers.network_t, schedule.t[:-1]) and float(numbers.scale.detach()) == schedule.noise_scale
    problem = problem_of(schedule, model)
    with torch.no_grad():
        error = level_of(problem, numbers, slice(0, len(NOISE)))
    assert error == pytest.approx(error_of(schedule, model), rel=1e-12)
    same = refine(schedule, model, NOISE, method="gradient", iterations=0, **TEACHER)
    assert torch.equal(same.t, schedule.t) and torch.equal(same.coefficients, schedule.coefficients)
    assert same.solver == schedule.solver and same.provenance.refined["iterations"] == 0


@pytest.mark.parametrize("family", ["flow", "edm"])
@pytest.mark.parametrize("push", [-50.0, -1.0, 1.0, 50.0])
def test_times_stay_descending_and_within_the_model_however_far_they_are_pushed(family, push):
    model = MIXTURE.families()[family]
    schedule = Schedule.from_grid(grids.for_model("edm", 5, model), "dpmpp_2m", model)
    for place in range(5):
        knobs = Knobs(schedule, frozenset(EVERY), model.t_min, model.t_max)
        with torch.no_grad():
            knobs.values["times"][place] += push
            knobs.values["network_t"][place] += push
        numbers = knobs.numbers()
        moved = Schedule.from_grid(numbers.t.detach(), "euler", model)  # raises where they are not
        assert moved.t[0] == schedule.t[0]
        replace(moved, network_t=numbers.network_t.detach()).check_range(model)


def test_small_batches_give_the_same_gradient():
    model, schedule = MIXTURE.flow(), stock()
    slopes = []
    for rows in (1, 7, 100):
        problem = problem_of(schedule, model, rows=rows)
        with torch.enable_grad():
            slopes.append(gradient(problem, Knobs(schedule, frozenset(EVERY), 0.0, 1.0)))
        assert problem.counter.made == 3 * 4 * 24
    for other in slopes[1:]:
        for one, two in zip(slopes[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)


class Shifted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t):
        return MIXTURE.flow().velocity(x, t) * self.gain.to(x)


def test_the_networks_parameters_get_no_gradients_and_the_caller_may_be_anywhere():
    network = Shifted()
    model, results = FlowModel(network), []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            noise = NOISE.clone()  # an inference tensor in the last case
            results.append(refine(stock(), model, noise, method="gradient", learn=EVERY, **SHORT))
            assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert network.gain.grad is None
    for other in results[1:]:
        assert torch.equal(other.coefficients, results[0].coefficients) and torch.equal(other.t, results[0].t)
    assert not results[0].coefficients.requires_grad and not results[0].t.requires_grad


def broken(how):
    def fn(x, t):
        velocity = MIXTURE.flow().velocity
        if how == "detach":
            return velocity(x, t).detach()
        with torch.inference_mode() if how == "inference_mode" else torch.no_grad():
            return velocity(x, t)

    return FlowModel(fn)


@pytest.mark.parametrize("how", ["detach", "no_grad", "inference_mode"])
@pytest.mark.parametrize("learn", [None, ["times"], ["coefficients"]])
def test_a_model_that_cuts_the_graph_is_told_so(how, learn):
    with pytest.raises(ValueError, match=r"model: velocity\(\) returned a tensor that is cut from the graph"):
        refine(stock(), broken(how), NOISE, method="gradient", learn=learn, **SHORT)
    refine(stock(), broken(how), NOISE, method="nodes", **TEACHER)


def test_times_stay_where_their_gradient_would_be_wrong():
    model = MIXTURE.vp(EpsilonModel)
    grid = grids.for_model("flow", 40, model)
    schedule = Schedule.from_grid(grids.for_model("flow", 4, model), "dpmpp_2m", model)
    refined = refine(schedule, model, NOISE, method="gradient", grid=grid, iterations=60)
    if "times" not in refined.provenance.refined["learned"]:
        assert torch.equal(refined.t, schedule.t)
        with pytest.raises(ValueError, match=r"learn: got times with a epsilon model"):
            refine(schedule, model, NOISE, method="gradient", grid=grid, learn=["times"])
    target = teacher_of(model, NOISE, grid)
    assert error_of(refined, model, NOISE, target) < 0.7 * error_of(schedule, model, NOISE, target)


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_times_move_where_their_gradient_is_right(family):
    model = MIXTURE.families()[family]
    grid = grids.for_model("flow", 40, model)
    schedule = Schedule.from_grid(grids.for_model("flow:shift=3", 4, model), "dpmpp_2m", model)
    refined = refine(schedule, model, NOISE, method="gradient", grid=grid, learn=["times"], iterations=60)
    target = teacher_of(model, NOISE, grid)
    assert not torch.equal(refined.t, schedule.t) and torch.equal(refined.sigmas, model.sigmas(refined.t))
    assert error_of(refined, model, NOISE, target) < 0.7 * error_of(schedule, model, NOISE, target)


# --- files, counts, devices ---


@pytest.mark.parametrize("learn", [EVERY, EVERY[:3], ("times",)])
def test_round_trip(tmp_path, learn):
    model = MIXTURE.flow()
    refined = refine(stock(), model, NOISE, method="gradient", learn=learn, **SHORT)
    refined.save(tmp_path / "s.json")
    again = Schedule.load(tmp_path / "s.json")
    assert torch.equal(again.sample(model, NOISE), refined.sample(model, NOISE))
    assert again.provenance == refined.provenance and again.provenance.refined["method"] == "gradient"
    assert again.solver == ("polished" if "coefficients" in learn else "dpmpp_2m")
    if "network_t" in learn:
        assert torch.equal(again.network_t, refined.network_t) and "network_t" in repr(again)
        assert torch.equal(again.timesteps, again.network_t)
    else:
        assert again.network_t is None


def test_files_of_before_there_was_a_network_time_load(tmp_path):
    stock().save(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    del content["network_t"], content["provenance"]["refined"]
    (tmp_path / "s.json").write_text(json.dumps(content))
    again = Schedule.load(tmp_path / "s.json")
    assert again.network_t is None and again.provenance.refined == {}


def test_a_network_time_is_what_the_network_is_told():
    counting = Counting(MIXTURE.flow())
    told = torch.tensor([0.9, 0.8, 0.5, 0.2], dtype=torch.float64)
    replace(stock(), network_t=told).sample(counting, NOISE)
    assert [call[0] for call in counting.calls] == told.tolist()
    same = replace(stock(), network_t=stock().t[:-1])
    assert torch.equal(same.sample(MIXTURE.flow(), NOISE), stock().sample(MIXTURE.flow(), NOISE))


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ([0.9, 0.8, 0.5], r"network_t: got shape \[3\], wanted \[4\]"),
        ([0.9, 0.8, 0.5, 0.0], "network_t: got .* wanted flow times above 0"),
        ([1.1, 0.8, 0.5, 0.1], "network_t: got .* at most 1"),
        ([float("nan"), 0.8, 0.5, 0.1], "network_t: got NaN"),
    ],
)
def test_bad_network_times(told, match):
    with pytest.raises(ValueError, match=match):
        replace(stock(), network_t=torch.tensor(told, dtype=torch.float64))


def test_a_network_time_that_the_model_does_not_know(tmp_path):
    model = Counting(MIXTURE.edm())
    schedule = Schedule.from_grid(grids.for_model("edm", 3, model), "euler", model)
    told = replace(schedule, network_t=schedule.t[:-1] / 2)
    with pytest.raises(ValueError, match="network_t of the schedule"):
        told.sample(model, NOISE)
    assert model.evaluations == 0


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("solver", "method"), [("dpmpp_2m", "nodes"), ("fitted", "nodes"), ("dpmpp_2m", "gradient")])
def test_evaluations_are_counted(solver, method, known):
    schedule, counting, seen = searched(solver), Counting(MIXTURE.flow()), []
    spent_before = schedule.provenance.nfe["total"]
    target = teacher_of(MIXTURE.flow()) if known else None
    iterations = 12
    refined = refine(
        schedule,
        counting,
        NOISE,
        method=method,
        teacher=target,
        iterations=iterations,
        **TEACHER,
        progress=lambda made, total: seen.append((made, total)),
    )
    backward = 2 * iterations * 24 * 4 if method == "gradient" else 0
    made = counting.evaluations + backward
    assert seen[-1] == (made, made)
    assert all(made <= total for made, total in seen)
    nfe = refined.provenance.nfe
    assert nfe["refine"] == pytest.approx(made / len(NOISE))
    assert nfe["total"] == pytest.approx(spent_before + made / len(NOISE))
    if method == "gradient":
        assert {total for _, total in seen} == {made}, "known from the start"
    elif solver == "dpmpp_2m":
        assert made / len(NOISE) <= 400 + (0 if known else 40)


def test_a_small_budget_is_kept():
    counting = Counting(MIXTURE.flow())
    refined = refine(stock(), counting, NOISE, teacher=teacher_of(MIXTURE.flow()), evaluations=20, **TEACHER)
    assert counting.evaluations <= 20 * len(NOISE)
    assert error_of(refined, MIXTURE.flow()) <= error_of(stock(), MIXTURE.flow())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_devices_and_dtypes(method, dtype, device):
    model, noise = MIXTURE.flow(), NOISE.to(dtype)
    schedule = stock()
    here = refine(schedule, model, noise.to(device), method=method, batch_size=32, **SHORT)
    again = refine(schedule, model, noise.to(device), method=method, batch_size=32, **SHORT)
    assert torch.equal(here.t, again.t) and torch.equal(here.coefficients, again.coefficients), "deterministic"
    wide = refine(schedule, model, NOISE, method=method, **SHORT)
    after, before = (error_of(each, model) for each in (here, schedule))
    assert after < before
    if dtype == torch.float64:
        torch.testing.assert_close(here.t, wide.t, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(here.coefficients, wide.coefficients, rtol=1e-6, atol=1e-9)


def test_condition_and_other_shapes(device):
    def fn(x, t, shift):
        return MIXTURE.flow().velocity(x.flatten(1) - shift[:, None], t).reshape(x.shape)

    model, noise = FlowModel(fn), NOISE.reshape(-1, 1, 2, 2).to(device)
    cond = {"shift": normal(len(NOISE), seed=3).to(device) * 0.1}
    schedule = stock()
    target = Schedule.from_grid(FINE, "euler", model).sample(model, noise, cond)
    before = float((schedule.sample(model, noise, cond) - target).square().mean())
    for method in METHODS:
        refined = refine(schedule, model, noise, cond=cond, method=method, batch_size=10, **SHORT)
        assert float((refined.sample(model, noise, cond) - target).square().mean()) < before


# --- in the search ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "fitted", "auto"])
def test_search_refines_the_largest_budget_alone(solver, method):
    model, options = Counting(MIXTURE.flow()), {"teacher_steps": 30, "solver": solver, "candidates": 10}
    plain = dp_search(model, NOISE, 3, **options)
    model.evaluations = 0
    result = dp_search(model, NOISE, 3, refine=method, **options)
    judged = NOISE[-len(result.teacher) :]
    for budget, schedule in result.schedules.items():
        torch.testing.assert_close(schedule.sample(model.model, judged), result.endpoints[budget], rtol=1e-9, atol=1e-9)
        cost = (result.endpoints[budget] - result.teacher).square().mean(1)
        torch.testing.assert_close(cost, result.costs[budget], rtol=1e-9, atol=1e-12)
        if budget < 3:
            assert torch.equal(schedule.t, plain.schedules[budget].t)
    assert result.schedule.provenance.refined["method"] == method
    assert result.schedules[2].provenance.refined == {}
    assert result.nfe["total"] == pytest.approx(plain.nfe["total"] + result.nfe["refine"])
    assert result.nfe == result.schedule.provenance.nfe
    if method == "nodes":
        assert model.evaluations == pytest.approx(result.nfe["total"] * len(NOISE))
        if solver != "auto":
            assert result.costs[3].mean() <= plain.costs[3].mean()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"refine": "both"}, ValueError, "refine: got 'both', wanted one of nodes, gradient"),
        ({"refine": True}, TypeError, "refine: got bool"),
        ({"refine": "nodes", "share": "median"}, ValueError, "share: got 'median' with refine"),
        ({"refine": "nodes", "share": "per_sample"}, ValueError, "share: got 'per_sample' with refine"),
    ],
)
def test_search_input(options, error, match):
    model = Counting(MIXTURE.flow())
    with pytest.raises(error, match=match):
        dp_search(model, NOISE, 3, teacher_steps=20, **options)
    assert model.evaluations == 0


def test_whole_timesteps_and_gradients_exclude_each_other():
    model = Counting(MIXTURE.vp(EpsilonModel))
    with pytest.raises(ValueError, match="refine: got 'gradient' with nodes 'integer'"):
        dp_search(model, NOISE, 3, teacher_steps=20, nodes="integer", refine="gradient")
    with pytest.raises(ValueError, match="noise: got 1 sample"):
        dp_search(model, NOISE[:1], 3, teacher_steps=20, refine="gradient")
    assert model.evaluations == 0
    result = dp_search(model, NOISE, 3, teacher_steps=20, nodes="integer", refine="nodes")
    assert torch.equal(result.schedule.timesteps, result.schedule.timesteps.round())
    assert len(ddpm_table()) > result.schedule.timesteps.max()


# --- bad input ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"schedule": "s.json"}, TypeError, "schedule: got str"),
        ({"method": "newton"}, ValueError, "method: got 'newton', wanted one of nodes, gradient"),
        ({"method": None}, TypeError, "method: got NoneType"),
        ({"model": print}, TypeError, "model: got"),
        ({"noise": NOISE * torch.nan}, ValueError, "noise: sample 0"),
        ({"cond": {"a": torch.ones(3)}}, ValueError, r"cond\['a'\]: got shape"),
        ({"teacher_steps": 0}, ValueError, "teacher_steps: got 0"),
        ({"teacher_solver": "fitted"}, ValueError, "teacher_solver: got 'fitted'"),
        ({"teacher_solver": "rk9"}, ValueError, "got 'rk9'"),
        ({"grid": "cubic"}, ValueError, "grid: got 'cubic'"),
        ({"grid": torch.tensor([0.5, 0.7, 0.0])}, ValueError, "grid"),
        ({"teacher": NOISE[:3]}, ValueError, r"teacher: got shape \[3, 4\]"),
        ({"teacher": NOISE.long()}, TypeError, r"teacher: got a tensor of torch.int64"),
        ({"teacher": NOISE * torch.nan}, ValueError, "teacher: got NaN"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"objective": "l1"}, ValueError, "objective: got 'l1', wanted one of mse, psnr"),
        ({"progress": 3}, TypeError, "progress: got int"),
    ],
)
def test_bad_input_costs_no_evaluation(method, options, error, match):
    check(error, match, {"method": method, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"evaluations": 0}, ValueError, "evaluations: got 0"),
        ({"evaluations": 1.5}, TypeError, "evaluations: got 1.5"),
        ({"teacher_steps": 3}, ValueError, "schedule: got 4 steps, wanted at most 3"),
        ({"solver": "rk9"}, ValueError, "solver: got 'rk9'"),
        ({"schedule": replace(stock(), solver="polished")}, ValueError, "schedule: got coefficients of 'polished'"),
        ({"method": "gradient", "iterations": -1}, ValueError, "iterations: got -1"),
        ({"method": "gradient", "learn": "times"}, TypeError, "learn: got 'times', wanted a list"),
        ({"method": "gradient", "learn": []}, ValueError, "learn: got nothing"),
        ({"method": "gradient", "learn": ["weights"]}, ValueError, "learn: got 'weights'"),
        ({"method": "gradient", "noise": NOISE[:1]}, ValueError, "noise: got 1 sample"),
    ],
)
def test_bad_input_of_one_method_costs_no_evaluation(options, error, match):
    check(error, match, options)


def check(error, match, options):
    counting = Counting(MIXTURE.flow())
    given = {"schedule": stock(), "model": counting, "noise": NOISE, **TEACHER, **options}
    with pytest.raises(error, match=match):
        refine(given.pop("schedule"), given.pop("model"), given.pop("noise"), **given)
    assert counting.evaluations == 0


def test_nan_is_named_with_its_step():
    def fn(x, t):
        return torch.where(t[:, None] < 0.4, torch.nan, MIXTURE.flow().velocity(x, t))

    for method in METHODS:
        with pytest.raises(ValueError, match=r"model: returned NaN or inf at .*flow time 0.25"):
            refine(stock(), FlowModel(fn), NOISE, method=method, teacher=teacher_of(MIXTURE.flow()), **SHORT)


def test_polish_without_a_gain_returns_nothing():
    """A schedule that is the teacher itself cannot come nearer."""
    model = MIXTURE.flow()
    schedule = Schedule.from_grid(FINE, DEFAULT_SOLVER, model)
    assert polish(problem_of(schedule, model), schedule, frozenset(EVERY), 10) is None
    refined = refine(schedule, model, NOISE, method="nodes", **TEACHER)
    assert torch.equal(refined.t, schedule.t)
