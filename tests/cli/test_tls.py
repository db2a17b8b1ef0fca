"""The command over TLS, with certificates on both sides."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jobwire import Tls

from tests.cli.support import broker, jobwire

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A certificate that is its own authority, for both sides."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return tmp_path


def test_commands_reach_a_server_that_asks_for_certificates(certificates: Path) -> None:
    cert, key = str(certificates / "cert.pem"), str(certificates / "key.pem")
    options = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", cert]
    own = Tls(ca_file=cert, certificate_file=cert, key_file=key)
    with broker(*options, tls=own) as address:
        good = ["--ca", cert, "--client-cert", cert, "--client-key", key]
        assert jobwire(*good, "submit", "x", target=address).returncode == 0
        without = jobwire("--ca", cert, "info", "--timeout", "500ms", target=address)
        assert without.returncode == 4
        plain = jobwire("info", "--timeout", "500ms", target=address)
        assert plain.returncode == 4
        by_environment = jobwire(
            "info",
            target=address,
            environment={
                "JOBWIRE_CA": cert,
                "JOBWIRE_CLIENT_CERT": cert,
                "JOBWIRE_CLIENT_KEY": key,
            },
        )
        assert by_environment.returncode == 0, by_environment.stderr
