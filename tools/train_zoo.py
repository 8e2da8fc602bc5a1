"""Trains a network of the bundled zoo and writes its weights and a picture of what it learned.

    python tools/train_zoo.py --model photo32 --minutes 5 --compile --out build/zoo
    python tools/train_zoo.py --model photo32_vp --minutes 3 --compile --out build/zoo
    python tools/train_zoo.py --model photo32_features --minutes 0.3 --out build/zoo

train on one GPU in bf16; each leaves ``<model>.safetensors`` (fp16 weights, averaged over the last steps, and the
record of the training in the file's header), ``<model>.json`` (the record alone) and ``<model>.png`` in the output
folder. Copy the first to ``oss_ext/zoo/``. ``photo32`` is a flow-matching model, ``photo32_vp`` a noise-predicting one
at a thousand timesteps, ``photo32_features`` the classifier behind the distribution metrics. The files of
``oss_ext/zoo`` that are used stand alone: the package need not be built or installed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm
from training import denoisers, features, record, tasks

if TYPE_CHECKING:
    from oss_ext.zoo import photos
else:
    import photos

MODELS: dict[str, type[tasks.Task]] = {
    "photo32": denoisers.Flow,
    "photo32_vp": denoisers.VariancePreserving,
    "photo32_features": features.Features,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="training steps; to repeat a run, give the steps it recorded")
    budget.add_argument("--minutes", type=float, default=5.0, help="sets the steps from a measured step time")
    parser.add_argument("--batch", type=int, default=2048, help="crops a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=500, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--label-dropout", type=float, default=0.1, help="share of crops trained without their class")
    parser.add_argument("--ema-steps", type=float, default=1000.0, help="time constant of the weight average, steps")
    parser.add_argument("--seed", type=int, help="default: the bundled file's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--commit", help="git commit to record (default: ask git)")
    parser.add_argument("--validation", type=int, default=512, help="validation crops for each of the ten bins of t")
    parser.add_argument("--pool", type=int, default=90_000, help="real crops searched for the picture's nearest ones")
    parser.add_argument("--sheet-steps", type=int, default=200, help="Euler steps of the sheet")
    parser.add_argument("--out", type=Path, default=Path("."), help="output folder")
    arguments = parser.parse_args()
    arguments.commit = arguments.commit or record.git_commit()
    if arguments.seed is None:
        arguments.seed = MODELS[arguments.model].seed
    return arguments


def make_optimizer(model: nn.Module, lr: float, weight_decay: float, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays the weights of linear and convolutional layers only."""
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
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

    def __init__(self, task: tasks.Task, arguments: argparse.Namespace) -> None:
        self.task, self.arguments, self.device = task, arguments, task.device
        torch.manual_seed(arguments.seed)
        self.generator = torch.Generator(self.device).manual_seed(arguments.seed)
        self.crops = photos.Crops(self.device)
        self.model = task.build().to(self.device)
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
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self.task.loss(self.model, self.forward, self.crops, self.generator)
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


def main() -> None:
    arguments = parse_arguments()
    torch.set_float32_matmul_precision("high")
    arguments.out.mkdir(parents=True, exist_ok=True)
    task = MODELS[arguments.model](arguments)
    training = Training(task, arguments)
    before = task.validate(training.average, training.crops)
    steps, minutes = training.run()
    after = task.validate(training.average.half().float(), training.crops)
    card = {
        "name": arguments.model,
        "architecture": training.model.config.to_dict(),
        "parameter_count": sum(p.numel() for p in training.model.parameters()),
        "classes": photos.class_names(),
        **task.record(),
        "data": record.data_record(),
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
        "loss": {"training": training.training_loss(), "validation_untrained": before["validation"], **after},
        "commit": arguments.commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "device": record.device_name(training.device),
        "precision": "bf16 autocast, fp32 weights; saved as fp16",
        "compiled": arguments.compile,
        "minutes": round(minutes, 2),
    }
    path = arguments.out / f"{arguments.model}.safetensors"
    record.write_weights(path, training.average, card)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=2))
    print(f"{path}: {path.stat().st_size} bytes; {steps * arguments.batch / (60 * minutes):.0f} crops/s")
    # The picture is made from the file, so that it shows what is shipped.
    record.read_weights(path, training.average)
    task.picture(training.average, training.crops).save(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
