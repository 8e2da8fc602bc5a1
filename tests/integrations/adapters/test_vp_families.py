"""Adapters of guided-diffusion, DiT and MAR: DDIM steps of their repositories, written out, on small networks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.adapters import ddim, full, rows, tiny

import oss_ext
from oss_ext.integrations import dit, guided_diffusion, mar
from oss_ext.integrations.betas import alphas_cumprod

TIMESTEPS = [999, 870, 640, 333, 120, 7]


def along(model, timesteps=TIMESTEPS):
    return oss_ext.Schedule.from_grid(guided_diffusion.respaced_grid(model, timesteps), "euler", model)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-10)


def test_tables_are_the_published_ones():
    linear = alphas_cumprod("linear")
    assert linear[0].item() == pytest.approx(1 - 1e-4, abs=1e-15)
    assert linear[-1].item() == pytest.approx(4.0358297e-5, rel=1e-6)  # DDPM's last alpha_bar
    assert (linear[1] / linear[0]).item() == pytest.approx(1 - (1e-4 + (0.02 - 1e-4) / 999), abs=1e-15)
    cosine = alphas_cumprod("cosine", 100)
    at = torch.arange(1, 100, dtype=torch.float64) / 100
    wanted = (
        torch.cos((at + 0.008) / 1.008 * torch.pi / 2) ** 2 / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2
    )
    torch.testing.assert_close(cosine[:-1], wanted, rtol=1e-7, atol=0)
    assert (cosine[-1] / cosine[-2]).item() == pytest.approx(1e-3)  # beta is cut at 0.999
    with pytest.raises(ValueError, match="name: got 'sigmoid', wanted one of linear, cosine"):
        alphas_cumprod("sigmoid")


@pytest.mark.parametrize("clip", [False, True], ids=["free", "clipped"])
def test_guided_diffusion_steps_are_ddim(clip):
    network, noise = tiny("UNet"), 2 * rows(3, 3, 4, 4, seed=1)
    model = guided_diffusion.denoiser(network, clip_denoised=clip)
    wanted = ddim(lambda x, k: network(x, full(x, k))[:, :3], noise, TIMESTEPS, alphas_cumprod(), clip=clip)
    close(along(model).sample(model, noise), wanted)
    assert clip == bool((wanted.abs().max() <= 1 + 1e-12).item())
    assert model.describe().get("clip_denoised", False) == clip


def test_labels_reach_the_network():
    network, noise, y = tiny("UNet", classes=7), rows(2, 3, 4, 4, seed=2), torch.tensor([3, 6])
    model = guided_diffusion.denoiser(network)
    wanted = ddim(lambda x, k: network(x, full(x, k), y)[:, :3], noise, TIMESTEPS, alphas_cumprod())
    close(along(model).sample(model, noise, {"y": y}), wanted)


def test_a_network_without_learned_variance_and_one_that_predicts_x0():
    network, noise, table = tiny("UNet"), rows(2, 3, 4, 4, seed=3), alphas_cumprod()
    plain = guided_diffusion.denoiser(lambda x, k: network(x, k)[:, :3])
    close(along(plain).sample(plain, noise), along(m := guided_diffusion.denoiser(network)).sample(m, noise))

    def clean(x, k):
        alpha = table[k.long()].reshape(-1, 1, 1, 1)
        return (x - (1 - alpha).sqrt() * network(x, k)[:, :3]) / alpha.sqrt()

    x0 = guided_diffusion.denoiser(clean, predict_xstart=True)
    assert x0.parameterization == "x0"
    torch.testing.assert_close(along(x0).sample(x0, noise), along(plain).sample(plain, noise), rtol=0, atol=1e-8)


def respaced(kept, **options):
    """What the repository's SpacedDiffusion holds after keeping these timesteps of the linear table."""
    return SimpleNamespace(
        alphas_cumprod=alphas_cumprod()[kept].numpy(),
        timestep_map=kept,
        original_num_steps=1000,
        num_timesteps=len(kept),
        model_mean_type=SimpleNamespace(name="EPSILON"),
        **options,
    )


def test_a_respaced_diffusion_tells_the_network_its_own_timesteps():
    network, noise = tiny("UNet"), rows(2, 3, 4, 4, seed=4)
    kept = sorted({*range(0, 1000, 111), *TIMESTEPS})
    spaced = guided_diffusion.from_diffusion(network, respaced(kept, rescale_timesteps=True))
    whole = guided_diffusion.denoiser(network)
    assert len(spaced.flow_table) == len(kept)
    close(along(spaced, [kept.index(k) for k in TIMESTEPS]).sample(spaced, noise), along(whole).sample(whole, noise))
    told = []
    watched = guided_diffusion.from_diffusion(lambda x, k: told.append(k[0].item()) or network(x, k), respaced(kept))
    halfway = torch.lerp(*watched.flow_table[[4, 5]].logit(), 0.5).sigmoid().reshape(1)
    watched.velocity(noise[:1], halfway)
    assert told[0] == pytest.approx((kept[4] + kept[5]) / 2)


def test_a_search_on_whole_timesteps_is_what_the_repositorys_loop_can_run():
    model = guided_diffusion.denoiser(tiny("UNet"))
    noise = rows(2, 3, 4, 4, seed=5)
    grid = guided_diffusion.respaced_grid(model, range(0, 1000, 40))
    schedule = oss_ext.dp_search(model, noise, 4, grid=grid, nodes="integer").schedule
    kept = guided_diffusion.use_timesteps(schedule)
    assert kept <= set(range(0, 1000, 40)) and len(kept) == 4
    replayed = ddim(lambda x, k: model.fn(x, full(x, k)), noise, sorted(kept, reverse=True), alphas_cumprod())
    close(schedule.sample(model, noise), replayed)


def test_schedules_that_its_loop_cannot_run_are_refused():
    model = guided_diffusion.denoiser(tiny("UNet"))
    between = oss_ext.Schedule.from_grid(oss_ext.grids.for_model("edm", 5, model), "euler", model)
    with pytest.raises(ValueError, match="wanted whole ones"):
        guided_diffusion.use_timesteps(between)
    with pytest.raises(ValueError, match="got solver 'ab2', wanted 'euler'"):
        guided_diffusion.use_timesteps(
            oss_ext.Schedule.from_grid(guided_diffusion.respaced_grid(model, TIMESTEPS), "ab2", model)
        )
    with pytest.raises(ValueError, match=r"timesteps: got \[1000\]"):
        guided_diffusion.respaced_grid(model, [5, 1000])
    other = respaced([0, 1])
    other.model_mean_type.name = "PREVIOUS_X"
    with pytest.raises(ValueError, match="predicts PREVIOUS_X"):
        guided_diffusion.from_diffusion(tiny("UNet"), other)
    with pytest.raises(ValueError, match="wanted 3 or 6 channels"):
        wide = guided_diffusion.denoiser(lambda x, k: x.repeat(1, 3, 1, 1))
        wide.velocity(rows(1, 3, 4, 4, seed=0), torch.tensor([0.5], dtype=torch.float64))


def test_dit_guides_three_channels_of_four():
    net, noise, y, scale = tiny("DiT"), rows(3, 4, 4, 4, seed=6), torch.tensor([0, 2, 4]), 1.5

    def eps(x, k):
        out = net(x, full(x, k), y)[:, :4]
        base = net(x, full(x, k), torch.full_like(y, 5))[:, :4]
        out[:, :3] = base[:, :3] + scale * (out[:, :3] - base[:, :3])
        return out

    model = dit.denoiser(net, cfg_scale=scale, null_label=5)
    close(along(model).sample(model, noise, {"y": y}), ddim(eps, noise, TIMESTEPS, alphas_cumprod()))


def test_dit_without_guidance():
    net, noise, y = tiny("DiT"), rows(3, 4, 4, 4, seed=7), torch.tensor([1, 2, 3])
    wanted = ddim(lambda x, k: net(x, full(x, k), y)[:, :4], noise, TIMESTEPS, alphas_cumprod())
    for model in (dit.denoiser(net), dit.denoiser(net, cfg_scale=1.0)):
        close(along(model).sample(model, noise, {"y": y}), wanted)
    with pytest.raises(TypeError, match="without forward_with_cfg"):
        dit.denoiser(lambda x, t, y: x, cfg_scale=2.0)


def test_mars_head_guided_with_a_scale_a_token():
    head, noise = tiny("MARHead"), rows(5, 6, seed=8)
    c, null = rows(5, 8, seed=9), rows(5, 8, seed=10)
    scale = torch.tensor([1.1, 1.5, 2.0, 2.5, 2.9], dtype=torch.float64)

    def eps(x, k):
        out, base = head(x, full(x, k), c)[:, :6], head(x, full(x, k), null)[:, :6]
        return base + scale[:, None] * (out - base)

    model = mar.denoiser(head)
    cond = {"c": c, "null_c": null, "guidance": scale}
    close(along(model).sample(model, noise, cond), ddim(eps, noise, TIMESTEPS, alphas_cumprod("cosine")))
    plain = ddim(lambda x, k: head(x, full(x, k), c)[:, :6], noise, TIMESTEPS, alphas_cumprod("cosine"))
    close(along(model).sample(model, noise, {"c": c}), plain)


def test_mar_is_searched_on_recorded_tokens_and_uses_the_schedule_for_all():
    net = tiny("MAR")
    labels = torch.tensor([0, 3, 4])
    with mar.recorded(net.diffloss) as tokens:
        net.sample_tokens(3, num_iter=4, cfg=2.0, labels=labels)
    assert "sample" not in vars(net.diffloss)
    assert len(tokens.calls) == 4 and set(tokens.calls[0]) == {"c", "null_c", "guidance"}
    assert [call["guidance"][0].item() for call in tokens.calls] == pytest.approx([1.25, 1.5, 1.75, 2.0])
    noise, cond = tokens.draw(count=8, calls=[0, 3], generator=torch.Generator().manual_seed(0))
    assert noise.shape == (8, 6) and cond["c"].shape == cond["null_c"].shape == (8, 8)
    model = mar.denoiser(net.diffloss.net)
    result = oss_ext.dp_search(model, noise, 5, teacher_steps=40, grid="ddim", cond=cond)
    torch.testing.assert_close(
        (result.schedule.sample(model, noise, cond) - result.teacher).square().mean().item(),
        result.schedule.provenance.cost,
    )

    with mar.applied(net.diffloss, result.schedule):
        torch.manual_seed(3)
        images = net.sample_tokens(3, num_iter=4, cfg=2.0, labels=labels)
        with pytest.raises(ValueError, match=r"temperature: got 0\.9, wanted 1"):
            net.sample_tokens(3, num_iter=4, cfg=2.0, labels=labels, temperature=0.9)
    assert "sample" not in vars(net.diffloss)
    torch.manual_seed(3)
    first = torch.randn(12, 6, dtype=torch.float64)  # what the first call of four drew
    start = {
        "c": net._condition(torch.zeros(3, 16, 6, dtype=torch.float64), labels, torch.arange(4)),
        "null_c": net._condition(torch.zeros(3, 16, 6, dtype=torch.float64), torch.full((3,), 5), torch.arange(4)),
        "guidance": torch.full((12,), 1.25, dtype=torch.float64),
    }
    torch.testing.assert_close(images[:, :4].reshape(12, 6), result.schedule.sample(model, first, start))


def test_mar_under_autocast_keeps_tokens_in_float32():
    net = tiny("MAR", dtype=torch.float32)
    with mar.recorded(net.diffloss) as tokens, torch.autocast("cpu", torch.bfloat16):
        net.diffloss.sample(rows(4, 8, seed=1).bfloat16())
    noise, cond = tokens.draw()
    assert noise.dtype == cond["c"].dtype == torch.float32
    model = mar.denoiser(net.diffloss.net)
    schedule = oss_ext.dp_search(model, noise, 2, teacher_steps=10, grid="ddim", cond=cond).schedule
    with mar.applied(net.diffloss, schedule), torch.autocast("cpu", torch.bfloat16):
        drawn = net.diffloss.sample(rows(4, 8, seed=1).bfloat16(), cfg=torch.tensor([1.0]))
    assert drawn.dtype == torch.float32 and drawn.shape == (4, 6)


def test_mar_tokens_that_cannot_be_drawn_together():
    net = tiny("MAR")
    with mar.recorded(net.diffloss) as tokens:
        net.sample_tokens(2, labels=torch.tensor([0, 1]))
        net.sample_tokens(2, cfg=3.0, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="calls: got guided and unguided ones"):
        tokens.draw()
    assert set(tokens.draw(calls=range(4))[1]) == {"c"}
    with pytest.raises(ValueError, match="calls: none was recorded"):
        tokens.draw(calls=[])
