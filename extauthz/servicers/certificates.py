"""Until when a client certificate holds that Envoy has verified.

Envoy verifies it once, when the connection is made; a connection can outlive its certificate.
"""

from functools import lru_cache
from urllib.parse import unquote

from cryptography import x509

_REMEMBERED_MAX = 1024
"""Certificates: reading one takes about 50 us, and an agent shows its own with every call."""


def ends_at_ms(certificate: str, principal: str) -> int | None:
    """The certificate's last moment in Unix milliseconds; None where nobody has shown one.

    Args:
        certificate: as Envoy tells it, PEM in URL encoding.
        principal: whom Envoy has read out of it; without the certificate it has ended.
    """
    if not certificate:
        return 0 if principal else None
    return _not_after_ms(certificate)


@lru_cache(_REMEMBERED_MAX)
def _not_after_ms(certificate: str) -> int:
    try:
        read = x509.load_pem_x509_certificate(unquote(certificate).encode())
    except ValueError:
        return 0  # whatever it is, nobody can say that it holds
    return int(read.not_valid_after_utc.timestamp() * 1000)
