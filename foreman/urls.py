"""URLs: where a job is found, and what may be given as the URL of a receiver."""

import re
from urllib.parse import quote, urlsplit

from attrs import frozen

URL_CHARACTERS = 2048
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\\\ufffd]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_url(text: str) -> str:
    """The URL of a receiver as it was given. Raises ValueError with what is allowed."""
    allowed = "it is an http or https URL with a host, such as https://example.org/hook"
    if len(text) > URL_CHARACTERS:
        raise ValueError(f"a URL has at most {URL_CHARACTERS} characters")
    if _NOT_IN_URLS.search(text):
        # Parsers disagree about these: what one of them checked, another may send elsewhere.
        raise ValueError("a URL has no spaces, control characters or backslashes")
    try:
        url = urlsplit(text)
        port_ok = url.port != 0
    except ValueError:
        raise ValueError(allowed) from None
    if "@" in url.netloc:
        raise ValueError("a URL with a user or a password is not taken")
    if url.scheme not in _DEFAULT_PORTS or not url.hostname or not port_ok:
        raise ValueError(allowed)
    return text


def place(url: str) -> tuple[str, int]:
    """The host, without brackets, and the port of an http or https URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)


def receiver(url: str) -> str:
    """The scheme, host and port of a checked URL: what one slow answer speaks for."""
    host, port = place(url)
    shown = f"[{host}]" if ":" in host else host
    return f"{urlsplit(url).scheme}://{shown}:{port}"


@frozen
class JobUrls:
    """Where the outside finds jobs. `base` is FOREMAN_PUBLIC_URL; without one, URLs are absolute paths."""

    base: str = ""

    def job(self, job_id: str) -> str:
        """``GET /jobs/{id}``."""
        return f"{self.base}/jobs/{job_id}"

    def artifact(self, job_id: str, name: str) -> str:
        """``GET /jobs/{id}/artifacts/{name}``."""
        return f"{self.job(job_id)}/artifacts/{quote(name, safe='')}"

    def of(self, job_id: str) -> dict[str, str]:
        """What the member ``urls`` of a job says."""
        here = self.job(job_id)
        return {
            "self": here,
            "cancel": f"{here}/cancel",
            "retry": f"{here}/retry",
            "deliveries": f"{here}/deliveries",
        }
