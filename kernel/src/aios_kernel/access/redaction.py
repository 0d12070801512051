"""Takes secrets out of text before it is written down."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    r"""
      (?P<named> (?:api[_-]?key|access[_-]?key|secret|token|passw(?:or)?d|authorization) ["']? \s* [=:] \s* ["']? )
          (?: (?:bearer|basic) \s+ )? [^\s"'&,;/]+
    | (?P<scheme> \b (?:bearer|basic) \s+ ) [\w.+/=~-]{8,}
    | (?P<login> \b [a-z][a-z0-9+.-]{0,20} :// [^\s:/@]{0,200} : ) [^\s/@]+ (?= @ )
    | \b (?: sk|pk|rk ) - [\w-]{16,}                      # keys of model servers
    | \b gh[opsur]_ \w{20,} | \b github_pat_ \w{20,}
    | \b (?: AKIA|ASIA ) [0-9A-Z]{16} \b
    | \b xox[abposr]- [\w-]{10,}
    | \b hf_ \w{20,}
    | \b eyJ [\w-]{8,} \. [\w-]{8,} \. [\w-]*              # JSON web tokens
    | -----BEGIN [ ] [A-Z ]* PRIVATE [ ] KEY----- [\s\S]*? (?: -----END [ ] [A-Z ]* PRIVATE [ ] KEY----- | \Z )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_HIDDEN = "[secret]"


def redacted(text: str) -> str:
    """The text with keys, tokens, passwords and private keys replaced, as far as they look like such."""
    return _SECRETS.sub(_hide, text)


def _hide(found: re.Match[str]) -> str:
    kept = found["named"] or found["scheme"] or found["login"] or ""
    return kept + _HIDDEN
