"""Through which proxy a server is reached: the kubeconfig's, else the environment's, as Go's programs read it.

Source: Go's golang.org/x/net/http/httpproxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from tortie.base.errors import ConfigError


def proxy_for(server: str, given: str, environment: Mapping[str, str], where: str) -> str:
    """A URL, or empty for none. Raises ConfigError for one that we cannot speak to, without its password."""
    url, source = given, where
    if not url:
        name = "HTTPS_PROXY" if server.startswith("https:") else "HTTP_PROXY"
        url = environment.get(name) or environment.get(name.lower()) or ""
        source = name
        excepted = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
        if not url or bypassed(server, excepted):
            return ""
        url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            "is not a URL such as http://192.0.2.1:3128; other kinds of proxies are not spoken to", source
        )
    return url


def bypassed(server: str, excepted: str) -> bool:
    """Whether NO_PROXY (`excepted`) has the server: `*`, names and what ends on them, addresses, networks; `:port`.

    The environment's proxy is never asked for this machine itself.
    """
    parts = urlsplit(server)
    host = (parts.hostname or "").lower()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    for word in (one.strip().lower() for one in excepted.split(",")):
        if word == "*":
            return True
        name, wanted_port = _split(word)
        if not name or (wanted_port and wanted_port != str(port)):
            continue
        if _is_network(name):
            if address is not None and address in ip_network(name, strict=False):
                return True
        elif (host == name and not name.startswith(".")) or host.endswith(f".{name.lstrip('*').lstrip('.')}"):
            return True
    return False


def _split(word: str) -> tuple[str, str]:
    """`host:port` taken apart; IPv6 addresses with a port are in brackets."""
    if word.startswith("["):
        name, _, rest = word[1:].partition("]")
        return name, rest.removeprefix(":")
    if word.count(":") == 1:
        name, _, port = word.partition(":")
        return name, port
    return word, ""


def _is_network(name: str) -> bool:
    try:
        ip_network(name, strict=False)
    except ValueError:
        return False
    return True
