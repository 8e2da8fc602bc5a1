"""Bad input to dp_search: it names the argument, and where the input alone is bad the model is never evaluated."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting

from oss_ext.models import FlowModel
from oss_ext.search import dp_search
from oss_ext.search_core import dp_core

NAN = normal(3, 4)
NAN[1, 2] = torch.nan
T = torch.linspace(1, 0, 11, dtype=torch.float64)

BAD = [
    ({"steps": 0}, ValueError, "steps: got 0, wanted at least 1"),
    ({"steps": -3}, ValueError, "steps: got -3"),
    ({"steps": 11}, ValueError, "steps: got 11, wanted at most 10, the steps of the grid"),
    ({"steps": 2.0}, TypeError, "steps: got 2.0 of type float, wanted an integer"),
    ({"steps": True}, TypeError, "steps: got True of type bool"),
    ({"steps": "4"}, TypeError, "steps: got '4'"),
    ({"teacher_steps": 0}, ValueError, "teacher_steps: got 0"),
    ({"teacher_steps": False}, TypeError, "teacher_steps: got False"),
    ({"grid": T.flip(0)}, ValueError, "grid: got .*strictly descending"),
    ({"grid": T[:-1]}, ValueError, "grid: got the last node 0.1, wanted exactly 0"),
    ({"grid": T * 2}, ValueError, "grid: got the first node 2, wanted at most 1"),
    ({"grid": T[:3] * torch.nan}, ValueError, "grid: got nan at node 0"),
    ({"grid": T[None]}, ValueError, r"grid: got shape \[1, 11\]"),
    ({"grid": torch.arange(5).flip(0)}, TypeError, r"grid: got a tensor of torch\.int64"),
    ({"grid": "karras"}, ValueError, "grid: got 'karras', wanted one of flow, edm"),
    ({"grid": None}, TypeError, "grid: got NoneType"),
    ({"solver": "rk4"}, ValueError, "solver: got 'rk4', wanted one of euler"),
    ({"solver": 2}, TypeError, "solver: got 2"),
    ({"share": "mean"}, ValueError, "share: got 'mean', wanted one of joint, median, per_sample"),
    ({"share": None}, TypeError, "share: got NoneType"),
    ({"start": "loose"}, ValueError, "start: got 'loose', wanted one of fixed, free"),
    ({"batch_size": 0}, ValueError, "batch_size: got 0"),
    ({"batch_size": 1.5}, TypeError, "batch_size: got 1.5"),
    ({"progress": "yes"}, TypeError, "progress: got str"),
    ({"metadata": 3}, TypeError, "metadata: got int"),
    ({"metadata": {"who": object()}}, ValueError, "metadata: got .*JSON"),
    ({"metadata": {"scale": float("nan")}}, ValueError, "metadata: got .*JSON"),
    ({"noise": NAN}, ValueError, "noise: sample 1 holds NaN or inf"),
    ({"noise": NAN.nan_to_num(torch.inf)}, ValueError, "noise: sample 1 holds NaN or inf"),
    ({"noise": torch.ones(3, 4, dtype=torch.int64)}, TypeError, r"noise: got dtype torch\.int64"),
    ({"noise": torch.ones(3, 4, dtype=torch.complex64)}, TypeError, r"noise: got dtype torch\.complex64"),
    ({"noise": torch.ones(3)}, ValueError, r"noise: got shape \[3\], wanted \[batch, \.\.\.\]"),
    ({"noise": torch.ones(())}, ValueError, r"noise: got shape \[\]"),
    ({"noise": torch.ones(0, 4)}, ValueError, r"noise: got the empty shape \[0, 4\]"),
    ({"noise": torch.ones(3, 0)}, ValueError, r"noise: got the empty shape \[3, 0\]"),
    ({"noise": [[0.0, 1.0]]}, TypeError, "noise: got list"),
    ({"noise": torch.ones(3, 4, device="meta")}, ValueError, "noise: got device meta"),
    ({"noise": torch.eye(3).to_sparse()}, TypeError, "noise: got layout"),
    ({"cond": [normal(3)]}, TypeError, "cond: got list"),
    ({"cond": {"c": 3}}, TypeError, r"cond\['c'\]: got int"),
    ({"cond": {3: normal(3)}}, TypeError, "cond: got the key 3"),
    ({"cond": {"c": normal(2, 5)}}, ValueError, r"cond\['c'\]: got shape \[2, 5\], wanted \[3, \.\.\.\]"),
    ({"cond": {"c": torch.tensor(1.0)}}, ValueError, r"cond\['c'\]: got shape \[\]"),
    ({"cond": {"c": torch.ones(3, device="meta")}}, ValueError, r"cond\['c'\]: got device meta, wanted cpu"),
]


@pytest.mark.parametrize(
    ("change", "kind", "message"), BAD, ids=[f"{k}-{n}" for n, (c, _, _) in enumerate(BAD) for k in c]
)
def test_bad_input_costs_no_evaluation(change, kind, message):
    model = Counting(mixture().flow())
    arguments = {"noise": normal(3, 4), "steps": 4, "teacher_steps": 10, **change}
    with pytest.raises(kind, match=message):
        dp_search(model, **arguments)
    assert model.evaluations == 0
    dp_search(model, normal(3, 4), 4, teacher_steps=10)
    assert model.evaluations > 0, "the count counts"


def test_grids_beyond_the_models_range():
    model = Counting(mixture().edm())
    with pytest.raises(ValueError, match=r"grid: got the first node 1, wanted at most 0\.987654321"):
        dp_search(model, normal(3, 4), 4, grid=T)
    with pytest.raises(ValueError, match=r"grid: got the node 0\.001 before the 0, wanted at least 0\.00199"):
        dp_search(model, normal(3, 4), 2, grid=torch.tensor([0.9, 0.001, 0.0], dtype=torch.float64))
    assert model.evaluations == 0


def test_a_bare_function_is_no_model():
    with pytest.raises(TypeError, match=r"model: got function without velocity.*wrap .* FlowModel"):
        dp_search(lambda x, t: x, normal(3, 4), 4)


def test_the_core_checks_as_well_before_it_asks():
    for arguments, message in [
        ({"steps": 11}, "steps: got 11"),
        ({"share": "mean"}, "share: got 'mean'"),
        ({"start": "loose"}, "start: got 'loose'"),
        ({"noise": NAN}, "noise: sample 1"),
        ({"t": T.flip(0)}, "grid: got"),
    ]:
        with pytest.raises(ValueError, match=message):
            dp_core(**{"noise": normal(3, 4), "t": T, "steps": 3, **arguments})


def test_outputs_of_another_shape_or_dtype_stop_the_search_at_once():
    calls = []

    def recorded(out):
        def fn(x, t):
            calls.append(len(x))
            return out(x)

        return fn

    for out, kind, message in [
        (lambda x: x[:, :2], ValueError, r"model: .*shape \[3, 2\], wanted .*\[3, 4\]"),
        (lambda x: x.half(), TypeError, r"model: .*torch\.float16, wanted .*torch\.float64"),
        (lambda x: [x], TypeError, "model: .*list"),
    ]:
        calls.clear()
        with pytest.raises(kind, match=message):
            dp_search(FlowModel(recorded(out)), normal(3, 4), 2, teacher_steps=10)
        assert calls == [3]


class Raw:
    """A Denoiser of one's own that returns something odd."""

    t_max, t_min, flow_table, parameterization = 1.0, 0.0, None, "raw"

    def __init__(self, out):
        self.out = out

    def velocity(self, x, t, cond=None):
        return self.out(x)

    def sigmas(self, t):
        return t

    def timesteps(self, t):
        return t

    def describe(self):
        return {}


def test_denoisers_of_ones_own_are_checked_too():
    assert dp_search(Raw(lambda x: x), normal(3, 4), 2, teacher_steps=5).schedule.parameterization == "raw"
    for out, kind, message in [
        (lambda x: x[:1], ValueError, r"velocity\(\) returned shape \[1, 4\], wanted \[3, 4\]"),
        (lambda x: x.float(), TypeError, r"velocity\(\) returned torch\.float32, wanted torch\.float64"),
        (lambda x: 0, TypeError, r"velocity\(\) returned int"),
        (lambda x: x.to("meta"), ValueError, r"velocity\(\) returned a tensor on meta"),
    ]:
        with pytest.raises(kind, match="model: " + message):
            dp_search(Raw(out), normal(3, 4), 2, teacher_steps=5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_nan_and_inf_name_node_and_sample(bad, batch_size):
    inner = mixture().flow().fn

    def teacher_fails(x, t, label):
        spoiled = (label == 2) & ((t - 0.7).abs() < 1e-9)
        return torch.where(spoiled[:, None], bad, inner(x, t))

    label = {"label": torch.arange(3)}
    with pytest.raises(ValueError, match=r"model: returned NaN or inf at node 3 \(flow time 0\.7\), sample 2"):
        dp_search(FlowModel(teacher_fails), normal(3, 4), 2, teacher_steps=10, cond=label, batch_size=batch_size)

    seen = {"calls": 0}

    def search_fails(x, t, label):
        seen["calls"] += len(x)
        late = seen["calls"] > 30  # the teacher's 10 evaluations of 3 samples are through
        spoiled = (label == 1) & ((t - 0.4).abs() < 1e-9) & late
        return torch.where(spoiled[:, None], bad, inner(x, t))

    with pytest.raises(ValueError, match=r"at node 6 \(flow time 0\.4\), sample 1"):
        dp_search(FlowModel(search_fails), normal(3, 4), 3, teacher_steps=10, cond=label, batch_size=batch_size)


def test_costs_that_overflow_are_an_error():
    calls = []

    def explodes(x, t):
        calls.append(len(x))
        return torch.full_like(x, 1e30 * (-1) ** len(calls))

    with pytest.raises(ValueError, match="model: no finite cost reaches node"):
        dp_search(FlowModel(explodes), normal(3, 4, dtype=torch.float32), 2, teacher_steps=10)
