"""The command: files, JSON, errors in one line, and nothing left behind by failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import oss_ext
from oss_ext import Schedule, cli, cli_demo, cli_search
from oss_ext.cli_common import parse_model_args, parse_shape
from oss_ext.teacher import DEFAULT_SOLVER

MODULE = '''
import torch, oss_ext

def build(gain=1.0, with_shape=True):
    """A denoiser of flow times whose velocity bends with t."""
    model = oss_ext.FlowModel(lambda x, t: gain * x.sin() * t.view(-1, *[1] * (x.ndim - 1)).to(x.dtype) ** 2)
    if with_shape:
        model.shape = (5,)
    return model

def labelled():
    def velocity(x, t, shift):
        return x * (t.view(-1, 1) - shift.view(-1, 1))
    model = oss_ext.FlowModel(velocity)
    def noise(count):
        return torch.full((count, 2), 0.5), {"shift": torch.arange(count) / count}
    model.noise = noise
    model.shape = (2,)
    return model

def discrete():
    """An epsilon model of ten timesteps."""
    model = oss_ext.EpsilonModel(lambda x, timestep: x.tanh(), torch.linspace(0.999, 0.01, 10, dtype=torch.float64))
    model.shape = (3,)
    return model

def wrong():
    return 3

number = 3
'''


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def one_object(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty current folder but for a module `here_NAME` of models; the name is this test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    (tmp_path / "here.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "here", raising=False)
    yield tmp_path
    sys.modules.pop("here", None)


SMALL = ("--steps", 3, "--teacher-steps", 8, "--samples", 2, "--device", "cpu")


def test_search_writes_what_dp_search_finds(folder: Path) -> None:
    found = one_object(run("search", "here:build", *SMALL, "--model-arg", "gain=3", "--seed", 4, "--json"))
    model = oss_ext.FlowModel(lambda x, t: 3 * x.sin() * t.view(-1, 1) ** 2)
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    wanted = oss_ext.dp_search(model, noise, 3, teacher_steps=8)
    schedule = Schedule.load("schedule.json")
    assert torch.equal(schedule.t, wanted.schedule.t)
    assert found["budgets"]["3"]["t"] == schedule.t.tolist()
    assert found["budgets"]["2"]["t"] == wanted.schedules[2].t.tolist()
    assert found["nfe"] == wanted.nfe
    assert schedule.provenance.metadata == {"source": "here:build", "model_arg": {"gain": 3}}


def test_search_options_reach_the_search(folder: Path) -> None:
    options = (
        "--grid",
        "flow:shift=3",
        "--solver",
        "ab2",
        "--share",
        "median",
        "--start",
        "free",
        "--dtype",
        "float64",
    )
    found = one_object(run("search", "here:build", *SMALL, *options, "--shape", "4,2", "--batch-size", 3, "--json"))
    assert [found[key] for key in ("grid", "solver", "share", "start")] == ["flow:shift=3", "ab2", "median", "free"]
    assert Schedule.load("schedule.json").solver == "ab2"


def test_search_options_of_the_stages(folder: Path) -> None:
    options = {"teacher_solver": "ab2", "candidates": 5, "beam": 2, "solver": "mixed"}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = one_object(run("search", "here:build", *SMALL, *flags, "--model-arg", "gain=3", "--seed", 4, "--json"))
    model = oss_ext.FlowModel(lambda x, t: 3 * x.sin() * t.view(-1, 1) ** 2)
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    wanted = oss_ext.dp_search(model, noise, 3, teacher_steps=8, **options)
    assert found.items() >= {**options, "nodes": "any", "tried": None}.items()
    assert found["nfe"] == wanted.nfe
    loaded = Schedule.load("schedule.json")
    assert torch.equal(loaded.t, wanted.schedule.t) and torch.equal(loaded.coefficients, wanted.schedule.coefficients)
    assert found["nfe"] != oss_ext.dp_search(model, noise, 3, teacher_steps=8, solver="mixed").nfe


def test_search_by_another_cost(folder: Path) -> None:
    options = ("here:build", *SMALL, "--model-arg", "gain=3", "--seed", 4, "--json")
    model = oss_ext.FlowModel(lambda x, t: 3 * x.sin() * t.view(-1, 1) ** 2)
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    for more, cost in (((), "x0"), (("--cost-sources", 2), oss_ext.costs.X0(2))):
        found = one_object(run("search", *options, "--cost", "x0", *more))
        wanted = oss_ext.dp_search(model, noise, 3, teacher_steps=8, cost=cost)
        assert found["cost"] == "x0" and found["nfe"] == wanted.nfe and found["nfe"]["cost"] > 0
        loaded = Schedule.load("schedule.json")
        assert torch.equal(loaded.t, wanted.schedule.t)
        assert loaded.provenance.judged_by == wanted.schedule.provenance.judged_by
    assert "cost_sources: got 2 with cost 'x_t'" in run("search", *options, "--cost-sources", 2).stderr


@pytest.mark.parametrize("method", ["nodes", "gradient"])
def test_search_refines(folder: Path, method: str) -> None:
    options = ("here:build", *SMALL, "--model-arg", "gain=3", "--seed", 4, "--json")
    found = one_object(run("search", *options, "--refine", method))
    model = oss_ext.FlowModel(lambda x, t: 3 * x.sin() * t.view(-1, 1) ** 2)
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    wanted = oss_ext.dp_search(model, noise, 3, teacher_steps=8, refine=method)
    loaded = Schedule.load("schedule.json")
    assert found["refine"] == method
    assert torch.equal(loaded.t, wanted.schedule.t) and torch.equal(loaded.coefficients, wanted.schedule.coefficients)
    assert found["nfe"] == wanted.nfe and found["nfe"]["refine"] > 0
    assert one_object(run("search", *options))["nfe"] != wanted.nfe


def test_search_on_whole_timesteps(folder: Path) -> None:
    found = one_object(run("search", "here:discrete", *SMALL, "--nodes", "integer", "--json"))
    assert found["nodes"] == "integer"
    timesteps = Schedule.load("schedule.json").timesteps
    assert torch.equal(timesteps, timesteps.round())
    one_object(run("search", "here:discrete", *SMALL, "--json"))
    timesteps = Schedule.load("schedule.json").timesteps
    assert not torch.equal(timesteps, timesteps.round())


def test_search_with_auto_says_what_was_tried(folder: Path) -> None:
    options = ("here:build", *SMALL, "--samples", 4, "--solver", "auto", "--seed", 4)
    found = one_object(run("search", *options, "--json"))
    model = oss_ext.FlowModel(lambda x, t: x.sin() * t.view(-1, 1) ** 2)
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(4))
    wanted = oss_ext.dp_search(model, noise, 3, teacher_steps=8, solver="auto")
    assert found["tried"] == wanted.table
    best = min((entry for entry in found["tried"] if entry["steps"] == 3), key=lambda entry: entry["cost"])
    assert best["solver"] == found["budgets"]["3"]["solver"] == Schedule.load("schedule.json").solver
    assert best["cost"] == pytest.approx(found["budgets"]["3"]["cost"])
    shown = run("search", *options)
    assert shown.exit_code == 0
    table, _, rest = shown.stdout.partition("auto, joint")
    lines = [line for line in table.splitlines() if line.startswith("│")]
    assert len(lines) == sum(entry["steps"] == 3 for entry in wanted.table)
    assert best["solver"] in lines[0] and f"{best['cost']:.3e}" in lines[0]
    assert f"{best['cost']:.3e}" in rest


def test_search_into_a_folder(folder: Path) -> None:
    found = one_object(run("search", "here:build", *SMALL, "--out", "all", "--json"))
    names = [f"steps_{k:02d}.json" for k in (1, 2, 3)]
    assert sorted(path.name for path in (folder / "all").iterdir()) == names
    assert [Path(path).name for path in found["files"]] == names
    assert [Schedule.load(folder / "all" / name).steps for name in names] == [1, 2, 3]
    each = one_object(run("search", "here:build", *SMALL, "--share", "per_sample", "--out", "each", "--json"))
    assert len(each["files"]) == 6
    assert all(Schedule.load(path).provenance.sample in (0, 1) for path in each["files"])


def test_search_takes_condition_and_noise_from_the_model(folder: Path) -> None:
    found = one_object(run("search", "here:labelled", *SMALL, "--json"))
    model = oss_ext.FlowModel(lambda x, t, shift: x * (t.view(-1, 1) - shift.view(-1, 1)))
    noise, cond = torch.full((2, 2), 0.5), {"shift": torch.arange(2) / 2}
    wanted = oss_ext.dp_search(model, noise, 3, teacher_steps=8, cond=cond)
    cost = float(wanted.costs[3].mean())
    assert found["budgets"]["3"] == {"t": wanted.schedule.t.tolist(), "solver": "euler", "cost": cost}


def test_search_talks_to_people_without_json(folder: Path) -> None:
    result = run("search", "here:build", *SMALL)
    assert result.exit_code == 0
    assert "Wrote schedule.json" in result.stdout
    assert "42 evaluations in" in " ".join(result.stdout.split())


def test_sample_equals_the_library(folder: Path) -> None:
    Schedule.from_grid(oss_ext.grids.make("flow", 4)).save("s.json")
    found = one_object(run("sample", "photo32", "s.json", "--samples", 3, "--device", "cpu", "--guidance", 2, "--json"))
    assert found["shape"] == [3, 3, 32, 32]
    assert [Path(path).name for path in found["files"]] == ["samples.safetensors", "samples.png"]
    assert (folder / "samples" / "samples.png").read_bytes()[1:4] == b"PNG"
    model = oss_ext.zoo.load("photo32", guidance_scale=2.0)
    noise, cond = model.noise(3, "heldout")
    tensors = load_file("samples/samples.safetensors")
    torch.testing.assert_close(tensors["samples"], Schedule.load("s.json").sample(model, noise, cond))
    assert torch.equal(tensors["cond.label"], cond["label"])
    one_object(
        run("sample", "photo32", "s.json", "--samples", 3, "--split", "search", "--out", "a.safetensors", "--json")
    )
    assert not torch.allclose(load_file("a.safetensors")["samples"], tensors["samples"], atol=0.1)


def test_sample_of_vectors(folder: Path) -> None:
    Schedule.from_grid(oss_ext.grids.make("flow", 4)).save("s.json")
    found = one_object(run("sample", "here:build", "s.json", "--seed", 1, "--json"))
    assert found["files"] == ["samples/samples.safetensors"]
    result = run("sample", "here:build", "s.json", "--out", "a.png")
    assert result.exit_code == 2
    assert "a .png needs samples" in result.stderr


def test_info_of_the_installation(folder: Path) -> None:
    found = one_object(run("info", "--json"))
    assert found["solvers"] == oss_ext.solvers.names()
    assert found["grids"] == oss_ext.grids.names()
    assert found["models"] == oss_ext.zoo.names()
    assert found["torch"] == torch.__version__
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found.items() >= oss_ext.build_info().items()
    shown = run("info")
    assert shown.exit_code == 0
    assert oss_ext.__version__ in shown.stdout


def test_info_of_a_schedule(folder: Path) -> None:
    schedule = Schedule.from_grid(oss_ext.grids.make("flow:shift=3", 2))
    schedule.save("s.json")
    found = one_object(run("info", "s.json", "--json"))
    assert found["t"] == schedule.t.tolist()
    assert found["dt"] == pytest.approx([0.25, 0.75])
    assert (found["noise_scale"], found["carries"], found["network_t"]) == (1.0, "velocity", None)
    assert (found["sigmas"], found["timesteps"]) == (schedule.sigmas.tolist(), schedule.timesteps.tolist())
    shown = run("info", "s.json")
    assert shown.exit_code == 0
    assert "0.75" in shown.stdout


def test_demo_small(folder: Path) -> None:
    settings = ("--steps", 3, "--teacher-steps", 6, "--samples", 2, "--heldout", 3, "--device", "cpu")
    found = one_object(run("demo", *settings, "--json"))
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["here.py", "oss-demo"]
    assert sorted(str(p.relative_to("oss-demo")) for p in Path("oss-demo").rglob("*") if p.is_file()) == [
        "comparison.png",
        "schedule.json",
        "schedules.png",
        *[f"schedules/steps_0{k}.json" for k in (1, 2, 3)],
    ]
    assert Schedule.load("oss-demo/schedule.json").t.tolist() == found["t"]
    assert Schedule.load("oss-demo/schedules/steps_02.json").steps == 2
    model = oss_ext.zoo.load("photo32")
    noise, cond = model.noise(3, "heldout")
    teacher = Schedule.from_grid(oss_ext.grids.make("flow", 6), DEFAULT_SOLVER).sample(model, noise, cond)
    error = (Schedule.load("oss-demo/schedule.json").sample(model, noise, cond) - teacher).square().flatten(1).mean(1)
    assert found["psnr_db"]["OSS"]["3"] == pytest.approx(float(10 * (4 / error.mean()).log10()), abs=1e-3)
    assert found["psnr_db"]["OSS"]["1"] == pytest.approx(found["psnr_db"]["uniform"]["1"], abs=1e-3)

    (folder / "oss-demo" / "mine.txt").write_text("kept")  # a second run replaces its own files only
    before = Path("oss-demo/comparison.png").read_bytes()
    result = run("demo", *settings, "--guidance", 3)
    assert result.exit_code == 0
    assert "OSS - uniform" in result.stdout
    assert "comparison.png" in result.stdout
    assert Path("oss-demo/comparison.png").read_bytes() != before
    assert Path("oss-demo/mine.txt").read_text() == "kept"


@pytest.mark.parametrize(("solver", "stock"), [("unipc", "unipc"), ("fitted", "dpmpp_2m")])
def test_demo_compares_with_what_people_run(folder: Path, solver: str, stock: str) -> None:
    settings = ("--steps", 2, "--teacher-steps", 5, "--samples", 2, "--heldout", 2, "--device", "cpu")
    found = one_object(run("demo", *settings, "--solver", solver, "--candidates", 3, "--json"))
    assert (found["solver"], found["stock_solver"], found["candidates"]) == (solver, stock, 3)
    model = oss_ext.zoo.load("photo32")
    noise, cond = model.noise(2, "heldout")
    teacher = Schedule.from_grid(oss_ext.grids.make("flow", 5), DEFAULT_SOLVER).sample(model, noise, cond)
    paths = {"EDM": Schedule.from_grid(oss_ext.grids.for_model("edm", 2, model), stock)}
    paths["OSS"] = Schedule.load("oss-demo/schedule.json")
    assert paths["OSS"].solver == oss_ext.solvers.get(solver).name
    for name, schedule in paths.items():
        error = (schedule.sample(model, noise, cond) - teacher).square().mean()
        assert found["psnr_db"][name]["2"] == pytest.approx(float(10 * (4 / error).log10()), abs=1e-3)


def test_demo_of_the_other_model(folder: Path) -> None:
    settings = ("--steps", 2, "--teacher-steps", 4, "--samples", 1, "--heldout", 1, "--device", "cpu")
    found = one_object(run("demo", "--model", "photo32_vp", *settings, "--json"))
    assert (found["model"]["name"], found["model"]["parameterization"]) == ("photo32_vp", "epsilon")
    assert found["t"][0] == pytest.approx(oss_ext.zoo.load("photo32_vp").t_max)
    assert "name: got 'photo64'" in run("demo", "--model", "photo64").stderr


def test_demo_with_the_teachers_own_budget_has_no_infinity_in_its_json(folder: Path) -> None:
    found = one_object(run("demo", "--steps", 2, "--teacher-steps", 2, "--samples", 1, "--heldout", 1, "--json"))
    assert found["psnr_db"]["uniform"]["2"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nope"], "model: got 'nope'"),
        (["search", "nope:build"], "No module named 'nope'"),
        (["search", "here:missing"], "model: here has no 'missing'"),
        (["search", "here:number"], "model: here:number is int"),
        (["search", "here:wrong"], "model: here:wrong returned int, wanted a Denoiser"),
        (["search", "here:build", "--model-arg", "gian=2"], "unexpected keyword argument 'gian'"),
        (["search", "here:build", "--model-arg", "gain"], "model-arg: got 'gain', wanted key=value"),
        (["search", "here:build", "--model-arg", "with_shape=false"], "shape: here:build has no .shape"),
        (["search", "here:build", "--guidance", "3"], "guidance: is for bundled models"),
        (["search", "photo32", "--model-arg", "a=1"], "model-arg: photo32 takes none"),
        (["search", "here:build", "--steps", "9", "--teacher-steps", "8"], "steps: got 9"),
        (["search", "here:build", "--grid", "cosine"], "grid: got 'cosine'"),
        (["search", "here:build", "--solver", "rk4"], "solver: got 'rk4'"),
        (["search", "here:build", "--share", "mean"], "share: got 'mean'"),
        (["search", "here:build", "--teacher-solver", "fitted"], "teacher_solver: got 'fitted'"),
        (["search", "here:build", "--candidates", "2"], "candidates: got 2, wanted at least 10"),
        (["search", "here:build", "--nodes", "integer"], "nodes: got 'integer' with a flow model"),
        (["search", "here:build", "--nodes", "all"], "nodes: got 'all'"),
        (["search", "here:build", "--beam", "0"], "beam: got 0"),
        (["search", "here:build", "--refine", "beam"], "refine: got 'beam'"),
        (["search", "here:build", "--beam", "2", "--share", "median"], "share: got 'median' with a beam of 2"),
        (["search", "here:build", "--solver", "auto", "--samples", "1"], "noise: got 1 sample with solver 'auto'"),
        (["search", "here:build", "--share", "per_sample"], "wanted a folder"),
        (["search", "here:build", "--shape", "3,x"], "shape: got '3,x'"),
        (["search", "here:build", "--samples", "0"], "samples: got 0"),
        (["search", "here:build", "--dtype", "int8"], "dtype: got 'int8'"),
        (["search", "here:build", "--device", "tpu9"], "device: got 'tpu9'"),
        (["search", "here:build", "--device", "cuda:99"], "device: got 'cuda:99'"),
        (["search", "here:build", "--out", "no/such/s.json"], "its folder does not exist"),
        (["sample", "photo32", "missing.json"], "missing.json"),
        (["sample", "photo32", "here.py"], "not JSON"),
        (["info", "here.py"], "not JSON"),
        (["demo", "--steps", "0"], "steps: got 0"),
        (["demo", "--heldout", "0"], "heldout: got 0"),
        (["demo", "--solver", "rk4"], "solver: got 'rk4'"),
        (["demo", "--out", "here.py"], "is a file, wanted the path of a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert message in lines[0]
    assert "Traceback" not in result.output
    assert {path.name for path in folder.iterdir()} <= {"here.py", "__pycache__"}


def test_traceback_on_request(folder: Path) -> None:
    result = run("--traceback", "search", "nope")
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_interruption_leaves_no_debris(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cli_demo, "plot_comparison", broken)  # the last thing that the demo does
    monkeypatch.setattr(cli_search, "found_table", broken)
    monkeypatch.setattr(cli_search, "_write", broken)
    for command in (("demo", "--heldout", 1), ("search", "photo32"), ("search", "photo32", "--out", "all")):
        result = run(*command, *SMALL)
        if isinstance(error, KeyboardInterrupt):
            assert result.exit_code == 130
            assert result.stderr.strip() == "Interrupted; nothing was written."
        else:
            assert result.exception is error
        assert {path.name for path in folder.iterdir()} <= {"here.py", "__pycache__"}


def test_ctrl_c_of_a_real_run(folder: Path, ctrl_c: None) -> None:
    # -P keeps the current folder off the path, so that the installed package runs.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "oss_ext", "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not any(path.name.startswith(".oss-demo") for path in folder.iterdir()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "Interrupted; nothing was written."
    assert {path.name for path in folder.iterdir()} <= {"here.py", "__pycache__"}


def test_module_and_entry_point_agree(folder: Path) -> None:
    script = Path(sys.executable).with_name("oss-ext")
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}).stdout
        for command in ([sys.executable, "-P", "-m", "oss_ext", "info", "--json"], [script, "info", "--json"])
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["version"] == oss_ext.__version__


def test_parsers() -> None:
    assert parse_shape("3,32,32") == (3, 32, 32)
    assert parse_shape(None) is None
    assert parse_model_args(['a="x=y"', "b=[1, 2]", "c=null"]) == {"a": "x=y", "b": [1, 2], "c": None}
    with pytest.raises(ValueError, match="twice"):
        parse_model_args(["a=1", "a=2"])
    with pytest.raises(ValueError, match="strings in quotes"):
        parse_model_args(["a=x"])


@pytest.mark.slow
def test_demo_with_default_settings(folder: Path) -> None:
    began = time.monotonic()
    found = one_object(run("demo", "--json"))
    seconds = time.monotonic() - began
    assert found["psnr_db"]["OSS"]["10"] > found["psnr_db"]["uniform"]["10"] + 2
    assert found["psnr_db"]["OSS"]["10"] > found["psnr_db"]["EDM"]["10"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores >= 2 and os.getloadavg()[0] < cores + 1:  # a machine shared with other work proves nothing
        assert seconds < 120
