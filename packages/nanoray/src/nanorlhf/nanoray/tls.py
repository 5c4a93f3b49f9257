"""TLS between the machines of a cluster: both sides show a certificate of one authority.

TLS hides what is said; the token still decides who belongs to the cluster. Certificates are not
matched with host names: inside one private authority every machine is as good as another, and
addresses of a cluster are often bare numbers.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where this machine's certificate lies; all three files are PEM."""

    certificate: Path
    """This machine's certificate, and those between it and the authority."""
    key: Path
    """The private key of the certificate, without a passphrase."""
    authority: Path
    """The certificate that signed those of all machines; trust no public authority here."""

    def context(self, side: Literal["caller", "answerer"]) -> ssl.SSLContext:
        """Return the settings of one side: TLS 1.3, and the other side must show a certificate.

        Raises:
            ValueError: A file is missing or is not what it should be.
        """
        is_caller = side == "caller"
        kind = ssl.PROTOCOL_TLS_CLIENT if is_caller else ssl.PROTOCOL_TLS_SERVER
        context = ssl.SSLContext(kind)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.key)
            context.load_verify_locations(self.authority)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(
                f"certificate={self.certificate}, key={self.key}, authority={self.authority}: "
                f"{error}; name three PEM files that belong together"
            ) from error
        return context
