"""Takes secrets out of text before it is written down."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    r"""
      (?P<named>
          (?: (?:api|access|account|private|shared)[_-]?key | secret | token | passw(?:or)?d | authorization )
          ["']? \s* [=:] \s* ["']?
      )
          (?: (?:bearer|basic) \s+ )? [^\s"'&,;/]+
    | (?P<scheme> \b (?:bearer|basic) \s+ ) [\w.+/=~-]{8,}
    | (?P<login> \b [a-z][a-z0-9+.-]{0,20} : [/_]{2} [^\s:/@]{0,200} : ) [^\s/@]+ (?= @ )
    | \b (?: sk|pk|rk ) - [\w-]{16,}                      # keys of model servers
    | \b (?: sk|pk|rk ) _ (?: live|test ) _ \w{16,}        # and of payments
    | \b gh[opsur]_ \w{20,} | \b github_pat_ \w{20,} | \b glpat- [\w-]{16,}
    | \b AIza [\w-]{30,} | \b ya29 \. [\w-]{20,}
    | \b npm_ \w{30,} | \b pypi- [\w-]{16,}
    | \b SG \. [\w-]{16,} \. [\w-]{16,}                   # of mail
    | \b \d{8,10} : [\w-]{35} \b                          # of chat bots
    | \b do[op]_v1_ [0-9a-f]{32,} | \b dapi [0-9a-f]{32} | \b shp (?: at|ca|pa|ss ) _ [0-9a-f]{32}
    | \b hvs \. [\w-]{20,} | \b AGE-SECRET-KEY-1 [0-9A-Z]{40,}
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
