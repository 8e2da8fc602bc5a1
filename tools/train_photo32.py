"""Trains the bundled model ``photo32`` and writes its weights and a sheet of samples.

    python tools/train_photo32.py --minutes 5 --compile --out build/photo32

trains on one GPU in bf16 and leaves ``photo32.safetensors`` (fp16 weights, averaged over the last steps, and the record
of the training in the file's header) and ``photo32_samples.png`` in the output folder. Copy the former to
``oss_ext/zoo/``. Only two files of the package are used, by their path: it need not be built or installed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

if TYPE_CHECKING:
    from oss_ext.zoo import network, photos
else:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oss_ext" / "zoo"))
    import network
    import photos

VALIDATION_SEED = 1_000_003
SHEET_SEED = 1_000_033
TIME_BINS = 10


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="training steps; to repeat a run, give the steps it recorded")
    budget.add_argument("--minutes", type=float, default=5.0, help="sets the steps from a measured step time")
    parser.add_argument("--batch", type=int, default=2048, help="crops a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=500, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--label-dropout", type=float, default=0.1, help="share of crops trained without their class")
    parser.add_argument("--ema-steps", type=float, default=1000.0, help="time constant of the weight average, steps")
    parser.add_argument("--seed", type=int, default=20250328)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--commit", help="git commit to record (default: ask git)")
    parser.add_argument("--validation", type=int, default=512, help="validation crops for each of the ten bins of t")
    parser.add_argument("--pool", type=int, default=90_000, help="real crops searched for the sheet's nearest ones")
    parser.add_argument("--sheet-steps", type=int, default=200, help="Euler steps of the sheet")
    parser.add_argument("--out", type=Path, default=Path("."), help="output folder")
    arguments = parser.parse_args()
    arguments.commit = arguments.commit or git_commit()
    return arguments


def git_commit() -> str:
    """The commit that is checked out, with "+changes" when tracked files differ from it."""
    root = Path(__file__).resolve().parents[1]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"cannot ask git for the commit ({error}); pass --commit") from error
    return commit.stdout.strip() + ("+changes" if state.stdout.strip() else "")


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Flow times [count]: half uniform, half logit-normal(0, 1) (arXiv 2403.03206, section 3.1), both stratified.

    The logit-normal half spends effort where the velocity is hardest; the uniform half keeps both ends trained, which a
    study of schedules needs.
    """
    strata = torch.arange(count, device=generator.device)
    u = (strata + torch.rand(count, generator=generator, device=generator.device)) / count
    half = count // 2
    uniform, normal = u[:half] * (count / max(half, 1)), (u[half:] * count - half) / (count - half)
    return torch.cat([uniform, torch.special.ndtri(normal.clamp(1e-6, 1 - 1e-6)).sigmoid()])


def velocity_loss(model: Callable[..., Tensor], images: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """Squared error of the velocity, a mean over everything but the batch: [batch]."""
    shaped = t[:, None, None, None]
    state = torch.lerp(images, noise, shaped)
    return (model(state, t, label).float() - (noise - images)).square().mean(dim=(1, 2, 3))


def make_optimizer(model: network.VelocityNetwork, lr: float, weight_decay: float, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays the matrices of linear layers only."""
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=fused)


class Training:
    """One run: the network, its running average, the optimizer and the source of crops."""

    EMA_EVERY = 10
    SETTLE, HOLD = 20, 80
    """With a budget in minutes, steps SETTLE to HOLD are timed and set the length; the steps before, which include
    compilation, do not count. The cosine starts after HOLD in any case, so that --steps repeats such a run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        torch.manual_seed(arguments.seed)
        self.generator = torch.Generator(self.device).manual_seed(arguments.seed)
        self.crops = photos.Crops(self.device)
        self.model = network.VelocityNetwork(network.NetworkConfig(classes=len(photos.PHOTOS))).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.forward = torch.compile(self.model) if arguments.compile else self.model
        fused = self.device.type == "cuda"
        self.optimizer = make_optimizer(self.model, arguments.lr, arguments.weight_decay, fused)
        self.loss_average = torch.zeros((), device=self.device)
        self.loss_weight = 0.0
        self.done = 0

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def step(self, rate: float) -> None:
        a, generator = self.arguments, self.generator
        images, label = self.crops.draw(a.batch, generator)
        dropped = torch.rand(a.batch, generator=generator, device=self.device) < a.label_dropout
        label = label.masked_fill(dropped, self.model.null_label)
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        t = draw_times(a.batch, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = velocity_loss(self.forward, images, noise, t, label).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        self.loss_average.lerp_(loss.detach(), 0.01)
        self.loss_weight += 0.01 * (1.0 - self.loss_weight)
        if self.done % self.EMA_EVERY == 0:
            self.update_average()

    @torch.no_grad()
    def update_average(self) -> None:
        # Early on the average follows the last tenth of the run, so that short runs do not keep the initial weights.
        horizon = min(self.arguments.ema_steps, 0.1 * self.done)
        weight = -math.expm1(-self.EMA_EVERY / horizon)
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, weight)

    def training_loss(self) -> float:
        """Running mean of the training loss over about the last 100 steps."""
        return float(self.loss_average) / self.loss_weight

    def run(self) -> tuple[int, float]:
        """Trains to the budget; returns the steps and the minutes they took."""
        a = self.arguments
        total = a.steps
        bar = tqdm(total=total, unit="step", mininterval=5.0, dynamic_ncols=True)
        start = clock = time.monotonic()
        while total is None or self.done < total:
            warm = min(1.0, (self.done + 1) / a.warmup)
            fraction = max(0, self.done - self.HOLD) / max(1, total - self.HOLD) if total else 0.0
            self.step(a.lr * warm * 0.5 * (1.0 + math.cos(math.pi * fraction)))
            bar.update()
            if total is None and self.done == self.SETTLE:
                self.synchronize()
                clock = time.monotonic()
            elif total is None and self.done == self.HOLD:
                self.synchronize()
                elapsed = time.monotonic() - clock
                left = (60.0 * a.minutes - elapsed) * (self.HOLD - self.SETTLE) / elapsed
                total = self.done + max(0, math.floor(left))
                bar.total = total
                bar.refresh()
            if self.done % 100 == 0 or self.done == total:
                loss = self.training_loss()
                if not math.isfinite(loss):
                    raise SystemExit(f"the loss is {loss} at step {self.done}; try a smaller --lr")
                bar.set_postfix(loss=f"{loss:.4f}")
        self.synchronize()
        bar.close()
        return self.done, (time.monotonic() - start) / 60.0


@torch.no_grad()
def validation_loss(model: network.VelocityNetwork, crops: photos.Crops, count: int) -> list[float]:
    """Mean loss in each of ten equal bins of t, with class labels, on crops and noises of a fixed seed, in float32."""
    generator = torch.Generator(crops.device).manual_seed(VALIDATION_SEED)
    losses = []
    for index in range(TIME_BINS):
        images, label = crops.draw(count, generator)
        noise = torch.randn(images.shape, generator=generator, device=crops.device)
        t = (index + torch.rand(count, generator=generator, device=crops.device)) / TIME_BINS
        losses.append(float(velocity_loss(model, images, noise, t, label).mean()))
    return losses


@torch.no_grad()
def sample(model: network.VelocityNetwork, noise: Tensor, label: Tensor, scale: float, steps: int) -> Tensor:
    """Euler's method on the uniform grid of flow times, from noise at t = 1."""
    x = noise
    for index in range(steps):
        t = torch.full((x.shape[0],), 1.0 - index / steps, device=x.device)
        x = x - network.guided_velocity(model, x, t, label, scale) / steps
    return x


def sample_sheet(model: network.VelocityNetwork, crops: photos.Crops, pool: int, steps: int) -> Image.Image:
    """A row a class: 8 samples at guidance 1, 8 at guidance 3 from the same noises, the crops nearest to the first.

    Distances are Euclidean over pixels, among ``pool`` random crops of all classes.
    """
    columns, scale = 8, 3
    generator = torch.Generator().manual_seed(SHEET_SEED)
    size = model.config.image_size
    noise = torch.randn(len(photos.PHOTOS) * columns, 3, size, size, generator=generator).to(crops.device)
    label = torch.arange(len(photos.PHOTOS), device=crops.device).repeat_interleave(columns)
    plain, guided = (sample(model, noise, label, g, steps) for g in (1.0, 3.0))
    real, real_label = crops.draw(pool, torch.Generator(crops.device).manual_seed(SHEET_SEED))
    nearest = torch.empty_like(plain)
    for k in range(len(photos.PHOTOS)):
        own = real[real_label == k]
        nearest[label == k] = own[torch.cdist(plain[label == k].flatten(1), own.flatten(1)).argmin(dim=1)]
    gap = torch.full((len(photos.PHOTOS) * size, 4, 3), 255, dtype=torch.uint8)
    parts = []
    for images in (plain, guided, nearest):
        tiles = photos.to_uint8(images).cpu().view(-1, columns, size, size, 3).transpose(1, 2)
        parts += [tiles.reshape(-1, columns * size, 3), gap]
    sheet = Image.fromarray(torch.cat(parts[:-1], dim=1).numpy())
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def write_weights(path: Path, model: network.VelocityNetwork, card: dict[str, Any]) -> None:
    """Writes fp16 weights with ``card`` as JSON in the header; the file appears whole or not at all."""
    weights = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise SystemExit(f"weights that fp16 cannot hold: {broken}")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(weights, partial, metadata={"format": "pt", "name": path.stem, "card": json.dumps(card)})
    partial.chmod(0o644)
    partial.replace(path)


def read_weights(path: Path, device: torch.device) -> network.VelocityNetwork:
    """The network of a file that :func:`write_weights` wrote, in float32."""
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    model = network.VelocityNetwork(network.NetworkConfig(**card["architecture"]))
    model.load_state_dict(load_file(path))
    return model.to(device).requires_grad_(False).eval()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def main() -> None:
    arguments = parse_arguments()
    torch.set_float32_matmul_precision("high")
    arguments.out.mkdir(parents=True, exist_ok=True)
    training = Training(arguments)
    before = validation_loss(training.average, training.crops, arguments.validation)
    steps, minutes = training.run()
    losses = validation_loss(training.average.half().float(), training.crops, arguments.validation)
    card = {
        "name": "photo32",
        "prediction": "velocity eps - x0 of x_t = (1 - t) x0 + t eps",
        "architecture": training.model.config.to_dict(),
        "parameter_count": sum(p.numel() for p in training.model.parameters()),
        "classes": photos.class_names(),
        "data": {
            "photographs": {p.name: {"source": p.source, "licence": p.licence} for p in photos.PHOTOS},
            "scikit-image": version("scikit-image"),
            "scikit-learn": version("scikit-learn"),
            "crops": "random squares of max(64, short / 8) to short / 2 pixels, area-averaged to 32x32",
        },
        "steps": steps,
        "batch": arguments.batch,
        "seed": arguments.seed,
        "optimizer": {
            "name": "AdamW, cosine decay",
            "lr": arguments.lr,
            "warmup": arguments.warmup,
            "weight_decay": arguments.weight_decay,
            "ema_steps": arguments.ema_steps,
        },
        "label_dropout": arguments.label_dropout,
        "time_distribution": "half uniform, half logit-normal(0, 1)",
        "loss": {
            "training": training.training_loss(),
            "validation": sum(losses) / TIME_BINS,
            "validation_untrained": sum(before) / TIME_BINS,
            "validation_by_t": losses,
        },
        "commit": arguments.commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "device": device_name(training.device),
        "precision": "bf16 autocast, fp32 weights; saved as fp16",
        "compiled": arguments.compile,
        "minutes": round(minutes, 2),
    }
    path = arguments.out / "photo32.safetensors"
    write_weights(path, training.average, card)
    print(json.dumps(card, indent=2))
    print(f"{path}: {path.stat().st_size} bytes; {steps * arguments.batch / (60 * minutes):.0f} crops/s")
    # The sheet is made from the file, so that it shows what is shipped.
    sheet = sample_sheet(read_weights(path, training.device), training.crops, arguments.pool, arguments.sheet_steps)
    sheet.save(arguments.out / "photo32_samples.png")


if __name__ == "__main__":
    main()
