"""Keys that look like real ones, made up anew each time: what must never stand in a log."""

from __future__ import annotations

import base64
import random
import string

_LETTERS = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def keys(seed: int) -> dict[str, str]:
    """One key of each format, as it would stand in a text, by the format's name."""
    rng = random.Random(seed)

    def some(length: int, letters: str = _LETTERS) -> str:
        return "".join(rng.choices(letters, k=length))

    def encoded(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    return {
        "model server": f"sk-proj-{some(40)}",
        "model server 2": f"sk-ant-api03-{some(60)}-AA",
        "payments": f"sk_live_{some(24)}",
        "forge": f"ghp_{some(36)}",
        "forge, narrow": f"github_pat_{some(22)}_{some(40)}",
        "forge 2": f"glpat-{some(20)}",
        "cloud id": f"AKIA{some(16, string.ascii_uppercase + string.digits)}",
        "cloud secret": f"aws_secret_access_key={some(40)}",
        "cloud 2": f"AIza{some(35)}",
        "cloud 2, short-lived": f"ya29.{some(60)}",
        "cloud 3": f"AccountName=x;AccountKey={some(64)}==",
        "cloud 4": f"dop_v1_{some(64, _HEX)}",
        "chat": f"xoxb-{some(12, string.digits)}-{some(24)}",
        "chat bot": f"{some(9, '123456789')}:{some(35)}",
        "model hub": f"hf_{some(34)}",
        "packages": f"npm_{some(36)}",
        "packages 2": f"pypi-AgEIcHlwaS5vcmc{some(60)}",
        "mail": f"SG.{some(22)}.{some(43)}",
        "web token": f"eyJ{encoded(some(20))}.eyJ{encoded(some(30))}.{some(43)}",
        "bearer": f"Authorization: Bearer {some(43)}",
        "basic": f"Basic {base64.b64encode(some(24).encode()).decode()}",
        "database": f"postgresql://app:{some(20)}@db/main",
        "named": f'password="{some(18)}"',
        "vault": f"hvs.{some(24)}",
        "private key": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{some(200)}\n-----END OPENSSH PRIVATE KEY-----",
    }


def core(key: str) -> str:
    """The longest stretch of a key that says nothing by its form: wherever it stands, the key stands."""
    for mark in ("-----END", '"', "@", "==", "="):
        key = key.rstrip(mark) if mark in {'"', "=", "=="} else key.partition(mark)[0]
    pieces = "".join(each if each in _LETTERS else " " for each in key).split()
    return max(pieces, key=len)[:40]
