"""`python -m tortie.agent`: what `tortie agent` runs, with the same options, for programs that start agents.

It starts in two thirds of the time: the command line's libraries are for people and not loaded. The options are the
fields of `AgentConfig`, and `--log-level`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from tortie.agent.config import AgentConfig
from tortie.base.errors import ConfigError, TortieError

LOG_LEVEL = "--log-level"
FOUND = ("node", "datastore")
"""Fields that are found out where they are not told."""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tortie.agent", allow_abbrev=False)
    for field in fields(AgentConfig):
        required = field.default is MISSING and field.name not in FOUND
        default = "" if field.default is MISSING else field.default
        how: dict[str, Any] = {"required": True} if required else {"default": default}
        if isinstance(how.get("default"), bool):
            how["action"] = argparse.BooleanOptionalAction
        elif not required:
            how["type"] = Path if default is None or isinstance(default, Path) else type(default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", **how)
    parser.add_argument(LOG_LEVEL, default="info")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: as `tortie` has it, 1 when the agent cannot start or go on, 2 when it is told nonsense."""
    told = vars(options().parse_args(words))
    level = told.pop("log_level")
    try:
        if os.geteuid() != 0:
            raise ConfigError("the agent programs the kernel: run it as root")
        from tortie.agent.main import main as run
        from tortie.store.place import of_a_daemon

        told["datastore"] = of_a_daemon(told["datastore"])
        run(AgentConfig(**told), level)
    except ConfigError as error:
        print(f"tortie: {error}", file=sys.stderr)
        return 2
    except TortieError as error:
        print(f"tortie: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
