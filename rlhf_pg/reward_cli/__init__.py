"""The commands of ``rlhf-pg reward``, one a module; each imports what it runs once it runs."""

import typer

from rlhf_pg.reward_cli.builtins import functions
from rlhf_pg.reward_cli.check import check
from rlhf_pg.reward_cli.serve import serve
from rlhf_pg.reward_cli.train import train

reward_app = typer.Typer(help="Rewards: list, check, train and serve them.", no_args_is_help=True)
for command in (functions, check, train, serve):
    reward_app.command()(command)

__all__ = ["reward_app"]
