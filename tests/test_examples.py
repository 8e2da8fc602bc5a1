"""Every example runs with --tiny, writes what it says, and finds schedules nearer to the teacher than stock ones."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import oss_ext
from oss_ext.metrics import pooled_psnr, psnr

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("search_*.py"))
FAMILIES = {
    "search_edm": "edm",
    "search_lsun": "epsilon",
    "search_dit": "epsilon",
    "search_mar": "epsilon",
    "search_flux": "flow",
    "search_wan": "flow",
    "search_open_sora": "flow",
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script as a program, in this process, and returns what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            for name in ("example_common", "tiny_networks"):
                sys.modules.pop(name, None)
        return capsys.readouterr().out

    return run


def test_there_is_one_for_every_family():
    assert {script.stem for script in SCRIPTS} >= set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_tiny(name, run, tmp_path):
    printed = run(EXAMPLES / f"{name}.py", "--tiny", "--output", tmp_path, "--device", "cpu")
    schedule = oss_ext.Schedule.load(tmp_path / "schedule.json")
    assert schedule.steps == 4 and schedule.parameterization == FAMILIES[name]
    assert schedule.provenance.metadata == {"tiny": True} and schedule.provenance.samples == 4
    assert (tmp_path / "schedules.png").stat().st_size > 1000
    samples = load_file(tmp_path / "samples.safetensors")
    assert samples["teacher"].shape[0] == 2 and bool(samples["teacher"].isfinite().all())
    stock, searched = ((samples[key] - samples["teacher"]).square().mean().sqrt() for key in ("stock", "searched"))
    assert searched < stock
    shown = [float(value) for value in re.findall(r"steps: ([\d.]+)%", printed)]
    spread = samples["teacher"].double().std()
    assert shown == pytest.approx([float(100 * stock / spread), float(100 * searched / spread)], abs=0.01)
    assert (tmp_path / "comparison.png").exists() == (name in ("search_edm", "search_lsun"))
    if name == "search_mar":
        assert load_file(tmp_path / "images.safetensors")["tokens"].shape == (8, 16, 6)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "weights"])
def test_weights_are_read_from_safetensors_alone(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    weights = importlib.import_module("example_common").weights
    held = {"one": torch.arange(3.0)}
    save_file(held, tmp_path / "weights.safetensors")
    assert torch.equal(weights(tmp_path / "weights.safetensors")["one"], held["one"])
    torch.save(held, tmp_path / name)
    with pytest.raises(SystemExit, match=re.escape(f"{name}: got a {Path(name).suffix or 'nameless'} file, wanted")):
        weights(tmp_path / name)


def test_experts(run, tmp_path, monkeypatch):
    printed = run(EXAMPLES / "experts.py", "--tiny", "--output", tmp_path, "--device", "cpu")
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["settings"]["steps"] == 3 and set(record["rows"]) == {"uniform", "searched"}
    assert record["rows"]["uniform"]["nodes"] != record["rows"]["searched"]["nodes"]
    monkeypatch.syspath_prepend(str(EXAMPLES))
    experts = importlib.import_module("experts")
    model = experts.tiny_model(torch.device("cpu"))
    noise, cond = model.noise(16, split="heldout")
    fine = oss_ext.Schedule.from_grid(oss_ext.grids.make("flow", 24), "unipc", model)
    target = fine.sample(model, noise, cond)
    for name, row in record["rows"].items():
        schedule, several = experts.load_experts(tmp_path, name, model)
        assert schedule.nodes.tolist() == row["nodes"] and len(several.models) == 3
        for key, who in (("untuned", model), ("tuned", several)):
            each = psnr(schedule.sample(who, noise, cond), target)
            assert float(pooled_psnr(each)) == pytest.approx(row[key]["psnr"], abs=1e-3)
            assert f"{row[key]['psnr']:.2f} ({row[key]['mean_psnr']:.2f})" in printed
        assert row["tuned"]["psnr"] > row["untuned"]["psnr"] and row["mean_gain"] > 3 * row["mean_gain_error"]
        assert all(0 < left < 1 for left in row["error_left_by_step"])
        with pytest.raises(ValueError, match=r"t: got \[0.77\], wanted one of"):
            several.velocity(noise, torch.full((16,), 0.77, dtype=torch.float64), cond)


def test_experts_that_learn_nothing_are_the_network(run, tmp_path):
    """What does no better on the noises that judge is put back."""
    run(EXAMPLES / "experts.py", "--tiny", "--output", tmp_path, "--device", "cpu", "--rate", 1.0, "--iterations", 1)
    for row in json.loads((tmp_path / "results.json").read_text())["rows"].values():
        assert row["tuned"] == row["untuned"] and row["error_left_by_step"] == [1.0] * 3


def test_a_schedule_for_the_repositorys_own_loop(run, tmp_path):
    printed = run(
        EXAMPLES / "search_lsun.py", "--tiny", "--output", tmp_path, "--device", "cpu", "--solver", "euler", "--integer"
    )
    schedule = oss_ext.Schedule.load(tmp_path / "schedule.json")
    wanted = sorted(int(value) for value in schedule.timesteps)
    assert torch.equal(schedule.timesteps, schedule.timesteps.round()) and f"use_timesteps: {wanted}" in printed


@pytest.mark.parametrize("name", ["search_wan", "search_open_sora"])
def test_costs_of_some_frames(name, run, tmp_path):
    for frames in (1, 2, 3):
        folder = tmp_path / str(frames)
        run(EXAMPLES / f"{name}.py", "--tiny", "--output", folder, "--device", "cpu", "--cost-frames", frames)
    all_of = 3 if name == "search_wan" else 5
    run(EXAMPLES / f"{name}.py", "--tiny", "--output", tmp_path / "all", "--device", "cpu")
    run(EXAMPLES / f"{name}.py", "--tiny", "--output", tmp_path / "each", "--device", "cpu", "--cost-frames", all_of)
    costs = {each.name: oss_ext.Schedule.load(each / "schedule.json").provenance.cost for each in tmp_path.iterdir()}
    assert costs["each"] == pytest.approx(costs["all"], rel=1e-5)
    assert len({costs[key] for key in ("1", "2", "all")}) == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_without_tiny_the_repository_is_asked_for(name, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(EXAMPLES / f"{name}.py")
    assert stopped.value.code == 2 and "--repo is needed without --tiny" in capsys.readouterr().err


def test_as_a_program_from_elsewhere(tmp_path):
    command = [sys.executable, EXAMPLES / "search_flux.py", "--tiny", "--output", "made", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "schedule.json").exists() and "searched, 4 steps" in done.stdout
