"""`oss-ext compare` on a user's own model: files, resuming, choices, errors in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from oss_ext import cli

MODULE = '''
import torch, oss_ext

def build():
    """A denoiser of flow times whose velocity bends with t."""
    return oss_ext.FlowModel(lambda x, t: x.sin() * t.view(-1, 1, 1, 1).to(x.dtype) ** 2)

def features():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3)).requires_grad_(False)

def crops():
    return torch.zeros(6, 1, 12, 12)

def halved(latents):
    return latents / 2

number = 3
'''
ROWS = ("stock/flow*/*", "ours/joint/euler", "rivals/GITS/euler")
SMALL = ["compare", "tiny:build", "--shape", "1,12,12", "--budget", 2, "--budget", 3, "--heldout", 4, "--samples", 3]
SMALL += [
    "--teacher-steps",
    8,
    "--candidates",
    6,
    "--device",
    "cpu",
    *(part for row in ROWS for part in ("--only", row)),
]
SMALL += ["--skip", "stock/*shift*", "--features", "tiny:features", "--real", "tiny:crops"]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def one_object(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    (tmp_path / "tiny.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    yield tmp_path
    sys.modules.pop("tiny", None)


def test_it_goes_on_where_it_stopped_and_writes_everything(folder: Path) -> None:
    first = one_object(run(*SMALL, "--json", "--limit-seconds", 0))
    assert first["rows"] == [] and first["left"]
    whole = one_object(run(*SMALL, "--json"))
    assert not whole["left"] and not whole["failed"]
    names = {(row["group"], row["name"], row["solver"], row["budget"]) for row in whole["rows"]}
    assert {("ours", "joint", "euler", 3), ("stock", "flow", "unipc", 2), ("stock", "flow", "heun_flow", 3)} <= names
    assert all(set(row["distances"]["tiny:features"]) == {"teacher", "real"} for row in whole["rows"])
    assert {line["budget"] for line in whole["leaders"]} == {2, 3}
    assert whole["cases"][0]["heldout"] == 4 and whole["cases"][0]["model"]["parameterization"] == "flow"
    written = {str(path.relative_to(folder / "oss-compare")) for path in (folder / "oss-compare").rglob("*")}
    assert {"compare.json", "compare.csv", "figures/psnr_vs_nfe.png"} <= written
    assert json.loads((folder / "oss-compare" / "compare.json").read_text())["rows"] == whole["rows"]
    assert one_object(run(*SMALL, "--json"))["rows"] == whole["rows"]
    shown = run(*SMALL)
    assert shown.exit_code == 0 and "ours: joint, euler" in shown.output
    other = one_object(run(*SMALL, "--json", "--decode", "tiny:halved", "--out", "decoded"))
    for before, now in zip(whole["rows"], other["rows"], strict=True):
        assert now["psnr"] == before["psnr"] and now["ssim"] != before["ssim"]


def test_costs_are_rows_that_are_asked_for(folder: Path) -> None:
    names = ["--cost", "x0", "--cost", "features", "--only", "costs", "--only", "teacher", "--reference-steps", 12]
    few = [*SMALL[: SMALL.index("--only")], "--features", "tiny:features", "--json"]
    found = one_object(run(*few, *names))
    assert not found["failed"]
    assert {(row["group"], row["name"]) for row in found["rows"]} == {
        ("teacher", "8 steps"), ("costs", "x0"), ("costs", "OSS, per sample, x0"), ("costs", "features of x0"),
        ("costs", "OSS, per sample, features of x0"),
    }  # fmt: skip
    plain, listed = run(*few[:-1], "--list"), run(*few[:-1], "--list", *names[:4])
    assert set(listed.output.split("\n")) - set(plain.output.split("\n")) == {
        f"costs/{start}{name}/euler" for start in ("", "OSS, per sample, ") for name in ("x0", "features of x0")
    }
    inner = run(*few, "--cost", "3", "--only", "costs", "--out", "inner")
    assert inner.exit_code == 1 and "holds no torch.nn.Module as .network or .fn" in " ".join(inner.stderr.split())
    wanting = run(*SMALL[: SMALL.index("--only")], "--cost", "features")
    assert wanting.exit_code == 2 and "cost: got features without --features" in " ".join(wanting.output.split())
    bundled = ["compare", "photo32", "--list", "--cost", "blocks.3", "--cost", "features", "--only", "costs"]
    assert run(*bundled, "--device", "cpu").output.split("\n")[:2] == [
        "costs/features of x0/euler", "costs/OSS, per sample, features of x0/euler",
    ]  # fmt: skip


def test_errors_and_lists(folder: Path) -> None:
    listed = run("compare", "tiny:build", "--list", "--only", "rivals/LD3*")
    assert listed.output.split("\n")[0] == "rivals/LD3/unipc_3"
    assert not (folder / "oss-compare").exists()
    one_object(run(*SMALL, "--json", "--limit-seconds", 0))
    for arguments, message in (
        (["--only", "nobody"], "only: got 'nobody'"),
        (["--features", "tiny:number"], "features: tiny:number is int"),
        (["--features", "tiny"], "features: got 'tiny', wanted package.module:name"),
        (["--heldout", 5], "holds a comparison with heldout 4"),
        (["--budget", 0], "budgets: got 0"),
    ):
        result = run(*SMALL, *arguments)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
