"""Takes out of texts what is nobody else's business, before they leave a machine. Pure.

Rather too much than too little: what is collected for somebody who helps must hold no secret.
"""

from __future__ import annotations

import re

GONE = "<redacted>"

_NAME = (
    r"""(?P<name>(?:password|passwd|passphrase|secret|token|private[_-]?key|preshared[_-]?key|client-key-data"""
    r"""|client-certificate-data|api[_-]?key|etcdKey|authorization)s?["']?)"""
)
_QUOTED = r""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'"""
_NAMED = re.compile(
    rf"""{_NAME}(?:(?P<colon>[ \t]*:[ \t]*\n?[ \t]*)(?P<line>{_QUOTED}|[^\n]+)"""
    rf"""|(?P<equals>[ \t]*=[ \t]*|[ \t]+(?=["']))(?P<word>{_QUOTED}|(?:Bearer |Basic )?[^\s]+))""",
    re.IGNORECASE,
)
_BLOCK = re.compile(
    rf"""^(?P<indent>[ \t]*)(?P<before>(?:- )?["']?[\w.-]*?){_NAME}:[ \t]*[|>][-+0-9]*[ \t]*\n"""
    r"""(?:(?:(?P=indent)[ \t].*|[ \t]*)(?:\n|\Z))*""",
    re.IGNORECASE | re.MULTILINE,
)
"""A text of several lines in YAML."""
_PEM = re.compile(
    r"-----BEGIN (?P<what>[A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*)-----.*?(?:-----END (?P=what)-----|\Z)", re.DOTALL
)
_PEM_END = re.compile(r"\A[A-Za-z0-9+/=\s]*(?=-----END [A-Z0-9 ]*PRIVATE KEY)")
"""Of a text that begins in the middle of a key."""
_BEARER = re.compile(r"\b(Bearer|Basic) [A-Za-z0-9+/._~-]{8,}=*")
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
_URL = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,20}://)[^\s/@:]{1,200}:[^\s/@]{1,500}@", re.IGNORECASE)
_NO_SECRET = re.compile(r"""["']?(true|false|null|none|\d+|[{\[]|<redacted>)["']?[,;]?\Z""", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with `<redacted>` in the place of passwords, keys and tokens.

    >>> redacted('password "hunter2";'), redacted("etcd: https://root:pw@10.0.0.1:2379"), redacted("tokens: 3")
    ('password "<redacted>";', 'etcd: https://<redacted>@10.0.0.1:2379', 'tokens: 3')
    """
    text = _PEM.sub(lambda found: f"-----BEGIN {found['what']}-----\n{GONE}\n-----END {found['what']}-----", text)
    text = _PEM_END.sub(f"{GONE}\n", text)
    text = _BLOCK.sub(lambda found: f"{found['indent']}{found['before']}{found['name']}: {GONE}\n", text)
    text = _NAMED.sub(_named, text)
    text = _URL.sub(lambda found: f"{found['scheme']}{GONE}@", text)
    text = _BEARER.sub(lambda found: f"{found[1]} {GONE}", text)
    return _JWT.sub(GONE, text)


def _named(found: re.Match[str]) -> str:
    """After a colon the rest of the line is the value, as in YAML; else the next word, as in a shell."""
    name, between = found["name"], found["colon"] or found["equals"]
    value = found["line"] or found["word"]
    is_mapping = "\n" in between and value.endswith(":")
    if is_mapping or _NO_SECRET.match(value):
        return found[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{between}{quote}{GONE}{quote}"
