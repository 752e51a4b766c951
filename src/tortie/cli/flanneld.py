"""`tortie flanneld`: flannel's daemon with flanneld's own flags.

Its flags are Go's (`-iface eth1`), which typer does not know: they are passed on as they are, `--help` included.
"""

from __future__ import annotations

import typer

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""For the command's context: every word is an argument of the daemon's."""


def flanneld(ctx: typer.Context) -> None:
    """Run flannel on this node: a subnet for its pods, and the ways to those of other nodes. flanneld's own flags:
    -help lists them. Stops on SIGTERM and leaves the network working."""
    import os

    from tortie import __version__
    from tortie.base.errors import ConfigError, TortieError
    from tortie.flannel.options import parse, usage

    options = parse(ctx.args, os.environ)
    if options.help:
        typer.echo(usage(ctx.command_path), nl=False)
        return
    if options.version:
        typer.echo(f"tortie {__version__}", err=True)
        return
    from tortie.flannel.main import main

    try:
        main(options)
    except ConfigError as error:
        # flanneld ends with 2 for its flags only; what is wrong with the network is 1, which others wait for.
        raise TortieError(str(error)) from None
