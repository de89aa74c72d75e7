"""
The errors of foreman: one tree, each with a stable code and one sentence for a person.

`code` is part of the contract (``docs/reference/errors.md``): programs match on it.
"""


class ForemanError(Exception):
    """Something that foreman has to say to a person; ``str()`` is the sentence."""

    code = "internal_error"
    status = 500


class TargetUnreachable(ForemanError):
    """
    Nothing could be sent: refused, no such name, or no connection in time.

    No work was lost and none was done, so whatever was to be sent may be sent again.
    """

    code = "target_unreachable"
    status = 502

    def __init__(self, target_url: str, reason: str) -> None:
        super().__init__(f"foreman cannot reach the target {target_url}: {reason}")
        self.target_url = target_url
        self.reason = reason


class TargetFailed(ForemanError):
    """The target was reached, and broke off, answered what is not HTTP, or something unreadable."""

    code = "target_failed"
    status = 502


class TargetTimeout(TargetFailed):
    """A limit passed while the target was silent or at work; the sentence names its setting."""

    code = "target_timeout"
    status = 504


class Stopping(ForemanError):
    """The daemon is about to stop, and starts nothing new."""

    code = "stopping"
    status = 503

    def __init__(self) -> None:
        super().__init__("foreman is stopping; send the request again in a moment")


class Unauthorized(ForemanError):
    """The request carried no credential, or a wrong one."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__(
            "unauthorized: send the token as 'Authorization: Bearer …', as 'x-api-key', "
            "or as the password of HTTP Basic"
        )


class BodyTooLarge(ForemanError):
    """The body is over its limit."""

    code = "body_too_large"
    status = 413

    def __init__(self, limit_bytes: int, setting: str) -> None:
        super().__init__(f"the request body is larger than {limit_bytes} bytes, the limit of {setting}")


class DiskFull(ForemanError):
    """There is no room to keep a request body while it is on its way."""

    code = "disk_full"
    status = 507

    def __init__(self, folder: str) -> None:
        super().__init__(f"there is no room for the request body in {folder}, beside FOREMAN_DB_PATH")
