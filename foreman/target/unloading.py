"""Unloading: gives the memory of the GPU back to its owner."""

from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from foreman.errors import ForemanError, TargetTimeout, TargetUnreachable
from foreman.target.client import OllamaClient
from foreman.target.inventory import Inventory

LOOK_SECONDS = 0.5


def _nobody(name: str) -> None:
    """Nobody asked to be told."""


@define(eq=False)
class Unloader:
    """Unloads what the target has in memory. `limit` is how many seconds that may take in all. `on_told`
    hears the name of each model that was told to go.

    The target answers at once, and unloads after what runs there: an aborted prompt is first finished.
    """

    _clock: IReactorTime
    _client: OllamaClient
    _inventory: Inventory
    _limit: float
    on_told: Callable[[str], None] = _nobody
    _log = Logger()

    async def unload(self) -> bool:
        """Whether nothing is loaded any more, at two looks in a row: a load that was aborted may end all the
        same, and is not in the list before its end. A target that is away is asked again, up to the limit.

        What is loaded still is told again at each look: a request that came in between may have set its
        time anew. The inventory has read it, too, before anybody hears that it is done.
        """
        deadline = self._clock.seconds() + self._limit
        was_empty = False
        while True:
            try:
                loaded = sorted(entry.name for entry in await self._client.ps())
                if not loaded and was_empty:
                    await self._inventory.refresh()
                    return True
                was_empty = not loaded
                why = f"{', '.join(loaded)} still in memory"
                for name in loaded:
                    why = await self._told(name) or why
            except ForemanError as error:
                was_empty, why = False, str(error)
            if not was_empty and self._clock.seconds() + LOOK_SECONDS > deadline:
                self._log.warn("the target's models could not be unloaded: {why}", why=why)
                return False
            await deferLater(self._clock, LOOK_SECONDS)

    async def _told(self, name: str) -> str | None:
        """Why the target will not unload this one; it is not to keep the others in memory, too."""
        try:
            await self._client.unload(name)
        except (TargetUnreachable, TargetTimeout):
            raise
        except ForemanError as error:
            return f"{name}: {error}"
        self.on_told(name)
        return None
