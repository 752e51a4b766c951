"""`tortie` from its first moment on: Ctrl-C ends it quietly while the command line is still being imported, too."""

from __future__ import annotations

INTERRUPTED = 128 + 2  # as a shell reports SIGINT


def main() -> int:
    """The exit status."""
    try:
        from tortie.cli.main import main as tortie

        return tortie()
    except KeyboardInterrupt:
        return INTERRUPTED
