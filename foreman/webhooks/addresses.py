"""Addresses of receivers: how they may be spelled, and what kind each is. Nothing here looks anything up."""

import enum
import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from foreman.allow import host_name

Address = IPv4Address | IPv6Address

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+", re.ASCII)


class Kind(enum.Enum):
    """The value is how a sentence names it."""

    PUBLIC = "a public address"
    PRIVATE = "a private address"
    SHARED = "an address of a tailnet or a provider's NAT"
    LOOPBACK = "a loopback address"
    RESERVED = "a reserved address"
    LINK_LOCAL = "a link-local address"
    METADATA = "a cloud's metadata service"
    MULTICAST = "a multicast address"
    BROADCAST = "the broadcast address"
    UNSPECIFIED = "an unspecified address"


NEVER = frozenset({Kind.LINK_LOCAL, Kind.METADATA, Kind.MULTICAST, Kind.BROADCAST, Kind.UNSPECIFIED})
"""Whatever is configured."""

LOCAL = frozenset({Kind.PRIVATE, Kind.SHARED, Kind.LOOPBACK})

# The first that holds the address says its kind. From the registries of IANA for special purposes.
_KINDS: tuple[tuple[Kind, tuple[IPv4Network | IPv6Network, ...]], ...] = tuple(
    (kind, tuple(ip_network(network) for network in networks.split()))
    for kind, networks in (
        (
            # Amazon's in IPv6 and its pods', Google's and Scaleway's lie in the private range.
            Kind.METADATA,
            "169.254.169.254/32 100.100.100.200/32 168.63.129.16/32 fd00:ec2::254/128 fd00:ec2::23/128 "
            "fd20:ce::254/128 fd00:42::42/128",
        ),
        (Kind.LINK_LOCAL, "169.254.0.0/16 fe80::/10"),
        (Kind.BROADCAST, "255.255.255.255/32"),
        (Kind.MULTICAST, "224.0.0.0/4 ff00::/8"),
        (Kind.UNSPECIFIED, "0.0.0.0/8 ::/128"),
        (Kind.LOOPBACK, "127.0.0.0/8 ::1/128"),
        (Kind.PRIVATE, "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7"),
        (Kind.SHARED, "100.64.0.0/10"),
        (
            Kind.RESERVED,
            "192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
            "240.0.0.0/4 2001::/23 2001:db8::/32 3fff::/20",
        ),
        (Kind.PUBLIC, "0.0.0.0/0 2000::/3"),
        (Kind.RESERVED, "::/0"),
    )
)

# The IPv4 address is the end of these: mapped (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052).
_IPV4_LAST = tuple(map(IPv6Network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
_COMPATIBLE = IPv6Network("::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")


def literal(host: str) -> Address | None:
    """
    The address that a URL's host spells (without brackets), None for a name.

    Takes what Go's parser or the C library's ``inet_aton`` takes: one to four numbers, decimal, octal or
    hexadecimal, of which the last fills what is left. Raises ValueError for what is neither an address nor a
    name.
    """
    if ":" in host:
        try:
            return ip_address(host.partition("%")[0])
        except ValueError:
            raise ValueError(f"{host} is not an address") from None
    if "%" in host:
        raise ValueError("a host name has no %")
    # Digits and dots of other scripts become plain ones, as for whoever looks the name up.
    name = host_name(host)
    parts = name.split(".")
    if not _NUMBER.fullmatch(parts[-1]):
        return None
    try:
        return _from_numbers([_number(part) for part in parts])
    except ValueError:
        raise ValueError(f"{host} is not an address, and no host name ends in a number") from None


def _number(part: str) -> int:
    if not _NUMBER.fullmatch(part):
        raise ValueError(part)
    if part[:2].lower() == "0x":
        return int(part[2:] or "0", 16)
    return int(part, 8) if part.startswith("0") else int(part)


def _from_numbers(numbers: list[int]) -> IPv4Address:
    *first, last = numbers
    if len(first) > 3 or any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        raise ValueError(numbers)
    whole = last
    for place, number in enumerate(first):
        whole += number << (24 - 8 * place)
    return IPv4Address(whole)


def plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _SIX_TO_FOUR:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    small = int(address) in (0, 1)  # unspecified and loopback
    if any(address in network for network in _IPV4_LAST) or (address in _COMPATIBLE and not small):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


@lru_cache(1024)  # it takes 50 µs, and every attempt asks
def kind(address: Address) -> Kind:
    """What kind an address is; one that stands for another is of the other's kind."""
    found = plain(address)
    return next(
        kind
        for kind, networks in _KINDS
        if any(found in network for network in networks if network.version == found.version)
    )
