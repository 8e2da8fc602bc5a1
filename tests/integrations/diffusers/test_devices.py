"""Searches where the pipelines are: on a GPU, offloaded from it, with adapters; and what is said there of what is
wrong, which nothing waits for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed, which diffusers' pipelines import")

from helpers import tiny_pipelines as tiny

import oss_ext
from oss_ext import store
from oss_ext.integrations.diffusers import ScheduleMismatchWarning, applied, apply, family_of, search
from oss_ext.integrations.diffusers.watch import Handed, Watch, is_element

SMALL = {"samples": 2, "teacher_steps": 12, "seed": 5, "progress": False}
CLOSE = 1e-4  # relative, of the largest number


@pytest.fixture(autouse=True)
def whole_mantissas(monkeypatch):
    """No TF32: what is compared differs by more than its rounding."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def off(found, wanted):
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def assert_same(one, other):
    for budget, schedule in one.schedules.items():
        assert torch.equal(schedule.t, other.schedules[budget].t)
        assert torch.equal(schedule.coefficients, other.schedules[budget].coefficients)
    assert torch.equal(one.teacher, other.teacher)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_search_and_what_it_found_applied(name, device):
    made = tiny.PIPELINES[name]().to(device)
    model = family_of(made.pipe.scheduler).denoiser(made.network)
    found = search(made.pipe, 3, solver="unipc", **SMALL, **made.call)
    assert found.teacher.device.type == device.type
    with torch.no_grad():
        plain = oss_ext.dp_search(model, made.noise().to(device), 3, solver="unipc", teacher_steps=12, grid=found.t)
    assert off(found.teacher, plain.teacher) < CLOSE
    for budget, cost in plain.costs.items():
        torch.testing.assert_close(found.costs[budget], cost, rtol=1e-3, atol=0)
    assert_same(found, search(made.pipe, 3, solver="unipc", **SMALL, **made.call))
    with applied(made.pipe, found.schedule):
        scored = made.finish(found.endpoints[3])
        assert off(torch.as_tensor(made()).cpu(), scored.cpu()) < CLOSE


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.gpu
def test_offloaded(way, calls, cuda_device):
    """The same as with everything on the GPU; the weights are on the host before and after, and the hooks in place."""
    pytest.importorskip("accelerate", reason="accelerate is not installed, which offloads")
    wanted = {**SMALL, "samples": 2 * calls}
    made = tiny.flux().to(cuda_device)
    plain = search(made.pipe, 3, **wanted, **made.call)
    made = tiny.flux()
    for key, value in made.call.items():
        if isinstance(value, torch.Tensor):
            made.call[key] = value.to(cuda_device)
    getattr(made.pipe, way)(device=cuda_device)
    stock = made(num_inference_steps=4)
    before = {key: value for key, value in vars(made.pipe).items() if key != "_all_hooks"}

    def placed():
        return {name: parameter.device.type for name, parameter in made.pipe.transformer.named_parameters()}

    places = placed()
    assert set(places.values()) <= {"cpu", "meta"}
    found = search(made.pipe, 3, **wanted, **made.call)
    assert_same(found, plain)
    assert {key: value for key, value in vars(made.pipe).items() if key != "_all_hooks"} == before
    assert placed() == places and hasattr(made.pipe.transformer, "_hf_hook")
    with applied(made.pipe, found.schedule):
        assert off(made().cpu(), found.endpoints[3][:2].cpu()) < CLOSE
    assert torch.equal(made(num_inference_steps=4), stock)


@pytest.mark.gpu
@pytest.mark.parametrize("calls", [1, 2])
def test_states_in_host_memory(calls, cuda_device, monkeypatch):
    """Pinned or not they are the same bits, and as good as on the GPU."""
    made = tiny.flux().to(cuda_device)
    wanted = {**SMALL, **made.call, "samples": 2 * calls}
    near, pinned = (search(made.pipe, 3, **wanted, store=where) for where in ("device", "host"))
    assert near.store == str(cuda_device) and pinned.store == "cpu (pinned)"
    monkeypatch.setattr(store, "host_bytes", lambda: 0)
    with pytest.warns(UserWarning, match="not pinned"):
        pageable = search(made.pipe, 3, **wanted, store="host")
    assert pageable.store == "cpu"
    assert_same(pinned, pageable)
    assert off(pinned.teacher, near.teacher) < CLOSE
    for budget, cost in near.costs.items():
        torch.testing.assert_close(pinned.costs[budget], cost, rtol=1e-3, atol=0)
        assert torch.equal(pinned.endpoints[budget], pageable.endpoints[budget])


def test_with_an_adapter(device):
    """A search sees the network with its LoRA, says so in the schedule, and leaves it there."""
    peft = pytest.importorskip("peft", reason="peft is not installed, which LoRA needs")
    made = tiny.flux().to(device)
    bare = search(made.pipe, 2, **SMALL, **made.call)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False)
    made.pipe.transformer.add_adapter(config, "style")
    weights = {name: value.clone() for name, value in made.pipe.transformer.state_dict().items()}
    assert any("lora" in name for name in weights)
    found = search(made.pipe, 2, **SMALL, **made.call)
    after = made.pipe.transformer.state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)
    assert made.pipe.transformer.active_adapters() == ["style"]
    assert off(bare.teacher, found.teacher) > 10 * CLOSE
    with torch.no_grad():
        model = family_of(made.pipe.scheduler).denoiser(made.network)
        plain = oss_ext.dp_search(model, made.noise().to(device), 2, solver="unipc", teacher_steps=12, grid=found.t)
    assert off(found.teacher, plain.teacher) < CLOSE
    assert found.schedule.provenance.metadata["pipeline"]["adapters"] == ["style"]
    with applied(made.pipe, found.schedule):
        assert off(made(), found.endpoints[2]) < CLOSE
    made.pipe.transformer.delete_adapters("style")
    with pytest.warns(ScheduleMismatchWarning, match=r"adapters: made with \['style'\], here \[\]"):
        apply(made.pipe, found.schedule)


def test_nan_is_told(device):
    made = tiny.flux().to(device)
    whole = made.pipe.transformer.forward

    def forward(*args, timestep, **more):
        (out,) = whole(*args, timestep=timestep, **more)
        return (torch.where(timestep.reshape(-1, 1, 1) > 0.5, out, torch.nan),)

    made.pipe.transformer.forward = forward
    with pytest.raises(ValueError, match=r"its network returned NaN or inf.*, flow time 0\..*, in call 0"):
        search(made.pipe, 2, **SMALL, **made.call)
    assert type(made.pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize("place", ["in place", "anew"])
def test_latents_changed_between_steps_are_told(place, device):
    made = tiny.flux().to(device)

    def change(pipe, step, timestep, given):
        return {"latents": given["latents"].mul_(1.01) if place == "in place" else given["latents"] * 1.01}

    with pytest.raises(RuntimeError, match="the pipeline changes its latents between steps"):
        search(made.pipe, 2, **SMALL, **made.call, callback_on_step_end=change)


def test_a_watch(device):
    watch = Watch()
    yes, no = torch.tensor(True, device=device), torch.tensor(False, device=device)
    for _ in range(3):
        watch.expect(yes, lambda: KeyError("never"))
    watch.settle()
    with pytest.raises(ValueError, match="first"):
        watch.expect(no, lambda: ValueError("first"))
        watch.expect(no, lambda: ValueError("second"))
        watch.settle()
    watch.settle()  # what was raised, or came after it, is forgotten


def test_handed_latents(device):
    x = torch.randn(2, 3, device=device)
    handed = Handed.of(x)
    assert handed.same(x) and not handed.same(x.clone())
    assert handed.rounding(x.clone()) is torch.float32
    assert handed.rounding(x.to(torch.bfloat16).float()) is torch.bfloat16
    assert handed.rounding(x.half().float()) is torch.float16
    assert handed.rounding(x * 1.01) is None and handed.rounding(x[:1]) is None
    x[:1].mul_(2)  # in place: nothing is left to compare with
    assert not handed.same(x) and handed.rounding(x) is None
    with torch.inference_mode():
        uncounted = torch.randn(2, 3, device=device)
        handed = Handed.of(uncounted)
        assert not handed.same(uncounted) and handed.rounding(uncounted) is torch.float32
        uncounted.mul_(2)
        assert handed.rounding(uncounted) is None


def test_an_element_is_known_by_its_place():
    times = torch.arange(4.0)
    assert is_element(times[2], times, 2) and is_element(times[2], times) and is_element(times[2:3].expand(5), times)
    assert not is_element(times[2], times, 1)
    assert not is_element(times.clone()[2], times, 2) and not is_element(2.0, times)
