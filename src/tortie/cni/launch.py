"""The program that every stand-alone plugin is: which one, its name says. Installed, it is a script of its own.

It is run as `python -I -S launch.py NAME` or under the plugin's name, and imports the plugin from the package it is of.
Words after the name are for a program that the plugin has beside itself: `dhcp daemon`.
"""

import gc
import os
import sys


def launch(argv: list[str]) -> int:
    """Serves the call that this process is; its exit code. `argv` as the process has it."""
    named = os.path.basename(argv[0]) not in ("launch.py", "-c")
    program, *words = argv if named else argv[1:] or argv
    name = os.path.basename(program)
    import tortie
    from tortie.cni import plugins
    from tortie.cni.plugin import Later, main

    if name not in plugins.NAMES:
        sys.stderr.write(f"{program}: no plugin has that name; there are {', '.join(plugins.NAMES)}\n")
        return 2
    plugins.program = os.path.realpath(program)
    if words:
        plugins.load(name)
        beside = getattr(sys.modules[f"tortie.cni.plugins.{plugins.NAMES[name]}"], "program", None)
        if beside is not None:
            gc.enable()
            code: int = beside(words)
            return code
    return main(Later(name), tortie.__version__)


def run() -> None:
    """Serves the call and ends the process."""
    gc.disable()  # a plugin ends before there is garbage
    status = launch(sys.argv)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1  # nobody reads what we say
    os._exit(status)  # what the interpreter does at its end takes a tenth of the time that all of this takes


if __name__ == "__main__":
    sys.path.append(os.environ.get("TORTIE_PACKAGE") or os.path.realpath(__file__).rsplit("/tortie/cni/", 1)[0])
    run()
