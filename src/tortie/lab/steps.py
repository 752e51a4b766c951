"""Work shown as it goes: one line per step, with a spinner while it runs on a terminal, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text


class Step:
    """The step that is running. `note` says how far it is; the last note stays on its line."""

    def __init__(self, words: str, spinner: Status) -> None:
        self.words = words
        self.noted = ""
        self._spinner = spinner

    def note(self, text: str) -> None:
        self.noted = text
        self._spinner.update(str(self))

    def __str__(self) -> str:
        return f"{self.words} [dim]{self.noted}[/dim]" if self.noted else self.words


class Steps:
    """Prints each step of some work on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._spinning: list[Status] = []

    @contextmanager
    def step(self, words: str) -> Iterator[Step]:
        """A line for what happens inside the `with`: ticked, or crossed when it raises."""
        began = time.monotonic()
        spinner = self.console.status(words)
        step = Step(words, spinner)
        self._turn(self._spinning[-1:], [spinner])
        self._spinning.append(spinner)
        good = False
        try:
            yield step
            good = True
        finally:
            self._spinning.pop()
            self._turn([spinner], self._spinning[-1:])
            mark = "[green]✓[/green]" if good else "[red]✗[/red]"
            line = Text.from_markup(f"{mark} {step}")
            line.append(f"  {time.monotonic() - began:.2f} s", "dim")
            self.console.print(line, highlight=False)

    def _turn(self, old: list[Status], new: list[Status]) -> None:
        """A terminal shows one spinner at a time, that of the innermost step."""
        if self.console.is_terminal:
            for spinner in old:
                spinner.stop()
            for spinner in new:
                spinner.start()
