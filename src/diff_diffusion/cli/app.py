"""The commands by name. What they take and what `--help` says is in `making` and `viewing`."""

from __future__ import annotations

from typing import Annotated

import typer

from diff_diffusion import __version__
from diff_diffusion.cli import EXIT_CODES, making, viewing

app = typer.Typer(
    name="diff-diffusion",
    help="Train and sample diffusion models on your own data.\n\n"
    "Start with `diff-diffusion train DATA --out RUN`, where DATA is a folder of images or `digits`; then "
    "`diff-diffusion sample RUN`.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on them.")
app.add_typer(data_app, name="data")


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"diff-diffusion {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


for _command in (
    making.train,
    making.plan,
    making.sample,
    making.edit,
    making.augment,
    making.repro,
    viewing.info,
    viewing.explain,
    viewing.likelihood,
    viewing.evaluate,
    viewing.doctor,
    viewing.verify,
):
    app.command()(_command)
data_app.command("inspect")(viewing.inspect)
