"""Where webhooks may go: the table of addresses and spellings, and the rules around it."""

import re
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from foreman.allow import Allow, parse_allow
from foreman.webhooks.addresses import NEVER, Address, kind, literal
from foreman.webhooks.guard import Forbidden, Guard, is_local

PAGE = (Path(__file__).parents[2] / "docs/reference/webhook-addresses.md").read_text("utf-8")
METADATA = ("169.254.169.254", "100.100.100.200", "168.63.129.16")
TARGET = ("10.9.9.9", 11434)
LISTED = "10.0.0.0/8,192.0.2.0/24,fd12::/16,169.254.0.0/16,0.0.0.0/0,::/0,nas.local"
ALLOWS = ("lan", "public", LISTED, "::/0", "10.0.0.0/8", "::ffff:0:0/96,64:ff9b::/96,2002::/16,::/64")

# Host as in a URL, allowed under `lan`, `public`, and `10.0.0.0/8`.
TABLE: Sequence[tuple[str, bool, bool, bool]] = (
    # Public addresses.
    ("8.8.8.8", True, True, False),
    ("1.1.1.1", True, True, False),
    ("172.32.0.1", True, True, False),
    ("100.128.0.1", True, True, False),
    ("[2606:4700:4700::1111]", True, True, False),
    ("[2a00:1450:4001:82a::200e]", True, True, False),
    ("134744072", True, True, False),
    ("0x08080808", True, True, False),
    ("8.8.2056", True, True, False),
    ("[::ffff:8.8.8.8]", True, True, False),
    ("[64:ff9b::808:808]", True, True, False),
    ("[2002:808:808::1]", True, True, False),
    # Private networks, tailnets, loopback.
    ("10.0.0.5", True, False, True),
    ("10.5", True, False, True),
    ("0x0a.0.0.5", True, False, True),
    ("012.0.0.5", True, False, True),
    ("167772165", True, False, True),
    ("[::ffff:10.0.0.5]", True, False, True),
    ("[64:ff9b::a00:5]", True, False, True),
    ("[2002:a00:5::]", True, False, True),
    ("[::10.0.0.5]", True, False, True),
    ("[::ffff:0:10.0.0.5]", True, False, True),
    ("172.16.0.1", True, False, False),
    ("172.31.255.254", True, False, False),
    ("192.168.1.10", True, False, False),
    ("192.168.266", True, False, False),
    ("0xc0a8010a", True, False, False),
    ("100.64.0.1", True, False, False),
    ("100.127.255.254", True, False, False),
    ("[fd12:3456::1]", True, False, False),
    ("[fc00::1]", True, False, False),
    ("127.0.0.1", True, False, False),
    ("127.1", True, False, False),
    ("127.0.0.1.", True, False, False),
    ("2130706433", True, False, False),
    ("0x7f000001", True, False, False),
    ("0X7F.1", True, False, False),
    ("017700000001", True, False, False),
    ("0177.0.0.1", True, False, False),
    ("１２７.0.0.1", True, False, False),
    ("127。0。0。1", True, False, False),
    ("０ｘ７ｆ０００００１", True, False, False),
    ("[::1]", True, False, False),
    ("[0:0:0:0:0:0:0:1]", True, False, False),
    ("[::ffff:127.0.0.1]", True, False, False),
    ("[::ffff:7f00:1]", True, False, False),
    ("[64:ff9b::7f00:1]", True, False, False),
    ("[2002:7f00:1::]", True, False, False),
    ("[::127.0.0.1]", True, False, False),
    # Reserved: neither public nor local.
    ("192.0.2.1", False, False, False),
    ("198.51.100.1", False, False, False),
    ("203.0.113.9", False, False, False),
    ("198.18.0.1", False, False, False),
    ("192.0.0.8", False, False, False),
    ("192.88.99.1", False, False, False),
    ("240.0.0.1", False, False, False),
    ("[2001:db8::1]", False, False, False),
    ("[2001::1]", False, False, False),
    ("[3fff::1]", False, False, False),
    ("[100::1]", False, False, False),
    ("[64:ff9b:1::a00:5]", False, False, False),
    ("[fec0::1]", False, False, False),
    # Never: link-local and metadata.
    ("169.254.169.254", False, False, False),
    ("169.254.0.1", False, False, False),
    ("2852039166", False, False, False),
    ("0xa9fea9fe", False, False, False),
    ("0251.0376.0251.0376", False, False, False),
    ("169.254.43518", False, False, False),
    ("169。254。169。254", False, False, False),
    ("[::ffff:169.254.169.254]", False, False, False),
    ("[::ffff:a9fe:a9fe]", False, False, False),
    ("[64:ff9b::a9fe:a9fe]", False, False, False),
    ("[2002:a9fe:a9fe::]", False, False, False),
    ("[::169.254.169.254]", False, False, False),
    ("[::ffff:0:169.254.169.254]", False, False, False),
    ("①⑥⑨.254.169.254", False, False, False),
    ("[fe80::1]", False, False, False),
    ("[fe80::1%25eth0]", False, False, False),
    ("100.100.100.200", False, False, False),
    ("[::ffff:100.100.100.200]", False, False, False),
    ("168.63.129.16", False, False, False),
    ("[64:ff9b::a83f:8110]", False, False, False),
    ("[fd00:ec2::254]", False, False, False),
    ("[fd00:ec2::23]", False, False, False),
    ("[fd20:ce::254]", False, False, False),
    ("[fd00:42::42]", False, False, False),
    # Never: multicast, broadcast, unspecified.
    ("224.0.0.1", False, False, False),
    ("239.255.255.250", False, False, False),
    ("[ff02::1]", False, False, False),
    ("[::ffff:224.0.0.1]", False, False, False),
    ("255.255.255.255", False, False, False),
    ("4294967295", False, False, False),
    ("0.0.0.0", False, False, False),
    ("0", False, False, False),
    ("0x0", False, False, False),
    ("0.1.2.3", False, False, False),
    ("[::]", False, False, False),
    ("[::ffff:0.0.0.0]", False, False, False),
    ("[64:ff9b::]", False, False, False),
    # No address and no name.
    ("256.1.1.1", False, False, False),
    ("1.2.3.4.5", False, False, False),
    ("4294967296", False, False, False),
    ("0xzz.1", False, False, False),
    ("10.0.0.08", False, False, False),
    ("%31%32%37.0.0.1", False, False, False),
    ("[v1.x]", False, False, False),
)


async def nobody(host: str) -> Sequence[str]:
    """A resolver that knows no name."""
    raise LookupError(host)


def make(allow: str = "lan", **given: Any) -> Guard:
    """A guard that was asked nothing yet. `local` are the machine's addresses."""
    local = {ip_address(one) for one in given.pop("local", ("127.0.0.1", "192.168.1.2", "::1"))}
    return Guard(
        parse_allow(allow),
        given.pop("target", TARGET),
        given.pop("resolve", nobody),
        lambda address: address in local or (address.version == 4 and address.is_loopback),
    )


def allows(guard: Guard, host: str, port: int = 9000) -> bool:
    """At submission."""
    try:
        guard.check(f"http://{host}:{port}/hook")
    except ValueError:
        return False
    return True


def judged(guard: Guard, host: str, port: int, *addresses: str) -> str | None:
    """At an attempt: None, or why not."""
    results: list[Any] = []
    Deferred.fromCoroutine(guard.judge(host, port, addresses)).addBoth(results.append)
    if results == [None]:
        return None
    error: Forbidden = results[0].value
    assert isinstance(error, Forbidden)
    return str(error)


def spelled(host: str) -> Address | None:
    """The address that a row of the table means, if it means one."""
    with suppress(ValueError):
        return literal(host.strip("[]").replace("%25", "%"))
    return None


@pytest.mark.parametrize(("host", "lan", "public", "listed"), TABLE)
def test_table(host: str, lan: bool, public: bool, listed: bool) -> None:
    """Every spelling has the verdict of the address that it means, at submission and at an attempt."""
    for allow, verdict in (("lan", lan), ("public", public), ("10.0.0.0/8", listed)):
        assert allows(make(allow), host) is verdict, allow
    address = spelled(host)
    if address is None:
        return
    for allow, verdict in (("lan", lan), ("public", public), ("10.0.0.0/8", listed)):
        assert (judged(make(allow), "hook.example", 9000, str(address)) is None) is verdict, allow


def test_the_page_has_the_table() -> None:
    """docs/reference/webhook-addresses.md lists each row with these verdicts."""
    rows = re.findall(r"^\| `([^`]+)` \| (yes|no) \| (yes|no) \| (yes|no) \|$", PAGE, re.M)
    said = [(host, *(word == "yes" for word in words)) for host, *words in rows]
    assert said == [tuple(row) for row in TABLE]
    assert len(TABLE) >= 60


def test_a_list_does_not_lift_what_is_never_allowed() -> None:
    """Not by its networks, and not by everything."""
    guard = make(LISTED)
    for host, lan, *_ in TABLE:
        address = spelled(host)
        if not lan and address is not None and kind(address) in NEVER:
            assert not allows(guard, host), host
    assert allows(guard, "192.0.2.1")


def test_a_listed_name_may_resolve_to_anything_else() -> None:
    """Compared without regard to case and the last dot; only what is never allowed stays so."""
    guard = make("NAS.local.")
    for host in ("nas.local", "NAS.LOCAL", "nas.local."):
        assert judged(guard, host, 80, "192.168.1.9", "203.0.113.5", "fd12::1") is None
    assert judged(guard, "nas.local", 80, "169.254.169.254") is not None
    assert judged(guard, "other.local", 80, "192.168.1.9") is not None
    assert allows(guard, "other.local"), "names are judged at each attempt"


def test_one_forbidden_address_refuses_the_name() -> None:
    """Whichever of them would be tried first."""
    guard = make()
    assert judged(guard, "hook.example", 443, "8.8.8.8", "2606:4700::1") is None
    why = judged(guard, "hook.example", 443, "8.8.8.8", "fe80::1%eth0")
    assert why == "hook.example resolves to fe80::1, a link-local address: foreman never sends webhooks there"


def test_itself() -> None:
    """The address and port that foreman listens on; with every address, each one of this machine."""
    guard = make()
    guard.own = ("192.168.1.2", 8080)
    assert not allows(guard, "192.168.1.2", 8080)
    assert not allows(guard, "[::ffff:192.168.1.2]", 8080)
    assert allows(guard, "127.0.0.1", 8080)
    assert allows(guard, "192.168.1.2", 8081)
    for everywhere in ("0.0.0.0", "::"):
        guard.own = (everywhere, 8080)
        for host in ("127.0.0.1", "127.5.5.5", "[::1]", "192.168.1.2", "0xc0a80102"):
            assert not allows(guard, host, 8080), host
        assert allows(guard, "192.168.1.3", 8080)
        assert judged(guard, "me.local", 8080, "192.168.1.2") is not None
    listed = make("127.0.0.0/8,me.local")
    listed.own = ("::", 8080)
    assert not allows(listed, "127.0.0.1", 8080)
    assert judged(listed, "me.local", 8080, "127.0.0.1") is not None


def test_the_target() -> None:
    """By its address, by its name, and by any address of this machine when it is reached over loopback."""
    guard = make()
    assert not allows(guard, "10.9.9.9", 11434)
    assert judged(guard, "gpu.lan", 11434, "10.9.9.9") is not None
    assert judged(guard, "gpu.lan", 11434, "::ffff:10.9.9.9") is not None
    assert allows(guard, "10.9.9.9", 9000)
    here = make(target=("127.0.0.1", 11434))
    assert not allows(here, "192.168.1.2", 11434)
    assert judged(here, "me.local", 11434, "192.168.1.2") is not None
    assert allows(here, "192.168.1.3", 11434)


def test_a_target_with_a_name() -> None:
    """Its name is refused at submission, its addresses at each attempt; it is asked only when ports agree."""
    asked = []

    async def resolve(host: str) -> Sequence[str]:
        asked.append(host)
        return ["10.1.1.1", "fd12::7"]

    guard = make(target=("gpu.lan", 11434), resolve=resolve)
    assert not allows(guard, "gpu.lan", 11434)
    assert not allows(guard, "GPU.lan.", 11434)
    assert judged(guard, "alias.lan", 9000, "10.1.1.1") is None
    assert asked == []
    assert judged(guard, "alias.lan", 11434, "10.1.1.1") is not None
    assert judged(guard, "alias.lan", 11434, "fd12::7") is not None
    assert judged(guard, "alias.lan", 11434, "10.1.1.2") is None
    unknown = make(target=("gone.lan", 11434))
    assert judged(unknown, "alias.lan", 11434, "10.1.1.1") is None


@pytest.mark.parametrize("failure", [LookupError("gpu.lan"), None])
def test_a_target_that_does_not_resolve_now(failure: Exception | None) -> None:
    """It is where it was last, and holds up nobody else's webhooks."""
    names: dict[str, list[str]] = {"gpu.lan": ["10.1.1.1"]}

    async def resolve(host: str) -> Sequence[str]:
        if failure is not None and host not in names:
            raise failure
        return names.get(host, [])

    guard = make(target=("gpu.lan", 443), resolve=resolve)
    assert judged(guard, "alias.lan", 443, "10.1.1.1") is not None
    names.clear()
    assert judged(guard, "alias.lan", 443, "10.1.1.1") is not None
    assert judged(guard, "hook.example", 443, "8.8.8.8") is None
    names["gpu.lan"] = ["10.1.1.2"]
    assert judged(guard, "alias.lan", 443, "10.1.1.1") is None
    assert judged(guard, "alias.lan", 443, "10.1.1.2") is not None


def test_cancelling_the_look_up_of_the_target() -> None:
    """It gives no verdict."""
    guard = make(target=("gpu.lan", 443), resolve=lambda host: Deferred())
    results: list[Any] = []
    running = Deferred.fromCoroutine(guard.judge("hook.example", 443, ["8.8.8.8"]))
    running.addBoth(results.append)
    assert results == []
    running.cancel()
    assert results[0].check(CancelledError)


def test_addresses_of_this_machine() -> None:
    """Those that a socket can be bound to; nothing is sent."""
    assert is_local(ip_address("127.0.0.1"))
    assert not is_local(ip_address("192.0.2.1"))
    assert not is_local(ip_address("2001:db8::1"))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://10.0.0.5/",
        "http://user@10.0.0.5/",
        "http://user:secret@10.0.0.5/",
        "http://10.0.0.5:0/",
        "http://10.0.0.5:65536/",
        "http:///hook",
        "10.0.0.5/hook",
        "http://10.0.0.5/a b",
        "http://10.0.0.5/\r\nX: y",
        "http://10.0.0.5\\@evil/",
        "http://[::1/",
        "",
    ],
)
def test_what_is_no_url_of_a_receiver(url: str) -> None:
    """Schemes, users, ports, spaces and control characters are looked at before the address."""
    with pytest.raises(ValueError, match=r"."):
        make().check(url)


def test_sentences() -> None:
    """They name what was given and the rule."""
    with pytest.raises(ValueError, match=r"^0x7f000001 is 127\.0\.0\.1, a loopback address, which FOREMAN_"):
        make("public").check("http://0x7f000001/")
    with pytest.raises(ValueError, match=r"^169\.254\.169\.254 is a cloud's metadata service: foreman never"):
        make().check("http://169.254.169.254/latest")
    guard = make(target=("127.0.0.1", 11434))
    guard.own = ("::", 8080)
    with pytest.raises(
        ValueError, match=r"^127\.1 is 127\.0\.0\.1, where foreman itself listens on port 8080"
    ):
        guard.check("http://127.1:8080/")
    with pytest.raises(ValueError, match=r"^127\.0\.0\.1 is where the target listens on this port: foreman "):
        guard.check("http://127.0.0.1:11434/")
    why = judged(make(), "169.254.169.254", 80, "169.254.169.254")
    assert why == "169.254.169.254 is a cloud's metadata service: foreman never sends webhooks there"


@pytest.mark.parametrize(
    "text",
    ["lan,public", "10.0.0.1/8", "300.1.1.1", "0x7f000001", "a.0x", "[::1]", "nas local", "a..b", "-a", ","],
)
def test_settings_that_are_refused(text: str) -> None:
    """With what is allowed; a mistyped network is no host name."""
    with pytest.raises(ValueError, match="lan, public, or a list of networks and host names"):
        parse_allow(text)


def test_settings() -> None:
    """The three forms."""
    assert parse_allow("lan") == Allow(public=True, local=True)
    assert parse_allow("public") == Allow(public=True)
    allow = parse_allow("192.168.1.0/24, fd12::/16,NAS.local, 10.0.0.7, bücher.example")
    assert [str(network) for network in allow.networks] == ["192.168.1.0/24", "fd12::/16", "10.0.0.7/32"]
    assert allow.names == {"nas.local", "xn--bcher-kva.example"}


@given(number=st.integers(0, 2**32 - 1), spelling=st.integers(0, 3**4 * 4 - 1))
def test_every_spelling_means_the_same_address(number: int, spelling: int) -> None:
    """One to four numbers, each decimal, octal or hexadecimal."""
    address = IPv4Address(number)
    count, spelling = spelling % 4 + 1, spelling // 4
    octets = list(address.packed)
    numbers = [*octets[: count - 1], int.from_bytes(bytes(octets[count - 1 :]))]
    parts = []
    for one in numbers:
        parts.append((str, lambda n: f"0{n:o}", hex)[spelling % 3](one))
        spelling //= 3
    assert literal(".".join(parts)) == address


# Any address, and those of the special networks, which chance does not find.
octets_of_an_address = (
    st.integers(0, 2**32 - 1)
    | st.builds(
        lambda network, rest: int(ip_address(network)) | rest,
        st.sampled_from(
            ["0.0.0.0", "10.0.0.0", "127.0.0.0", "169.254.0.0", "192.0.2.0", "192.168.0.0", "224.0.0.0"]
        ),
        st.integers(0, 255),
    )
    | st.sampled_from([int(ip_address(one)) for one in METADATA])
)


@given(number=octets_of_an_address, allow=st.sampled_from(ALLOWS))
def test_what_stands_for_an_address_is_judged_as_it(number: int, allow: str) -> None:
    """Mapped, translated, tunnelled and compatible forms, whatever is configured."""
    address = IPv4Address(number)
    octets = f"{number >> 16:x}:{number & 0xFFFF:x}"
    forms = [f"::ffff:{octets}", f"::ffff:0:{octets}", f"64:ff9b::{octets}", f"2002:{octets}::"]
    if number > 1:  # the other two are the unspecified address and loopback of IPv6
        forms.append(f"::{octets}")
    assert {kind(ip_address(form)) for form in forms} == {kind(address)}
    guard = make(allow)
    assert {allows(guard, f"[{form}]") for form in forms} == {allows(guard, str(address))}
    if kind(address) in NEVER:
        assert not any(allows(guard, f"[{form}]") for form in forms)


@given(host=st.text(max_size=20))
def test_no_host_breaks_the_parser(host: str) -> None:
    """An address, None, or a ValueError."""
    with suppress(ValueError):
        assert literal(host) is None or kind(literal(host))
