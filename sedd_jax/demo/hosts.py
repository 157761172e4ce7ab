"""Which names a server answers to, so that no page of another site can reach it.

A site can let its own name point to 127.0.0.1 (DNS rebinding). Its requests then come from the
user's browser, with that name in the Host header.
"""

import dataclasses
import ipaddress
import re
import socket
from collections.abc import Mapping

# The name, perhaps in brackets, and a port.
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")
_OWN = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Hosts:
  """The names of a server.

  Attributes:
    bound: the host that the server was bound to.
  """

  bound: str

  def fault(self, headers: Mapping[str, str]) -> str | None:
    """Why a request with these headers is refused, or None.

    The port of Host may differ from ours, as it does behind an SSH tunnel. A page's Origin must be
    ours, name and port.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if not self._is_own(host):
      return f"Host {host[:100]!r} is not a name of this server; use localhost or {self.bound}"
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}"):
      return f"Origin {origin[:100]!r} is another site's"
    return None

  def _is_own(self, host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
      return False
    name = match[1].strip("[]").lower()
    if name in (*_OWN, self.bound.lower()):
      return True
    # Bound to all addresses of the machine. An address is no name, so it cannot be rebound.
    return _is_wildcard(self.bound) and (_is_address(name) or name == socket.gethostname().lower())


def _is_wildcard(host: str) -> bool:
  return host == "" or (_is_address(host) and ipaddress.ip_address(host).is_unspecified)


def _is_address(name: str) -> bool:
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True
