"""A certificate authority of the tests' own, made with the openssl command."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_DAYS = "2"
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(
        ["openssl", *[str(word) for word in words]], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"openssl {words[0]} failed:\n{done.stderr}")


@dataclass(frozen=True)
class Authority:
    """Signs certificates; everything lies in one folder."""

    folder: Path
    own: Pair

    def issue(
        self, name: str, subject: str, *, hosts: Sequence[str] = (), addresses: Sequence[str] = ()
    ) -> Pair:
        """Return a certificate for a subject (``/O=group/CN=user``), good for server and client."""
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        names = [*(f"DNS:{host}" for host in hosts), *(f"IP:{address}" for address in addresses)]
        lines = ["basicConstraints=CA:FALSE", "extendedKeyUsage=serverAuth,clientAuth"]
        if names:
            lines.append(f"subjectAltName={','.join(names)}")
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("\n".join(lines) + "\n")
        request = self.folder / f"{name}.csr"
        _openssl("req", "-new", *_CURVE, "-keyout", pair.key, "-out", request, "-subj", subject)
        _openssl(
            *("x509", "-req", "-in", request, "-out", pair.certificate, "-days", _DAYS),
            *("-CA", self.own.certificate, "-CAkey", self.own.key, "-CAcreateserial"),
            *("-extfile", extensions),
        )
        return pair


def make_authority(folder: Path) -> Authority:
    """Make a new authority in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Pair(folder / "ca.crt", folder / "ca.key")
    _openssl(
        *("req", "-x509", "-new", *_CURVE, "-keyout", own.key, "-out", own.certificate),
        *("-days", _DAYS, "-subj", "/CN=finetune-tests"),
    )
    return Authority(folder, own)


def make_signing_key(folder: Path, name: str) -> Pair:
    """Make a key pair without a certificate; ``certificate`` holds the public key."""
    pair = Pair(folder / f"{name}.pub", folder / f"{name}.key")
    _openssl(
        *("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-out", pair.key),
    )
    _openssl("pkey", "-in", pair.key, "-pubout", "-out", pair.certificate)
    return pair
