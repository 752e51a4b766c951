"""The fixture `network` for pytest: what the manifests of a repository allow, without a cluster.

    [tool.pytest.ini_options]
    tortie_manifests = ["manifests"]

    def test_frontend_reaches_db(network):
        assert network.allows("web/frontend", "db/postgres", 5432)

The directories are those of the ini file, or of `--tortie-manifests`, or of a mark on the test:
`@pytest.mark.tortie_manifests("clusters/east")`, which counts from where the ini file is.

pytest loads this in every run of an environment that has Tortie: nothing else of Tortie is imported before somebody
asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tortie.calc.simulate import Simulation
    from tortie.testing.policies import Network

INI = "tortie_manifests"
_SIMULATIONS: pytest.StashKey[dict[tuple[Path, ...], Simulation]] = pytest.StashKey()
_NETWORK: pytest.StashKey[Network] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "manifests for the fixture `network`: a file, or a directory and all below; may be given more than once"
    parser.getgroup("tortie").addoption("--tortie-manifests", action="append", metavar="PATH", help=words)
    parser.addini(INI, "manifests for the fixture `network`: files, and directories with all below", "paths", [])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{INI}(*paths): the manifests that this test's `network` is made of")
    config.stash[_SIMULATIONS] = {}


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Network:
    """What the manifests allow: `assert network.allows("web/frontend", "db/postgres", 5432)`."""
    from tortie.testing.policies import Network

    made = Network(_simulation(request.config, _paths(request)))
    request.node.stash[_NETWORK] = made
    return made


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """A test that fails shows every step of the connection that it has asked about last."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    made = item.stash.get(_NETWORK, None)
    if report.when == "call" and report.failed and made is not None and made.asked:
        report.sections.append(("the connection asked about last", str(made.asked[-1])))


def _paths(request: pytest.FixtureRequest) -> tuple[Path, ...]:
    config = request.config
    mark = request.node.get_closest_marker(INI)
    given = config.getoption("--tortie-manifests")
    if mark is not None:
        paths = [config.rootpath / path for path in mark.args]
    elif given:
        paths = [config.invocation_params.dir / path for path in given]
    else:
        paths = config.getini(INI)
    if not paths:
        pytest.fail(f"which manifests? say {INI} in the ini file, or --tortie-manifests PATH", pytrace=False)
    return tuple(map(_short, paths))


def _short(path: Path) -> Path:
    """As a person would type it, and as messages name it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _simulation(config: pytest.Config, paths: tuple[Path, ...]) -> Simulation:
    """Read once in a run."""
    from tortie.base.errors import ConfigError
    from tortie.calc.simulate import Simulation

    known = config.stash[_SIMULATIONS]
    wrong: list[str] = []
    if paths not in known:
        try:
            known[paths] = Simulation.read(paths)
        except* ConfigError as errors:
            wrong.extend(_messages(errors))
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
    return known[paths]


def _messages(wrong: BaseException) -> Iterator[str]:
    if isinstance(wrong, BaseExceptionGroup):
        for one in wrong.exceptions:
            yield from _messages(one)
    else:
        yield str(wrong)
