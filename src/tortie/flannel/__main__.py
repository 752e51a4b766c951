"""`python -m tortie.flannel`: what `tortie flanneld` runs, with the same flags, for programs that start daemons.

It starts in less time: the command line's libraries are for people and not loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import tortie
from tortie.base.errors import ConfigError, TortieError
from tortie.flannel.options import parse, usage


def main(words: Sequence[str]) -> int:
    """The exit status, as `tortie flanneld` has it: 2 for flags that are wrong, 1 for all else."""
    try:
        options = parse(words, os.environ)
    except ConfigError as error:
        print(f"tortie: {error}", file=sys.stderr)
        return 2
    except TortieError as error:
        print(f"tortie: {error}", file=sys.stderr)
        return 1
    if options.help:
        print(usage("python -m tortie.flannel"), end="")
        return 0
    if options.version:
        print(f"tortie {tortie.__version__}", file=sys.stderr)
        return 0
    try:
        from tortie.flannel.main import main as run

        run(options)
    except TortieError as error:
        print(f"tortie: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
