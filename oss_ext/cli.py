"""The command `oss-ext`: demo, search, sample, compare, info, export, import."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from oss_ext.cli_common import stderr
from oss_ext.cli_compare import compare_
from oss_ext.cli_demo import demo
from oss_ext.cli_export import export, import_
from oss_ext.cli_info import info
from oss_ext.cli_sample import sample
from oss_ext.cli_search import search


class _Group(TyperGroup):
    """Bad input ends in one red line and exit status 2, Ctrl-C in one line and 130; other errors show a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stderr().print("Interrupted; nothing was written.")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # typer ends quietly where the reader of a pipe has gone
        except (ValueError, TypeError, ImportError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            stderr().print(f"[bold red]error:[/] [red]{escape(message)}[/]", soft_wrap=True)
            raise typer.Exit(2) from None


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    """Optimal step schedules for diffusion and flow models, distilled from the model's own fine trajectory."""


app.command()(demo)
app.command()(search)
app.command()(sample)
app.command("compare")(compare_)
app.command()(info)
app.command()(export)
app.command("import")(import_)


def main() -> None:
    """The entry point."""
    app(prog_name="oss-ext")
