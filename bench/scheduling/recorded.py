"""Recorded arrivals: the log of a foreman, read back as a workload.

Each job has one line in the log when it has ended. Its id tells when it arrived, to the millisecond.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from ulid import ULID

from bench.scheduling.workload import BATCH, CHAT, Arrival, Workload, workload

EMBEDDED = Path(__file__).with_name("embedded.log")
"""Two minutes of chats and batch jobs on the embedded target, with two models that share 92 MB of weights."""

_CHAT = re.compile(r"(\w{26}) model='([^']+)' caller=\S+ waited=[\d.]+s run=([\d.]+)s status=200 ")
_BATCH = re.compile(r"(\w{26}) model='([^']+)' attempt=1 run=([\d.]+)s: succeed")


def read(name: str, what: str, lines: Iterable[str]) -> Workload:
    """The jobs that ended well, in the order in which they came. Raises ValueError when there are none.

    The log does not tell loads from runs: the first run after one of another model was a load, too. Its
    seconds beyond the median of the model's other runs are the load's.
    """
    found = []
    for line in lines:
        if match := _CHAT.search(line):
            found.append((match, CHAT))
        elif match := _BATCH.search(line):
            found.append((match, BATCH))
    if not found:
        raise ValueError("this log holds no line of a job that ended well")
    warm: dict[str, list[float]] = defaultdict(list)
    cold: dict[str, list[float]] = defaultdict(list)
    last = None
    for match, _ in found:  # lines come in the order of the ends, which is that of the starts
        model = match[2]
        (warm if model == last else cold)[model].append(float(match[3]))
        last = model
    usual = {model: median(warm[model] or cold[model]) for model in warm | cold}
    loads = {model: max(0.0, median(cold[model] or [0.0]) - usual[model]) for model in usual}
    began = min(ULID.from_str(match[1]).timestamp for match, _ in found)
    arrivals = []
    last = None
    for match, lane in found:
        model, seconds = match[2], float(match[3])
        if model != last:
            seconds = max(seconds - loads[model], min(seconds, usual[model]))
        last = model
        arrivals.append(Arrival(ULID.from_str(match[1]).timestamp - began, lane, model, seconds))
    return workload(name, what, arrivals, loads)


def embedded() -> Workload:
    """The one that is kept here."""
    what = "chats and batch jobs on the embedded target, two models, as they came in two minutes"
    return read("recorded", what, EMBEDDED.read_text("utf-8").splitlines())
