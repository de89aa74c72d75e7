"""The workloads: what arrives when, for which model, and how long it takes. All of it is seeded."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from foreman.scheduler.policy import Lane

CHAT, BATCH = Lane.INTERACTIVE, Lane.DURABLE
HOUR = 3600.0
SIGMA = 0.4


@frozen
class Job:
    """One request. Times are in seconds; `run_seconds` is without the load of the model."""

    number: int
    lane: Lane
    model: str
    arrives_at: float
    run_seconds: float


@frozen
class Workload:
    """Jobs by arrival, what each model takes to load, and when the target is asleep (from, until)."""

    name: str
    what: str
    jobs: tuple[Job, ...]
    load_seconds: Mapping[str, float]
    asleep: tuple[tuple[float, float], ...] = ()


@frozen
class Arrival:
    """A job before it has its number."""

    at: float
    lane: Lane
    model: str
    run_seconds: float


# Two were measured: 92 MB load in 0.41 s, 20 GB in 14 s. The others lie on the line through them.
LOAD_SECONDS = {
    "92 MB": 0.41,
    "2 GB": 1.7,
    "5 GB": 3.8,
    "9 GB": 6.5,
    "20 GB": 14.0,
}
# What a chat answer takes at the median, a batch job at the median, of a model of this size.
CHAT_SECONDS = {"92 MB": 0.42, "2 GB": 2.0, "5 GB": 4.0, "9 GB": 7.0, "20 GB": 14.0}
BATCH_SECONDS = {"92 MB": 1.0, "2 GB": 5.0, "5 GB": 10.0, "9 GB": 16.0, "20 GB": 30.0}


def workload(
    name: str,
    what: str,
    arrivals: Iterable[Arrival],
    load_seconds: Mapping[str, float],
    asleep: tuple[tuple[float, float], ...] = (),
) -> Workload:
    """Number the arrivals in their order."""
    ordered = sorted(arrivals, key=lambda arrival: arrival.at)
    jobs = (Job(n, a.lane, a.model, a.at, a.run_seconds) for n, a in enumerate(ordered))
    return Workload(name, what, tuple(jobs), load_seconds, asleep)


def spread(dice: random.Random, median: float) -> float:
    """A run time around its median: log-normal, two of three are within a factor of 1.5."""
    return median * math.exp(dice.gauss(0, SIGMA))


def poisson(
    dice: random.Random,
    rate: float,
    until: float,
    models: Sequence[str],
    weights: Sequence[float],
    lane: Lane,
) -> Iterator[Arrival]:
    """Independent arrivals, `rate` of them in a second. A model's size is the first part of its name."""
    seconds = CHAT_SECONDS if lane is CHAT else BATCH_SECONDS
    at = dice.expovariate(rate)
    while at < until:
        model = dice.choices(models, weights)[0]
        yield Arrival(at, lane, model, spread(dice, seconds[size(model)]))
        at += dice.expovariate(rate)


def size(model: str) -> str:
    """Models are named by their size and a letter: `5 GB a`."""
    return model.rpartition(" ")[0]


def loads(models: Iterable[str]) -> dict[str, float]:
    """The load seconds of these models."""
    return {model: LOAD_SECONDS[size(model)] for model in models}


def alternating(seed: int) -> Workload:
    """Also measured on a real Ollama: 17.8 s and 20 loads as they come, 9.2 s and 2 loads drained."""
    models = ("92 MB a", "92 MB b")
    return workload(
        "alternating",
        "20 chats at once that alternate two models of 92 MB",
        (Arrival(0.0, CHAT, models[n % 2], 0.42) for n in range(20)),
        loads(models),
    )


def batch_at_once(seed: int) -> Workload:
    """Everything is overdue after an hour."""
    models = ("20 GB a", "20 GB b")
    return workload(
        "400 at once",
        "400 batch jobs of 30 s at once that alternate two models of 20 GB",
        (Arrival(0.0, BATCH, models[n % 2], 30.0) for n in range(400)),
        loads(models),
    )


def bursts(seed: int) -> Workload:
    """Agents and pages that ask several models at once, and then nothing for a while."""
    dice = random.Random(seed)
    models = ("2 GB a", "5 GB b", "9 GB c")
    arrivals: list[Arrival] = []
    at = 0.0
    while at < 3 * HOUR:
        for _ in range(dice.randint(5, 25)):
            model = dice.choice(models)
            moment = at + dice.uniform(0, 5)
            arrivals.append(Arrival(moment, CHAT, model, spread(dice, CHAT_SECONDS[size(model)])))
        at += dice.expovariate(1 / 240)
    return workload(
        "bursts", "5 to 25 chats within 5 s, three models, every four minutes", arrivals, loads(models)
    )


def hot_model(seed: int) -> Workload:
    """Nine of ten requests want one model, which never pauses; some want another one."""
    dice = random.Random(seed)
    models = ("5 GB hot", "9 GB cold")
    mean = 0.9 * CHAT_SECONDS["5 GB"] + 0.1 * CHAT_SECONDS["9 GB"]
    arrivals = poisson(dice, 0.75 / mean, 3 * HOUR, models, (9, 1), CHAT)
    return workload("one hot model", "chats, nine of ten for one model", arrivals, loads(models))


def many_models(seed: int) -> Workload:
    """No order of them can please everybody."""
    dice = random.Random(seed)
    models = tuple(f"2 GB {letter}" for letter in "abcdefghijklmnopqrst")
    arrivals = poisson(dice, 0.5 / CHAT_SECONDS["2 GB"], 1 * HOUR, models, [1] * len(models), CHAT)
    return workload("20 models", "chats for 20 models, evenly", arrivals, loads(models))


def chat_over_batch(seed: int) -> Workload:
    """Somebody chats with another model than the one that the night's batch wants."""
    dice = random.Random(seed)
    models = ("9 GB batch", "5 GB chat")
    batch = [Arrival(0.0, BATCH, models[0], spread(dice, 16.0)) for _ in range(500)]
    chat = poisson(dice, 1 / 90, 3 * HOUR, models[1:], (1,), CHAT)
    what = "500 batch jobs of one model, and a chat with another every 90 s"
    return workload("chat over batch", what, [*batch, *chat], loads(models))


def overdue_backlog(seed: int) -> Workload:
    """A job of two hours, during which 600 others come: all are overdue when it ends."""
    dice = random.Random(seed)
    models = tuple(f"9 GB {letter}" for letter in "abcde")
    long = Arrival(0.0, BATCH, "20 GB long", 2 * HOUR)
    backlog = (
        Arrival(dice.uniform(1, 600), BATCH, dice.choice(models), spread(dice, 16.0)) for _ in range(600)
    )
    what = "600 batch jobs of five models, all of them overdue behind a job of two hours"
    return workload("overdue backlog", what, [long, *backlog], loads((*models, "20 GB long")))


def asleep(seed: int) -> Workload:
    """The machine of the target sleeps from the second to the tenth hour. That time does not count."""
    dice = random.Random(seed)
    models = ("20 GB a", "9 GB b", "5 GB c")
    batch = [Arrival(dice.uniform(0, 30), BATCH, model, spread(dice, 16.0)) for model in models * 200]
    evening = poisson(dice, 1 / 120, 0.9 * HOUR, ("5 GB c", "2 GB d"), (1, 1), CHAT)
    morning = poisson(dice, 1 / 120, 3 * HOUR, ("5 GB c", "2 GB d"), (1, 1), CHAT)
    later = (Arrival(job.at + 9 * HOUR, job.lane, job.model, job.run_seconds) for job in morning)
    what = "600 batch jobs of three models and some chats; the target is away for eight hours"
    return workload(
        "asleep", what, [*batch, *evening, *later], loads((*models, "2 GB d")), ((HOUR, 9 * HOUR),)
    )


FOUR_MODELS, FOUR_WEIGHTS = ("5 GB a", "9 GB b", "2 GB c", "20 GB d"), (50, 25, 15, 10)
POISSON_SECONDS = 3 * HOUR


def of_four(dice: random.Random, lane: Lane, load: float) -> Iterator[Arrival]:
    """Independent arrivals for four models, whose runs alone fill this part of the time."""
    seconds = CHAT_SECONDS if lane is CHAT else BATCH_SECONDS
    shares = zip(FOUR_MODELS, FOUR_WEIGHTS, strict=True)
    median = sum(seconds[size(model)] * weight for model, weight in shares) / sum(FOUR_WEIGHTS)
    mean = median * math.exp(SIGMA**2 / 2)
    return poisson(dice, load / mean, POISSON_SECONDS, FOUR_MODELS, FOUR_WEIGHTS, lane)


def poisson_chats(percent: int) -> Callable[[int], Workload]:
    """One lane."""

    def make(seed: int) -> Workload:
        arrivals = of_four(random.Random(seed), CHAT, percent / 100)
        what = f"chats for four models; their runs alone are {percent} % of the time"
        return workload(f"chats, {percent} %", what, arrivals, loads(FOUR_MODELS))

    return make


def poisson_both(percent: int) -> Callable[[int], Workload]:
    """Both lanes, half of the work each."""

    def make(seed: int) -> Workload:
        dice = random.Random(seed)
        arrivals = [arrival for lane in Lane for arrival in of_four(dice, lane, percent / 200)]
        what = f"chats and as much batch work for four models; their runs alone are {percent} % of the time"
        return workload(f"both lanes, {percent} %", what, arrivals, loads(FOUR_MODELS))

    return make


MAKERS: tuple[Callable[[int], Workload], ...] = (
    alternating,
    batch_at_once,
    bursts,
    hot_model,
    many_models,
    *(poisson_chats(percent) for percent in (50, 80, 95)),
    overdue_backlog,
    chat_over_batch,
    asleep,
    *(poisson_both(percent) for percent in (50, 80, 95)),
)


def synthetic(seed: int) -> list[Workload]:
    """All of them."""
    return [make(seed) for make in MAKERS]
