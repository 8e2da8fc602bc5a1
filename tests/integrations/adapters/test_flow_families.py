"""Adapters of Flux, Wan 2.1 and Open-Sora 1.2: Euler steps of their repositories, written out, on small networks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from helpers.adapters import flow_euler, full, rows, tiny

import oss_ext
from oss_ext.integrations import flux, open_sora, wan
from oss_ext.integrations.video import cost_weight

TEXT = 12


def along(model, spec, steps=5):
    return oss_ext.Schedule.from_grid(oss_ext.grids.for_model(spec, steps, model), "euler", model)


def close(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def flux_cond(batch, tokens, text=3):
    ids = torch.zeros(batch, tokens, 3)
    ids[..., 2] = torch.arange(tokens)
    return {
        "img_ids": ids,
        "txt": rows(batch, text, TEXT, seed=20),
        "txt_ids": torch.zeros(batch, text, 3),
        "vec": rows(batch, 5, seed=21),
    }


def test_flux_is_its_denoise_loop():
    net, noise, cond = tiny("Flux"), rows(2, 6, 8, seed=1), flux_cond(2, 6)
    names = {**{key: cond[key] for key in ("img_ids", "txt", "txt_ids")}, "y": cond["vec"]}
    model = flux.denoiser(net, guidance=3.5)
    shift = flux.shift(6)
    u = torch.linspace(1, 0, 6, dtype=torch.float64)
    mu = 0.5 + (1.15 - 0.5) * (6 - 256) / (4096 - 256)
    t = torch.cat([math.exp(mu) / (math.exp(mu) + 1 / u[:-1] - 1), torch.zeros(1)])  # its time_shift with sigma = 1
    wanted = flow_euler(lambda x, at: net(x, timesteps=full(x, at), guidance=full(x, 3.5), **names), noise, t)
    schedule = along(model, f"flow:shift={shift}")
    close(schedule.t, t)
    close(schedule.sample(model, noise, cond), wanted)
    assert flux.shift(4096) == pytest.approx(math.exp(1.15)) and flux.shift(256) == pytest.approx(math.exp(0.5))

    by_sample = {**cond, "guidance": torch.tensor([1.0, 5.0], dtype=torch.float64)}
    other = flow_euler(lambda x, at: net(x, timesteps=full(x, at), guidance=by_sample["guidance"], **names), noise, t)
    close(schedule.sample(model, noise, by_sample), other)
    assert (other - wanted).abs().max() > 1e-4

    schnell = tiny("Flux", guidance_embed=False)
    plain = flow_euler(lambda x, at: schnell(x, timesteps=full(x, at), **names), noise, t)
    close(schedule.sample(flux.denoiser(schnell, guidance=None), noise, cond), plain)


def test_flux_with_a_picture_to_edit():
    noise, cond, picture = rows(2, 6, 8, seed=2), flux_cond(2, 6), rows(2, 4, 8, seed=3)
    net, ids = tiny("Flux"), torch.ones(2, 4, 3)
    names = {"txt": cond["txt"], "txt_ids": cond["txt_ids"], "y": cond["vec"]}
    t = torch.tensor([0.9, 0.4, 0.0], dtype=torch.float64)

    def velocity(x, at):
        seen, places = torch.cat([x, picture], 1), torch.cat([cond["img_ids"], ids], 1)
        return net(seen, places, timesteps=full(x, at), guidance=full(x, 2.5), **names)[:, :6]

    model = flux.denoiser(net, guidance=2.5)
    schedule = oss_ext.Schedule.from_grid(t, "euler", model)
    both = {**cond, "img_cond_seq": picture, "img_cond_seq_ids": ids}
    close(schedule.sample(model, noise, both), flow_euler(velocity, noise, t))
    with pytest.raises(ValueError, match="wanted both of img_cond_seq and img_cond_seq_ids"):
        schedule.sample(model, noise, {**cond, "img_cond_seq": picture})

    mask = rows(2, 6, 3, seed=4)
    joined = tiny("Flux", channels=11)
    filled = flux.denoiser(lambda img, **rest: joined(img, **rest)[..., :8], guidance=2.5)

    def fill(x, at):
        seen = torch.cat([x, mask], -1)
        return joined(seen, cond["img_ids"], timesteps=full(x, at), guidance=full(x, 2.5), **names)[..., :8]

    close(schedule.sample(filled, noise, {**cond, "img_cond": mask}), flow_euler(fill, noise, t))


def test_flux_in_bfloat16_is_told_the_time_in_bfloat16():
    told = []

    def net(**given):
        told.append((given["timesteps"].dtype, given["timesteps"][0].item()))
        return tiny("Flux", dtype=torch.bfloat16)(**given)

    model = flux.denoiser(net)
    cond = {key: value.bfloat16() for key, value in flux_cond(1, 4).items()}
    model.velocity(rows(1, 4, 8, seed=5).bfloat16(), torch.tensor([0.9968]).double(), cond)
    assert told == [(torch.bfloat16, torch.tensor(0.9968).bfloat16().item())] and told[0][1] == 0.99609375


def wan_parts():
    noise = rows(2, 4, 3, 4, 6, seed=6)
    texts = [rows(5, TEXT, seed=7), rows(3, TEXT, seed=8)]
    negative = rows(4, TEXT, seed=9)
    context = wan.contexts([*texts, negative])
    return noise, texts, negative, {"context": context[:2]}, {"context": context[2:]}


@pytest.mark.parametrize("truncate", [True, False], ids=["whole", "exact"])
def test_wan_is_its_generate_loop_with_euler_steps(truncate):
    net = tiny("Wan")
    noise, texts, negative, cond, null = wan_parts()
    asked = []

    def velocity(x, at):
        told = math.floor(1000 * at + 1e-9) if truncate else 1000 * at
        asked.append(told)
        t = full(x, told)
        out = torch.stack(net(list(x), t=t, context=texts, seq_len=3 * 2 * 3))
        base = torch.stack(net(list(x), t=t, context=[negative] * 2, seq_len=3 * 2 * 3))
        return base + 5.0 * (out - base)

    model = wan.denoiser(net, guidance=5.0, null=null, truncate=truncate)
    schedule = along(model, f"flow:shift={wan.SHIFT}")
    u = 1 - torch.arange(5, dtype=torch.float64) / 5
    close(schedule.t[:-1], 5 * u / (1 + 4 * u))  # its get_sampling_sigmas
    close(schedule.sample(model, noise, cond), flow_euler(velocity, noise, schedule.t))
    close(schedule.timesteps, torch.tensor(asked, dtype=torch.float64), atol=1e-9)
    assert model.describe() == {"parameterization": "flow", "timesteps": 1000, "truncated": truncate}


def test_wan_without_guidance_and_with_a_picture():
    net = tiny("Wan", in_dim=9)
    noise, _, negative, cond, null = wan_parts()
    clip, picture = rows(2, 7, 5, seed=10), rows(2, 5, 3, 4, 6, seed=11)
    seen = {**cond, "clip_fea": clip, "y": picture}
    t = torch.tensor([0.95, 0.5, 0.2, 0.0], dtype=torch.float64)

    def passes(x, at, context):
        given = {"clip_fea": clip, "y": list(picture)}
        return torch.stack(net(list(x), t=full(x, 1000 * at), context=list(context), seq_len=18, **given))

    plain = wan.denoiser(net, guidance=None)
    schedule = oss_ext.Schedule.from_grid(t, "euler", plain)
    wanted = flow_euler(lambda x, at: passes(x, at, cond["context"]), noise, t)
    close(schedule.sample(plain, noise, seen), wanted)

    def both(x, at):
        base = passes(x, at, [negative] * 2)
        return base + 3.0 * (passes(x, at, cond["context"]) - base)

    guided = wan.denoiser(net, guidance=3.0, null=null)
    close(schedule.sample(guided, noise, seen), flow_euler(both, noise, t))


def test_autocast_holds_for_the_network_alone():
    noise, _, _, cond, _ = wan_parts()
    seen = []

    def net(x, t, context, seq_len):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return x

    net.patch_size = (1, 2, 2)
    at = torch.tensor([0.5, 0.5], dtype=torch.float64)
    wan.denoiser(net, guidance=None, autocast=torch.bfloat16).velocity(noise, at, cond)
    wan.denoiser(net, guidance=None).velocity(noise, at, cond)
    assert seen == [torch.bfloat16, False] and not torch.is_autocast_enabled("cpu")


def test_whole_timesteps_survive_rounding():
    model = wan.denoiser(tiny("Wan"), guidance=None)
    whole = torch.arange(1000, 0, -1, dtype=torch.float64)
    assert torch.equal(model.timesteps(whole / 1000), whole)
    assert torch.equal(model.flow_table.flip(0), whole / 1000)
    grid = oss_ext.grids.snap(oss_ext.grids.make("flow:shift=8", 200), model.flow_table.flip(0))
    assert torch.equal(model.timesteps(grid[:-1]), (1000 * grid[:-1]).round())
    noise, _, _, cond, null = wan_parts()
    model = wan.denoiser(tiny("Wan"), null=null)
    schedule = oss_ext.dp_search(
        model, noise, 3, teacher_steps=30, grid="flow:shift=5", nodes="integer", cond=cond
    ).schedule
    close(schedule.timesteps, 1000 * schedule.t[:-1], atol=1e-9)
    assert wan.denoiser(tiny("Wan"), truncate=False).flow_table is None
    assert torch.equal(
        model.timesteps(torch.tensor([0.57, 0.99999], dtype=torch.float64)), torch.tensor([570.0, 999.0]).double()
    )


def sora_parts():
    noise = rows(2, 4, 5, 4, 4, seed=12)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    cond = {"y": rows(2, 1, 4, TEXT, seed=13), "mask": mask}
    cond |= {key: torch.full((2,), value).double() for key, value in (("height", 32.0), ("width", 32.0), ("fps", 24.0))}
    return noise, cond, rows(1, 1, 4, TEXT, seed=14)


def test_open_sora_is_its_sample_loop():
    net = tiny("STDiT3")
    noise, cond, null = sora_parts()
    model = open_sora.denoiser(net, guidance=7.0, null={"y": null})
    ratio = open_sora.shift(num_frames=51, height=32, width=48)
    assert ratio == pytest.approx(math.sqrt(32 * 48 / 512**2) * math.sqrt(51 // 17 * 5))
    assert open_sora.shift(1, 512, 512) == 1.0
    schedule = along(model, f"flow:shift={ratio}")
    u = 1 - torch.arange(5, dtype=torch.float64) / 5
    timesteps = torch.cat([ratio * u / (1 + (ratio - 1) * u) * 1000, torch.zeros(1)])  # its timestep_transform

    z, rest = noise, {key: value for key, value in cond.items() if key != "y"}
    for here, there in pairwise(timesteps):
        y = torch.cat([cond["y"], null.expand_as(cond["y"])])
        out, base = net(torch.cat([z, z]), full(torch.cat([z, z]), here), y=y, **rest)[:, :4].chunk(2)
        z = z + (base + 7.0 * (out - base)) * (here - there) / 1000
    close(schedule.sample(model, noise, cond), z)
    close(schedule.timesteps, timesteps[:-1], atol=1e-9)

    plain = open_sora.denoiser(net, guidance=None)
    wanted = flow_euler(lambda x, at: -net(x, full(x, 1000 * at), **cond)[:, :4], noise, schedule.t)
    close(schedule.sample(plain, noise, cond), wanted)


def test_guidance_without_its_null_is_refused():
    noise, cond, null = sora_parts()
    at = torch.tensor([0.5, 0.5], dtype=torch.float64)
    net = tiny("STDiT3")
    with pytest.raises(ValueError, match="null: got none with guidance"):
        open_sora.denoiser(net).velocity(noise, at, cond)
    with pytest.raises(ValueError, match=r"null: got 'text', but cond has no 'text'"):
        open_sora.denoiser(net, null={"text": null}).velocity(noise, at, cond)
    with pytest.raises(ValueError, match=r"null\['y'\]: got shape \[1, 1, 3, 12\], wanted one that broadcasts"):
        open_sora.denoiser(net, null={"y": null[:, :, :3]}).velocity(noise, at, cond)


def test_every_family_is_searched_and_replayed():
    noise, _, _, cond, null = wan_parts()
    cases = {
        "flux": (flux.denoiser(tiny("Flux")), rows(2, 6, 8, seed=1), flux_cond(2, 6)),
        "wan": (wan.denoiser(tiny("Wan"), null=null), noise, cond),
        "open_sora": (open_sora.denoiser(tiny("STDiT3"), guidance=None), *sora_parts()[:2]),
    }
    for model, noise, cond in cases.values():
        result = oss_ext.dp_search(model, noise, 3, teacher_steps=30, grid="flow:shift=3", cond=cond)
        again = result.schedule.sample(model, noise, cond)
        cost = (again - result.teacher).square().mean().item()
        assert cost == pytest.approx(result.schedule.provenance.cost, rel=1e-9)


def test_a_search_looks_at_the_chosen_frames():
    noise, _, _, cond, null = wan_parts()
    model = wan.denoiser(tiny("Wan"), null=null)
    weight = cost_weight(noise.shape[1:], frames=[0, 2], channels=[1])
    result = oss_ext.dp_search(model, noise, 3, teacher_steps=30, grid="flow:shift=5", cond=cond, weight=weight)
    off = result.schedule.sample(model, noise, cond) - result.teacher
    assert result.schedule.provenance.cost == pytest.approx(off[:, 1, [0, 2]].square().mean().item(), rel=1e-6)


def test_cost_weights_pick_frames_and_channels():
    weight = cost_weight((4, 7, 2, 3), frames=4, channels=[0, 2])
    chosen = weight[:, :, 0, 0] > 0
    assert chosen.nonzero().tolist() == [[c, f] for c in (0, 2) for f in (0, 2, 4, 6)]
    assert weight.mean().item() == pytest.approx(1.0) and weight.unique().numel() == 2
    assert torch.equal(cost_weight((4, 7, 2, 3)), torch.ones(4, 7, 2, 3))
    squares = rows(4, 7, 2, 3, seed=15).square()
    assert (weight * squares).mean().item() == pytest.approx(squares[[0, 2]][:, [0, 2, 4, 6]].mean().item(), rel=1e-6)
    assert cost_weight((4, 7, 2, 3), frames=1)[0, :, 0, 0].nonzero().flatten().tolist() == [0]
    for bad, match in (
        ({"frames": 8}, "frames: got 8, wanted at most 7"),
        ({"frames": [1, 1]}, r"frames: got \[1, 1\]"),
        ({"channels": [4]}, "channels: got 4, wanted at most 3"),
    ):
        with pytest.raises(ValueError, match=match):
            cost_weight((4, 7, 2, 3), **bad)
    with pytest.raises(ValueError, match=r"shape: got \[4, 7\]"):
        cost_weight((4, 7))
