"""The nodes in a running ComfyUI: it registers them, and its executor runs a graph of them, to the end of a sampling.

Runs where OSS_COMFYUI is the path of a whole ComfyUI checkout whose requirements are installed (its server's, too).
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.comfyui import COMFYUI, PACKAGE
from safetensors.torch import load_file

from oss_ext import FlowModel, Schedule, dp_search, grids

NODES = {"OSSLoadSchedule", "OSSScheduleFromText", "OSSSchedule", "OSSSearch"}
CONTEXT, SHIFT, SEED, SD15_SCALE = 0.2, 3.0, 5, 0.18215
PATIENCE = 120  # seconds, for a start
PROBE = f"""
import json
from pathlib import Path
import comfy.latent_formats, comfy.model_base, comfy.model_patcher, comfy.supported_models_base, folder_paths, torch

class Network(torch.nn.Module):
    dtype = torch.float32
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.7))
    def forward(self, x, timestep, context=None, **_):
        wave = torch.sin(timestep.view(-1, 1, 1, 1) / 400)
        return torch.tanh(self.gain * x + context.mean((1, 2)).view(-1, 1, 1, 1)) + 0.3 * wave

class Config(comfy.supported_models_base.BASE):
    unet_config = {{"disable_unet_model_creation": True}}
    latent_format = comfy.latent_formats.SD15
    sampling_settings = {{"shift": {SHIFT}}}
    memory_usage_factor = 1.0

class ProbeModel:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CONDITIONING"), "make", "probe"
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{}}}}
    def make(self):
        config = Config({{"disable_unet_model_creation": True}})
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW)
        model.diffusion_model = Network()
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, cpu, cpu), [[torch.full((1, 3, 8), {CONTEXT}), {{}}]]

class ProbeSigmas:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "write", "probe", True
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"sigmas": ("SIGMAS",), "text": ("STRING", {{"forceInput": True}})}}}}
    def write(self, sigmas, text):
        into = Path(folder_paths.get_output_directory()) / "sigmas.json"
        into.write_text(json.dumps([sigmas.tolist(), text]))
        return {{}}

NODE_CLASS_MAPPINGS = {{"ProbeModel": ProbeModel, "ProbeSigmas": ProbeSigmas}}
"""


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the network above and its conditioning are."""
    wave = torch.sin(1000 * t.to(x).view(-1, 1, 1, 1) / 400)
    return torch.tanh(0.7 * x + CONTEXT) + 0.3 * wave


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a user's ComfyUI folder holds: our nodes, linked, and two schedules."""
    for name in ("custom_nodes/probe", "models/oss_schedules/flow", "input", "output", "temp", "user", "web"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "custom_nodes" / "probe" / "__init__.py").write_text(PROBE, encoding="utf-8")
    (tmp_path / "custom_nodes" / "oss").symlink_to(PACKAGE, target_is_directory=True)
    for steps in (4, 6):
        schedule = Schedule.from_grid(grids.make(f"flow:shift={SHIFT:g}", steps), "ab2")
        schedule.save(tmp_path / "models" / "oss_schedules" / "flow" / f"steps_{steps:02d}.json")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    if COMFYUI not in os.environ:
        pytest.skip(f"{COMFYUI} is not set: the path of a ComfyUI checkout whose requirements are installed")
    checkout = Path(os.environ[COMFYUI])
    for needed in ("main.py", "middleware"):
        if not (checkout / needed).exists():
            pytest.skip(f"{COMFYUI} names a folder without {needed}: its server is not there")
    for package in ("aiohttp", "alembic", "sqlalchemy"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed, which ComfyUI's server needs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(checkout / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(folder), "--front-end-root", str(folder / "web"), "--disable-api-nodes"]
    command += ["--database-url", "sqlite:///:memory:"]
    log = folder / "log.txt"
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        running = subprocess.Popen(command, cwd=checkout, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                asked(f"{address}/system_stats")
                break
            except OSError:
                if running.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"ComfyUI did not start:\n{log.read_text()[-3000:]}", pytrace=False)
                time.sleep(0.2)
        yield address
    finally:
        running.terminate()
        running.wait(20)


def asked(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
        return json.load(answer)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """An input [name, n] is output n of another node."""
    return {"class_type": kind, "inputs": inputs}


def ran(server: str, graph: dict[str, Any]) -> tuple[str, Any]:
    """How the server's executor ended, and its messages."""
    number = asked(f"{server}/prompt", {"prompt": graph})["prompt_id"]
    until = time.monotonic() + PATIENCE
    while not (history := asked(f"{server}/history/{number}")):
        assert time.monotonic() < until
        time.sleep(0.1)
    status = history[number]["status"]
    return status["status_str"], status["messages"]


def test_graphs_run(server: str, folder: Path) -> None:
    known = asked(f"{server}/object_info")
    assert set(known) >= NODES | {"ProbeModel"}
    for name in NODES:
        assert known[name]["category"] == "sampling/oss" and known[name]["display_name"]
    assert set(known["OSSLoadSchedule"]["input"]["required"]["schedule"][0]) == {
        "flow/",
        "flow/steps_04.json",
        "flow/steps_06.json",
    }
    model = {
        "model": node("ProbeModel"),
        "guider": node("BasicGuider", model=["model", 0], conditioning=["model", 1]),
        "latent": node("EmptyLatentImage", width=64, height=48, batch_size=2),
    }

    use = {
        "schedule": node("OSSLoadSchedule", schedule="flow/", steps=4),
        "oss": node("OSSSchedule", model=["model", 0], schedule=["schedule", 0], denoise=1.0),
        "noise": node("RandomNoise", noise_seed=SEED),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["oss", 1],
            sigmas=["oss", 0],
            latent_image=["latent", 0],
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="made"),
        "sigmas": node("ProbeSigmas", sigmas=["oss", 0], text=["oss", 2]),
    }
    how, messages = ran(server, model | use)
    assert how == "success", messages
    schedule = Schedule.load(folder / "models" / "oss_schedules" / "flow" / "steps_04.json")
    sigmas, text = json.loads((folder / "output" / "sigmas.json").read_text())
    assert sigmas == schedule.sigmas.float().tolist() and text.startswith("4 steps of ab2, flow model, sigmas 1, ")
    (saved,) = (folder / "output").glob("made*.latent")
    noise = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(SEED))
    wanted = schedule.sample(FlowModel(velocity), noise) / SD15_SCALE
    torch.testing.assert_close(load_file(saved)["latent_tensor"], wanted, rtol=1e-4, atol=1e-4)

    given = {"seed": SEED, "samples": 2, "batch_size": 2, "steps": 3, "teacher_steps": 12, "solver": "fitted"}
    find = node("OSSSearch", guider=["guider", 0], latent_image=["latent", 0], grid="model", name="found", **given)
    how, messages = ran(server, model | {"find": find})
    assert how == "success", messages
    found = Schedule.load(folder / "models" / "oss_schedules" / "found" / "steps_03.json")
    beside = dp_search(FlowModel(velocity), noise, 3, teacher_steps=12, solver="fitted", grid=f"flow:shift={SHIFT:g}")
    torch.testing.assert_close(found.t, beside.schedule.t, rtol=1e-6, atol=1e-8)
    assert found.provenance.cost == pytest.approx(beside.schedule.provenance.cost, rel=1e-2)
    names = asked(f"{server}/object_info/OSSLoadSchedule")["OSSLoadSchedule"]["input"]["required"]["schedule"][0]
    assert "found/" in names

    how, messages = ran(server, model | use | {"schedule": node("OSSScheduleFromText", text="{}")})
    assert how == "error"
    assert any("text: " in str(told.get("exception_message")) for _, told in messages)
