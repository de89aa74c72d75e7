"""What was unloaded: when a model goes, and what of a job says so."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define, field
from grants import make_grant
from twisted.internet.task import Clock

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import ModelKey
from foreman.scheduler.residents import Residents

ALPHA, BETA = ModelKey(frozenset({"a"})), ModelKey(frozenset({"b"}))


class Names:
    """An inventory of two models, of which nothing was read as loaded."""

    loaded: Sequence[Any] = ()

    def model(self, name: str, /) -> Any:
        key = {"alpha": ALPHA, "beta": BETA}.get(name)
        return None if key is None else SimpleNamespace(weights=key.weights, digest=name, options="")

    def model_by_digest(self, digest: str, /) -> Any:
        return self.model(digest)


@define
class Bench:
    """Residents, and the weights that they said are gone."""

    clock: Clock = field(factory=Clock)
    holders: list[Grant] = field(factory=list)
    gone: list[frozenset[str]] = field(factory=list)
    residents: Residents = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.residents = Residents(self.clock, Names(), lambda: self.holders, self.gone.append)

    def hold(self, key: ModelKey = ALPHA, drops: bool = False) -> Grant:
        """A job gets the turn, and sends its request."""
        grant = make_grant(self.clock, key)
        grant.drops = drops
        self.holders.append(grant)
        return grant

    def release(self, grant: Grant, answered: bool = True) -> None:
        """It gives the turn back, with an answer or without."""
        if answered:
            grant.first_byte()
        self.holders.remove(grant)
        self.residents.released(grant)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_job_that_keeps_its_model(bench: Bench) -> None:
    """As most do."""
    bench.release(bench.hold())
    assert bench.gone == []


def test_a_job_that_does_not(bench: Bench) -> None:
    """Its model goes with the turn, and once."""
    bench.release(bench.hold(drops=True))
    assert bench.gone == [ALPHA.weights]
    bench.release(bench.hold())
    assert bench.gone == [ALPHA.weights]


def test_a_job_that_was_refused(bench: Bench) -> None:
    """A request without a good answer has changed nothing; one that was aborted may have."""
    bench.release(bench.hold(drops=True), answered=False)
    assert bench.gone == []
    aborted = bench.hold(drops=True)
    aborted.abort()
    bench.release(aborted, answered=False)
    assert bench.gone == [ALPHA.weights]


def test_jobs_that_share_the_turn(bench: Bench) -> None:
    """The model stays as long as one of them runs on it."""
    one, other = bench.hold(drops=True), bench.hold()
    bench.release(one)
    assert bench.gone == []
    bench.release(other)
    assert bench.gone == [ALPHA.weights]


def test_an_unload_form(bench: Bench) -> None:
    """It is applied at once, or after what runs on the model; what runs on another one is in no way of it."""
    running = bench.hold()
    bench.residents.told("beta")
    assert bench.gone == [BETA.weights]
    bench.residents.told("alpha")
    assert bench.gone == [BETA.weights]
    bench.release(running)
    assert bench.gone == [BETA.weights, ALPHA.weights]


def test_an_unload_form_for_what_is_not_installed(bench: Bench) -> None:
    """The target says so itself."""
    bench.residents.told("gamma")
    assert bench.gone == []
