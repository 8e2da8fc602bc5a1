"""Options that several commands take, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

from oss_ext import zoo

ModelName = Annotated[
    str, typer.Argument(help=f"{', '.join(zoo.names())}, or package.module:function that returns a Denoiser.")
]
BatchSize = Annotated[int | None, typer.Option(help="Network inputs a batch.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale of a bundled model; default 1.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Shape = Annotated[str | None, typer.Option(help="Shape of one noise, 3,32,32; default the model's .shape.")]
ModelArgs = Annotated[list[str] | None, typer.Option(help="key=value for the function; values are JSON.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
SolverName = Annotated[
    str,
    typer.Option(
        help="What the schedule will be deployed with: a solver of `oss-ext info`; fitted: least-squares coefficients; "
        "mixed: every step its own order; auto: the best of many, judged on noises set apart."
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        help="Nodes of the teacher's grid to look at; default max(24, 2.4 steps), or all unless --share joint."
    ),
]
Beam = Annotated[int, typer.Option(help="States that a node keeps (--share joint).")]
