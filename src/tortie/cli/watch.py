"""`tortie watch`: what happens on the nodes while one looks, from their agents."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import Stream, ask
from tortie.base.errors import ConfigError, TortieError
from tortie.cli.choice import check_choice
from tortie.cli.node import sockets

if TYPE_CHECKING:
    from queue import SimpleQueue

app = typer.Typer(no_args_is_help=True, help="What happens on the nodes while you look.")

AGAIN = 1.0
"""Seconds until an agent that has gone is asked again."""
LAST = 1.5
"""Seconds in which agents tell what was denied just before."""
WHY_HIDDEN = "a kernel tells no more than about 100 a second, and the last are told a second later"


@app.callback()
def _watch() -> None:
    """What happens on the nodes while you look."""


@app.command()
def drops(
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    pod: Annotated[str, typer.Option("--pod", metavar="NS/POD", help="Only what this pod sends or would get.")] = "",
    count: Annotated[int, typer.Option("--count", metavar="N", min=0, help="End after so many lines; 0: never.")] = 0,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0, help="End then; 0: never.")] = 0,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
) -> None:
    """Packets that policy or the dataplane denies, as it happens: who, to whom, and by which rule. Ctrl-C ends it."""
    check_choice(output, ("text", "json"), "--output")
    seen = Summary(output, whole_name(pod) if pod else "", count)
    watched = sockets(lab, node)
    before = _denials(watched)
    feed = Feed(watched)
    try:
        typer.echo(f"watching {', '.join(watched)}: {_ending(count, seconds)}", err=True)
        seen.show(feed.until(time.monotonic() + (seconds or math.inf)))
        after = _denials(watched)
        if not seen.is_full:
            seen.show(feed.until(time.monotonic() + LAST))
    except KeyboardInterrupt:
        typer.echo(err=True)
        after = _denials(watched)
    finally:
        feed.close()
    for name in before.keys() & after.keys():
        seen.count(before[name], after[name])
    seen.end()


def whole_name(pod: str) -> str:
    """`namespace/pod`; a bare name is in the namespace default. Raises ConfigError."""
    namespace, _, name = pod.rpartition("/")
    if not name or "/" in namespace or (not namespace and "/" in pod):
        raise ConfigError(f'"{pod}" is not a pod such as red/web', "--pod")
    return f"{namespace or 'default'}/{name}"


def _ending(count: int, seconds: float) -> str:
    parts = [f"{count} line{'s' * (count > 1)}" if count else "", f"{seconds:g} s" if seconds else "", "Ctrl-C"]
    *others, last = (part for part in parts if part)
    return f"{', '.join(others)} or {last} ends it" if others else f"{last} ends it"


def _denials(paths: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
    """What each node's kernel has counted so far, by rule. A node whose agent does not say is left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, path in paths.items():
        with suppress(TortieError):
            found[name] = ask(path, "/denials")
    return found


# --- from the agents ----------------------------------------------------------------------------------------------


class Feed:
    """What the agents of nodes say, in one row; a thread waits for each. Raises when none of them answers."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        import threading
        from queue import SimpleQueue

        self._news: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._closed = threading.Event()
        self._streams: dict[str, Stream] = {}
        errors: list[TortieError] = []
        for name, path in paths.items():
            try:
                self._streams[name] = Stream(path, "/drops")
            except TortieError as error:
                errors.append(error)
                self._news.put({"node": name, "gone": str(error)})
        if errors and not self._streams:
            raise errors[0]
        for name, path in paths.items():
            threading.Thread(target=self._follow, args=(name, path), daemon=True).start()

    def until(self, deadline: float) -> Iterator[dict[str, Any]]:
        """What is told of drops until then, and of what is not told."""
        from queue import Empty

        while (left := deadline - time.monotonic()) > 0:
            try:
                document = self._news.get(timeout=min(left, 3600))
            except Empty:
                continue
            if "watching" not in document:
                yield document

    def close(self) -> None:
        self._closed.set()
        for stream in list(self._streams.values()):
            stream.close()

    def _follow(self, name: str, path: Path) -> None:
        """In a thread. An agent that ends is usually there again soon."""
        while not self._closed.is_set():
            stream = self._streams.get(name)
            for document in stream or ():
                self._news.put(document)
            if stream is not None and not self._closed.is_set():
                self._news.put({"node": name, "gone": "its agent has ended"})
            self._streams.pop(name, None)
            self._closed.wait(AGAIN)
            with suppress(TortieError):
                self._streams[name] = Stream(path, "/drops")
        if name in self._streams:
            self._streams[name].close()


def concerns(document: Mapping[str, Any], pod: str) -> bool:
    """Whether a pod is an end of what was dropped. What is lost or gone concerns everybody."""
    if "rule" not in document:
        return True
    ends = (document.get("source", {}), document.get("destination", {}))
    return any(pod in (end.get("pod"), end.get("owner")) for end in ends)


# --- in words -----------------------------------------------------------------------------------------------------


def line(document: Mapping[str, Any]) -> str:
    """What one line of an agent says."""
    node = document["node"]
    if "gone" in document:
        return f"{'':8}  {node}  not watched now: {document['gone']}"
    if "lost" in document:
        return f"{'':8}  {node}  {document['lost']} more packets were denied: {document['why']}"
    when = datetime.fromisoformat(document["time"]).astimezone().strftime("%H:%M:%S")
    times = f"  ×{document['count']}" if document["count"] > 1 else ""
    return f"{when}  {node}  {packet(document)}  {rule(document)}{times}"


def packet(document: Mapping[str, Any]) -> str:
    """`red/web:41000 → 192.0.2.7:443 tcp`. As in netstat(8), tcp6 is TCP over IPv6."""
    if "source" not in document:
        return "a packet that cannot be read"
    protocol = document["protocol"]
    if "icmp" in document:
        protocol += f" type {document['icmp']['type']} code {document['icmp']['code']}"
    elif protocol.isdecimal():
        protocol = f"protocol {protocol}"
    elif ":" in document["source"]["address"]:
        protocol += "6"
    return f"{_end(document['source'])} → {_end(document['destination'])} {protocol}"


def rule(document: Mapping[str, Any]) -> str:
    """`ingress: NetworkPolicy red/web, rule 0, tier default`."""
    direction, words = document.get("direction", ""), document["rule"]["words"]
    return f"{direction}: {words}" if direction else str(words)


def _end(end: Mapping[str, Any]) -> str:
    address = end["address"]
    port = f":{end['port']}" if "port" in end else ""
    bare = f"[{address}]{port}" if ":" in address and port else f"{address}{port}"
    if end.get("ownAddress") is False:
        return f"{end['pod']} as {bare}" + (f" ({end['owner']})" if "owner" in end else "")
    if "pod" in end:
        return f"{end['pod']}{port}"
    if "node" in end:
        return f"node:{end['node']}{port}"
    return f"{bare} ({end['networkset']})" if "networkset" in end else bare


# --- at the end ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One rule, on all nodes. `packets` is what the kernel has counted, `shown` what of it was told."""

    words: str
    packets: int = 0
    shown: int = 0


@dataclass
class Summary:
    """What has been shown, of which not more than `most` lines, if that is not 0, and only what concerns `pod`."""

    output: str = "text"
    pod: str = ""
    most: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    lines: int = 0
    lost: int = 0

    @property
    def is_full(self) -> bool:
        return 0 < self.most <= self.lines

    def show(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Until there are no more, or it is full."""
        for document in documents:
            if not self.pod or concerns(document, self.pod):
                said = json.dumps(document, ensure_ascii=False) if self.output == "json" else line(document)
                print(said, flush=True)
                self.add(document)
                if self.is_full:
                    return

    def add(self, document: Mapping[str, Any]) -> None:
        self.lost += document.get("lost", 0)
        if "rule" in document:
            self.lines += 1
            self._row(rule(document)).shown += document["count"]

    def count(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Of one node. A rule that was written anew meanwhile counts from zero. Nothing is counted by pod."""
        for name, now in after.items() if not self.pod else ():
            then = before.get(name, {}).get("packets", 0)
            packets = now["packets"] - then if now["packets"] >= then else now["packets"]
            if packets:
                self._row(rule({"direction": now["direction"], "rule": now})).packets += packets

    def sorted(self) -> list[Row]:
        for row in self.rows.values():
            row.packets = max(row.packets, row.shown)  # one that was denied while counters were asked for
        return sorted(self.rows.values(), key=lambda row: (-row.packets, row.words))

    def end(self) -> None:
        """The table by rule."""
        rows = self.sorted()
        if self.output == "json":
            table = [{"words": row.words, "shown": row.shown, "packets": row.packets} for row in rows]
            print(json.dumps({"summary": table, "lost": self.lost}, ensure_ascii=False))
            return
        if not rows:
            print("nothing was denied")
            return
        from tortie.cli.output import aligned

        headings = ("SHOWN", "RULE") if self.pod else ("PACKETS", "SHOWN", "RULE")
        cells = ((str(row.packets), str(row.shown), row.words)[3 - len(headings) :] for row in rows)
        print("\n" + aligned([headings, *cells]), end="")
        if hidden := sum(row.packets - row.shown for row in rows):
            print(f"{hidden} of the packets were not shown: {WHY_HIDDEN}")

    def _row(self, words: str) -> Row:
        return self.rows.setdefault(words, Row(words))
