"""How foreman is: `/healthz`."""

from collections.abc import Callable

from attrs import define


@define
class Health:
    """`checks` gives each reason for being degraded a question: None when all is well, else a hint."""

    _checks: dict[str, Callable[[], str | None]]

    def report(self) -> dict[str, object]:
        """
        ``{"status": "ok", "degraded": false}`` exactly when all is well.

        Else ``degraded`` is true, ``reasons`` lists codes and ``hints`` has a sentence for each.
        """
        hints = {code: hint for code, check in self._checks.items() if (hint := check()) is not None}
        if not hints:
            return {"status": "ok", "degraded": False}
        return {"status": "ok", "degraded": True, "reasons": list(hints), "hints": hints}
