"""Where webhooks may go: the value of ``FOREMAN_WEBHOOK_ALLOW``."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network

import idna
from attrs import frozen

# No last label of a name: parsers of addresses read it as a number.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*", re.ASCII)


@frozen
class Allow:
    """
    What is allowed, save what never is: public addresses, local ones (private networks, tailnets, loopback),
    some networks, and whatever some host names resolve to.
    """

    public: bool = False
    local: bool = False
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    names: frozenset[str] = frozenset()


def parse_allow(text: str) -> Allow:
    """``lan``, ``public``, or networks and host names. Raises ValueError with what is allowed."""
    if text == "lan":
        return Allow(public=True, local=True)
    if text == "public":
        return Allow(public=True)
    networks: list[IPv4Network | IPv6Network] = []
    names: list[str] = []
    for part in (piece.strip() for piece in text.split(",")):
        try:
            networks.append(ip_network(part))
        except ValueError:
            names.append(_name(part))
    return Allow(networks=tuple(networks), names=frozenset(names))


def host_name(host: str) -> str:
    """A host name as names are compared: ASCII, small letters, no dot at the end. Raises ValueError."""
    host = host.removesuffix(".").lower()
    if host.isascii():
        # RFC 1035, section 2.3.4. The system's resolver is asked in vain for anything else.
        if not all(0 < len(label) < 64 for label in host.split(".")):
            raise ValueError(f"{host} is not a host name")
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii").removesuffix(".")
    except UnicodeError:
        raise ValueError(f"{host} is not a host name") from None


def _name(part: str) -> str:
    allowed = (
        "it is lan, public, or a list of networks and host names such as 192.168.1.0/24,nas.local "
        f"({part!r} is neither)"
    )
    try:
        name = host_name(part)
    except ValueError:
        raise ValueError(allowed) from None
    # A mistyped network is no host name; those end in something else than a number.
    if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]) or name in ("lan", "public"):
        raise ValueError(allowed)
    return name
