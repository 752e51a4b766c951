"""`tortie simulate`: what manifests allow, with no cluster: the matrix of all pods, or single connections explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import ConfigError, NotFound
from tortie.cli.choice import check_choice

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tortie.calc.explain import Explanation
    from tortie.calc.simulate import Simulation
    from tortie.calc.simulate.matrix import Table

Files = Annotated[
    list[str],
    typer.Option("-f", "--filename", metavar="PATH|-", help="Manifests: a file, or a directory and all below."),
]
ALLOW, DENY = "allow", "deny"

_CONNECTION = re.compile(r"(?P<source>\S+)\s*(?:->|→)\s*(?P<to>[^\s=]+)\s*(?:=\s*(?P<expected>\S+)\s*)?\Z")
_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^:]+)(?::(?P<port>[^:/]+)(?:/(?P<protocol>\w+))?)?\Z")
_NAMES = re.compile(r"[a-z0-9*?.-]+(/[a-z0-9*?.-]+)\Z")


@dataclass(frozen=True, slots=True)
class Connection:
    """A question about a connection. `port` "" is the one of the command line; `expected` None: just tell."""

    source: str
    destination: str
    port: str
    protocol: str
    expected: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question, for every IP version that both ends have."""

    connection: Connection
    explanations: tuple[Explanation, ...]

    @property
    def met(self) -> bool:
        """Whether it is as expected, if something is."""
        expected = self.connection.expected
        return expected is None or all(one.allowed is expected for one in self.explanations)


def simulate(
    filename: Files,
    connection: Annotated[
        list[str] | None,
        typer.Option("--connection", metavar="CONNECTION", help='"web/a -> db/b:5432/tcp", also with "= allow".'),
    ] = None,
    expect: Annotated[
        Path | None, typer.Option("--expect", metavar="FILE", help="Connections, one in a line, # for comments.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Else what each pod declares, or 80.")
    ] = None,
    protocol: Annotated[str, typer.Option("--protocol", help="tcp, udp, icmp, sctp.", show_default=False)] = "",
    four: Annotated[bool, typer.Option("-4", help="IPv4 only.")] = False,
    six: Annotated[bool, typer.Option("-6", help="IPv6 only.")] = False,
    sources: Annotated[
        str, typer.Option("--from", metavar="SELECTOR", help='Rows: a selector, or names such as "web/*".')
    ] = "",
    destinations: Annotated[str, typer.Option("--to", metavar="SELECTOR", help="Columns: the same.")] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")] = "table",
) -> None:
    """Say what manifests allow, with no cluster and no root. Exit 1 when a connection is not as expected."""
    from tortie.calc.simulate import Simulation

    check_choice(output, ("table", "json", "yaml"), "--output")
    asked = [parse_connection(text) for text in connection or ()]
    asked += list(_expectations(expect)) if expect is not None else []
    versions = tuple(version for version, only in ((4, four), (6, six)) if only) or (4, 6)
    simulation = Simulation.read(filename)
    if asked:
        answers = _answers(simulation, asked, protocol, port, versions)
        _print_answers(answers, output)
        if not all(answer.met for answer in answers):
            raise typer.Exit(1)
        return
    _print_matrix(simulation, sources, destinations, protocol, port, versions, output)


# --- connections --------------------------------------------------------------------------------------------------


def parse_connection(text: str) -> Connection:
    """`web/a -> db/b:5432/tcp = allow`; port, protocol and expectation may be left out. Raises ConfigError."""
    found = _CONNECTION.match(text.strip())
    end = _PORT.match(found["to"]) if found is not None else None
    if found is None or end is None:
        raise ConfigError(f'"{text}" is no connection: write "web/a -> db/b:5432/tcp", and "= allow" to expect it')
    expected = found["expected"]
    if expected not in (None, ALLOW, DENY):
        raise ConfigError(f'"{text}": "{expected}" is not one of {ALLOW}, {DENY}')
    port, protocol = end["port"] or "", end["protocol"] or ""
    if port.lower().startswith("icmp"):
        port, protocol = "", port
    verdict = None if expected is None else expected == ALLOW
    return Connection(found["source"].strip("[]"), end["host"].strip("[]"), port, protocol, verdict, text.strip())


def _expectations(path: Path) -> Iterator[Connection]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', None) or error}", str(path)) from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            found = parse_connection(text)
        except ConfigError as error:
            raise error.within(f"{path}: line {number}") from None
        if found.expected is None:
            raise ConfigError(f'"{text}" expects nothing: end it with "= allow" or "= deny"', f"{path}: line {number}")
        yield found


def _answers(
    simulation: Simulation, asked: Iterable[Connection], protocol: str, port: int | None, versions: Sequence[int]
) -> list[Answer]:
    """Raises ConfigError for an end that there is not, too: it is the question that is wrong."""
    from tortie.calc.simulate import DEFAULT_PORT

    answers = []
    for one in asked:
        try:
            number = one.port or (DEFAULT_PORT if port is None else port)
            said = one.protocol or protocol or "tcp"
            found = tuple(simulation.explanations(one.source, one.destination, said, number, versions))
        except (ConfigError, NotFound) as error:
            raise ConfigError(str(error), f'"{one.text}"') from None
        answers.append(Answer(one, found))
    return answers


def _print_answers(answers: Sequence[Answer], output: str) -> None:
    from rich.console import Console

    if output != "table":
        _print_document([_answer_document(answer) for answer in answers], output)
        return
    console = Console(highlight=False)
    for answer in answers:
        for line in _answer_lines(answer):
            console.print(line, soft_wrap=True)
    checked = [answer for answer in answers if answer.connection.expected is not None]
    if checked:
        wrong = sum(not answer.met for answer in checked)
        said = f"{wrong} of {len(checked)} expectations not met" if wrong else f"all {len(checked)} expectations met"
        console.print(said, style="bold red" if wrong else "green")


def _answer_document(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "connection": answer.connection.text,
        "explanations": [_explanation_document(one) for one in answer.explanations],
    }
    if answer.connection.expected is not None:
        found |= {"expected": ALLOW if answer.connection.expected else DENY, "met": answer.met}
    return found


def _explanation_document(one: Explanation) -> dict[str, Any]:
    steps = [
        {
            "hook": step.hook,
            "verdict": ALLOW if step.allowed else DENY,
            "reason": step.reason,
            "tier": step.tier,
            "policy": step.policy,
            "rule": step.rule,
            "notes": [note.text for note in step.notes],
        }
        for step in one.steps
    ]
    return {
        "source": one.source.name,
        "destination": one.destination.name,
        "ipVersion": one.version,
        "protocol": one.protocol,
        "port": one.port,
        "verdict": ALLOW if one.allowed else DENY,
        "steps": steps,
    }


def _answer_lines(answer: Answer) -> Iterator[RenderableType]:
    """A connection, once if both IP versions fare alike; with what decides, unless it is only as expected."""
    from rich.text import Text

    explanations = list(answer.explanations)
    words = [[(step.hook, step.allowed, step.reason) for step in one.steps] for one in explanations]
    same = len(explanations) == 2 and words[0] == words[1]
    for one in explanations[:1] if same else explanations:
        mark = ("✔", "green") if one.allowed else ("✘", "red")
        port = "" if one.protocol.startswith("icmp") else f" {one.port}"
        versions = "" if same else f", IPv{one.version}"
        verdict = "allowed" if one.allowed else "denied"
        title = f" {one.source.name} → {one.destination.name}  {one.protocol}{port}{versions}: {verdict}"
        unmet = "" if answer.met else f", expected to be {'allowed' if answer.connection.expected else 'denied'}"
        yield Text.assemble(mark, title, (unmet, "bold red"))
        for step in one.steps if answer.connection.expected is None or not answer.met else ():
            sign = ("✔", "green") if step.allowed else ("✘", "red")
            yield Text.assemble("    ", sign, f" {step.hook}  {step.reason}")


# --- the matrix ---------------------------------------------------------------------------------------------------


def _print_matrix(
    simulation: Simulation,
    sources: str,
    destinations: str,
    protocol: str,
    port: int | None,
    versions: tuple[int, ...],
    output: str,
) -> None:
    from rich.console import Console

    from tortie.calc.simulate.matrix import Question, table

    everyone = tuple(simulation.endpoints)
    if not everyone and not simulation.hosts:
        raise ConfigError("there are no pods: give manifests of pods, Deployments and their like, too")
    question = Question(
        tuple(_chosen(simulation, sources, "--from")),
        tuple(_chosen(simulation, destinations, "--to")),
        versions,
        protocol,
        port,
    )
    found = table(simulation, question)
    if output != "table":
        _print_document(_matrix_document(found, simulation), output)
        return
    console = Console(highlight=False)
    for part in render(found, everyone, console.width):
        console.print(part)
    for line in notes(simulation):
        console.print(line, style="dim")


def _chosen(simulation: Simulation, text: str, option: str) -> Iterator[str]:
    """The parties that an option means: by selector, by name, or all. Raises ConfigError when it means none."""
    from tortie.calc.simulate import OUTSIDE
    from tortie.policy.selector import parse

    everyone = [*simulation.endpoints, *simulation.hosts, OUTSIDE]
    if not text:
        yield from everyone
        return
    if text == OUTSIDE or _NAMES.match(text):
        found = [name for name in everyone if fnmatchcase(name, text)]
    else:
        try:
            selector = parse(text)
        except ConfigError as error:
            raise error.within(option) from None
        found = [name for name in simulation.endpoints if selector.matches(simulation.labels(name))]
    if not found:
        raise ConfigError(f"{text} matches no pod", option)
    yield from found


def render(found: Table, everyone: Sequence[str], width: int) -> Iterator[RenderableType]:
    """The table with its legend. Columns bear names as far as they fit, else numbers that are explained below."""
    from rich.table import Table as Drawn
    from rich.text import Text

    from tortie.calc.simulate.names import named

    rows = [named(row, everyone, most=3) for row in found.rows]
    ends = [named(column.destinations, everyone, most=3) for column in found.columns]
    full = [f"{end.replace('/', chr(10))}\n{column.heading}" for end, column in zip(ends, found.columns, strict=True)]
    widths = [max(map(len, (*rows, "from ╲ to"))), *(max(map(len, text.splitlines())) for text in full)]
    numbered = 1 + sum(widest + 3 for widest in widths) > width
    drawn = Drawn()
    drawn.add_column("from ╲ to", justify="right", style="bold", overflow="fold", ratio=None)
    for i, text in enumerate(full, 1):
        drawn.add_column(str(i) if numbered else text, justify="center", no_wrap=True)
    for i, row in enumerate(rows):
        if i and found.rows[i][0].partition("/")[0] != found.rows[i - 1][0].partition("/")[0]:
            drawn.add_section()
        drawn.add_row(row, *(_cell(found.cells[i, j], found.versions) for j in range(len(full))))
    yield drawn
    if numbered:
        for i, (end, column) in enumerate(zip(ends, found.columns, strict=True), 1):
            yield Text(f"{i:>4}  {end}  {column.heading}")
    yield _legend(found)


def _cell(versions: frozenset[int] | None, asked: Sequence[int]) -> Any:
    from rich.text import Text

    if versions is None:
        return Text("·", "dim")
    if not versions:
        return Text("✘", "red")
    return Text("✔", "green") if versions == set(asked) else Text(str(*versions), "yellow")


def _legend(found: Table) -> Any:
    from rich.text import Text

    partly = any(versions is not None and 0 < len(versions) < len(found.versions) for versions in found.cells.values())
    parts = [Text.assemble(("✔", "green"), " allowed"), Text.assemble(("✘", "red"), " denied")]
    if partly:
        parts.append(Text.assemble(("4 6", "yellow"), " over this IP version only"))
    if found.merged:
        parts.append(Text("equal rows and equal columns are one; a pod and itself count as two alike", "dim"))
    return Text("   ").join(parts)


def notes(simulation: Simulation) -> Iterator[str]:
    """What of the manifests is not in the answers."""
    hosts = len(simulation.names) - len(simulation.endpoints)
    if hosts:
        yield f"{hosts} on the network of their node are left out: policies of pods do not concern them"
    if simulation.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in simulation.skipped.items())
        yield f"without meaning for the network: {kinds}"
    for title, problem in simulation.problems.items():
        yield f"counts as absent: {title}: {problem}"


def _matrix_document(found: Table, simulation: Simulation) -> dict[str, Any]:
    connections = []
    for (i, j), versions in found.cells.items():
        if versions is not None:
            column = found.columns[j]
            connections.append(
                {
                    "sources": list(found.rows[i]),
                    "destinations": list(column.destinations),
                    "protocol": column.port.protocol,
                    "port": column.port.port,
                    "allowed": {f"ipv{version}": version in versions for version in found.versions},
                }
            )
    return {"merged": found.merged, "connections": connections, "notes": list(notes(simulation))}


def _print_document(document: Any, output: str) -> None:
    if output == "json":
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        from tortie.model.text import dump

        typer.echo(dump(document), nl=False)
