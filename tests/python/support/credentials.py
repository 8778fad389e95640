"""Certificates, tokens and access files that the tests make."""

import re
from pathlib import Path

import trustme

from support.processes import output


def write_certificates(directory: Path) -> trustme.CA:
    """Writes a CA, and a server certificate by it for localhost."""
    ca = trustme.CA()
    server = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    server.private_key_pem.write_to_path(str(directory / "server.key"))
    (directory / "server.pem").write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
    return ca


def tls_settings(directory: Path) -> list[str]:
    """The flags of a server with the certificate that `write_certificates` has written."""
    return [f"--tls-cert={directory / 'server.pem'}", f"--tls-key={directory / 'server.key'}"]


def write_access_file(binary: Path, directory: Path) -> None:
    """Writes an access file with one caller, who may do everything, and the caller's token."""
    command = [binary, "token", "new", "--name", "good", "--allow", "read,write"]
    token, entry = output([*command, "--namespace", "*"]).decode().split("# For the access file:\n")
    (directory / "token").write_text(re.search(r"^dyn_\S+$", token, re.MULTILINE).group())
    (directory / "access.toml").write_text(entry)
