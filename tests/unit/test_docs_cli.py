"""The user's book against the program: options, kinds and fields that there are, it has, and the reverse; its links and
YAML are right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import fields

from tortie.calc.migrate import gathered
from tortie.calc.simulate.files import read_all
from tortie.cli.main import command_line
from tortie.flannel.options import FLAGS
from tortie.model.clusterpolicy import ClusterNetworkPolicy, ClusterNetworkPolicySpec, Subject
from tortie.model.document import load_documents, parse
from tortie.model.k8s import K8sNode, Pod
from tortie.model.kinds import KINDS, kind_of_word
from tortie.model.meta import Resource, Value
from tortie.model.node import FelixConfiguration
from tortie.model.service import EndpointSlice

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLI = (ROOT / "docs/reference/cli.md").read_text()
AGENT = (ROOT / "docs/reference/agent.md").read_text()
RESOURCES = (ROOT / "docs/reference/resources.md").read_text()

IN_TABLES = re.compile(r"^\| (`-[^|]*(?:\\\|[^|]*)*)\|", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z0-9][a-zA-Z0-9-]*")


# --- commands and options -----------------------------------------------------------------------------------------


def commands(command: Any, path: str = "tortie") -> Iterator[tuple[str, Any]]:
    """Every command with its path, groups first."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def options(command: Any) -> set[str]:
    """As `--help` lists them, itself included."""
    found = {"-h", "--help"}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            found.update((*parameter.opts, *parameter.secondary_opts))
    return found


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


COMMANDS = dict(commands(command_line()))
SECTIONS = {name: text for name, text in sections(CLI).items() if name.startswith("tortie")}


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("path", SECTIONS)
def test_the_options_of(path: str) -> None:
    documented = {option for cell in IN_TABLES.findall(SECTIONS[path]) for option in OPTION.findall(cell)}
    assert documented == options(COMMANDS[path])


def test_the_agents_page_has_every_option_with_its_variable_and_default() -> None:
    command = COMMANDS["tortie agent"]
    rows = {row.split("|")[1]: row for row in sections(AGENT)["Options"].splitlines() if row.startswith("| `-")}
    documented = {option for names in rows for option in OPTION.findall(names)}
    assert documented | {"-h", "--help"} == options(command)
    for parameter in command.params:
        if parameter.name == "help":
            continue
        row = next(row for names, row in rows.items() if parameter.opts[0] in names)
        variable = parameter.envvar
        assert variable is None or f"`{variable if isinstance(variable, str) else variable[0]}`" in row
        if parameter.default not in (None, "", True) and not parameter.required:
            assert re.search(rf"\| `?{re.escape(str(parameter.default))}`? \|", row), parameter.name


def test_no_page_uses_an_option_that_is_not_there() -> None:
    wrong = []
    for page in PAGES:
        for line in re.findall(r"^[#$] (?:sudo )?((?:\.venv/bin/)?tortie .*)$", page.read_text(), re.MULTILINE):
            for words in re.split(r"[|;]|\$\(", line):
                wrong += [f"{page.name}: {words}" for option in _unknown_options(words)]
    assert not wrong


def known(path: str) -> set[str]:
    """What a command takes; where flanneld's flags are passed on, with these."""
    flags = FLAGS if path in ("tortie flanneld", "tortie flannel leases") else ()
    return options(COMMANDS[path]) | {f"{dashes}{flag}" for flag in flags for dashes in ("-", "--")}


def _unknown_options(text: str) -> Iterator[str]:
    words = text.partition(" -- ")[0].split()
    if not words or not words[0].endswith("tortie"):
        return
    path = "tortie"
    for word in words[1:]:
        if f"{path} {word}" in COMMANDS:
            path = f"{path} {word}"
        elif word.startswith("-") and word not in ("-", "->") and word.partition("=")[0] not in known(path):
            yield word


# --- kinds and fields ---------------------------------------------------------------------------------------------


def test_every_kind_is_in_the_table_with_its_words() -> None:
    rows = [row.split("|") for row in RESOURCES.splitlines() if row.count("|") == 6 and "`" in row]
    documented: dict[type[Resource], set[str]] = {}
    for _, name, version, words, namespaced, remark, _ in rows:
        listed = re.findall(r"`([^`]+)`", words)
        kind = kind_of_word(listed[0])
        assert all(kind_of_word(word) is kind for word in listed)
        assert kind.KIND.kind in name
        assert version.strip() == f"`{kind.KIND.api_version}`"
        assert (namespaced.strip() == "yes") is kind.KIND.namespaced
        assert ("read-only" in remark) is kind.KIND.read_only
        documented[kind] = set(listed)
    assert set(documented) == set(KINDS)
    for kind, words in documented.items():
        every = {*kind.KIND.aliases, kind.KIND.plural, kind.KIND.kind.lower()}
        assert words == {word for word in every if kind_of_word(word) is kind}


FREE = (Pod, K8sNode, FelixConfiguration)
"""Kinds of which the page names what is acted on, and covers the rest with a word."""


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.KIND.read_only and kind not in FREE], ids=lambda kind: kind.KIND.key
)
def test_every_field_of_the_spec_is_said_to_be_acted_on_or_kept(kind: type[Resource]) -> None:
    title = "NetworkPolicy of Kubernetes" if kind.KIND.api_version.startswith("networking") else kind.KIND.kind
    text = next(text for name, text in sections(RESOURCES).items() if title in name.split(" and ") or title == name)
    mentioned = {word.rpartition(".")[2] for word in re.findall(r"`([\w.]+)`", text)}
    spec = getattr(kind(metadata=Resource().metadata, **_required(kind)), "spec", None)
    if spec is not None and kind.KIND.kind != "Namespace":
        assert {field.encode_name for field in fields(spec)} <= mentioned


def _required(kind: type[Resource]) -> Mapping[str, Any]:
    if kind is EndpointSlice:
        return {"address_type": "IPv4"}
    if kind is ClusterNetworkPolicy:
        return {"spec": ClusterNetworkPolicySpec(tier="Admin", priority=1, subject=Subject())}
    return {"spec": _example(kind)} if kind.KIND.kind == "IPPool" else {}


def _example(kind: type[Resource]) -> Value:
    (pool,) = parse("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p}, spec: {cidr: 10.0.0.0/16}}")
    assert isinstance(pool, kind)
    spec: Value = pool.spec  # type: ignore[attr-defined]
    return spec


def test_the_felix_fields_that_are_named_exist() -> None:
    known = {field.encode_name for field in fields(FelixConfiguration().spec)}
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", sections(RESOURCES)["FelixConfiguration"], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named
    assert named <= known


# --- links and YAML -----------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text):
        path, _, anchor = "".join(target).partition("#")
        if path.startswith(("http:", "https:", "mailto:")):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), path
        assert not anchor or anchor in anchors(file.read_text()), "".join(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_yaml_of(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        assert parse(block, page.name)


def test_the_manifests_that_pages_print_are_those_in_examples() -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/policy.md").read_text(), re.MULTILINE | re.DOTALL):
        first = next(yaml.safe_load_all(block))["metadata"]["name"]
        for file in (ROOT / "examples/demo").glob("[0-9]*.yaml"):
            if f"name: {first}\n" in file.read_text():
                assert parse(block) == parse(file.read_text())


@pytest.mark.parametrize(
    "file",
    [  # topologies are no documents, and have a test of their own
        file
        for file in sorted((ROOT / "examples").rglob("*.yaml"))
        if file.parent.name != "topologies" or file.stem.endswith("pods")
    ],
    ids=lambda file: file.name,
)
def test_every_example_is_a_document_that_can_be_read(file: Path) -> None:
    if "migrate" in file.parts:  # with objects of other software, as an API server keeps them
        found = gathered(load_documents(file.read_text()))
        assert found.resources
        assert not found.refused
    else:
        assert read_all([file]).given if "simulate" in file.parts else parse(file.read_text(), file.name)
