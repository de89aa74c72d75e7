"""The simulator of the scheduler: its rivals, its judge, and that the documentation shows what it finds."""

from functools import cache
from xml.etree import ElementTree

import pytest
from attrs import evolve

from bench.scheduling import page
from bench.scheduling.__main__ import SEED
from bench.scheduling.bounds import Judge
from bench.scheduling.compare import Compared, Grade, by_visit_length, compare, grade, seconds_until
from bench.scheduling.real import RealTurn
from bench.scheduling.recorded import embedded, read
from bench.scheduling.rivals import FirstCome, Ollama, serve
from bench.scheduling.runs import percentile
from bench.scheduling.workload import (
    BATCH,
    CHAT,
    Arrival,
    alternating,
    batch_at_once,
    hot_model,
    synthetic,
    workload,
)
from foreman.scheduler.policy import Limits


@cache
def all_compared() -> tuple[Compared, ...]:
    """The run that the documentation shows: some seconds."""
    return tuple(compare(each, Limits()) for each in [*synthetic(SEED), embedded()])


def test_every_promise_is_kept_on_every_workload() -> None:
    """Swaps against the plain drain, the start of overdue lines, and the 400 in 20 swaps."""
    checks = [(c.workload.name, check) for c in all_compared() for check in c.checks()]
    assert [(name, check.what, check.figures) for name, check in checks if not check.kept] == []
    assert "400 jobs with everything overdue" in {check.what for _, check in checks}


def test_the_documentation_shows_what_the_run_gives() -> None:
    """`make bench-scheduling` writes it. Of what takes longer, a workload or two are looked at."""
    text = page.PAGE.read_text("utf-8")
    expected = page.parts(all_compared(), {}, {})
    del expected["forecasts"], expected["visits"]
    assert {name: page.part_of(text, name) for name in expected} == expected
    hot = hot_model(SEED)
    lengths = page.as_markdown(page.visit_lengths({hot.name: by_visit_length(hot)})).splitlines()
    assert lengths == page.part_of(text, "visits").splitlines()[: len(lengths)]
    shown = page.part_of(text, "forecasts").splitlines()
    for make in (alternating, batch_at_once):
        found = next(c for c in all_compared() if c.workload.name == make(SEED).name)
        graded = grade(found.runs["foreman"], found.workload, make(SEED + 1), SEED)
        row = page.as_markdown(page.forecasts({found.workload.name: graded})).splitlines()[2]
        assert row in shown


def test_the_plots_show_what_the_run_gives() -> None:
    """They are the files beside the page, and well-formed."""
    plots = page.plots(all_compared())
    assert len(plots) == 3
    for name, picture in plots.items():
        assert (page.PLOTS / name).read_text("utf-8") == picture
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert f"img/{name}" in page.PAGE.read_text("utf-8")


def test_the_judge_sees_a_line_that_starts_too_late() -> None:
    """Runs of one policy break the bounds of another one, with shorter visits."""
    limits = Limits()
    jobs = batch_at_once(SEED)
    runs = RealTurn(jobs, limits).run()
    kept = list(Judge(jobs, limits, runs).episodes())
    assert kept
    assert all(episode.waited <= episode.bound for episode in kept)
    broken = Judge(jobs, evolve(limits, durable_visit=60.0), runs).episodes()
    assert any(episode.waited > episode.bound for episode in broken)


def test_ollama_serves_the_loaded_model_without_a_bound() -> None:
    """Requests for the loaded model pass the one that waits for a load, as long as they come."""
    arrivals = [Arrival(0.0, CHAT, "hot", 1.0), Arrival(0.1, CHAT, "cold", 1.0)]
    arrivals += [Arrival(0.5 + n, CHAT, "hot", 1.0) for n in range(50)]
    hot = workload("hot", "", arrivals, {"hot": 0.0, "cold": 0.0})
    started = {
        rule: next(run.started_at for run in serve(hot, rule()) if run.job.model == "cold")
        for rule in (FirstCome, Ollama)
    }
    assert started == {FirstCome: 1.0, Ollama: 51.0}


def test_ollama_does_not_look_past_the_first_that_needs_a_load() -> None:
    """As measured: 20 that wait and alternate two models cost 20 loads."""
    assert sum(run.swap for run in serve(alternating(SEED), Ollama())) == 20


def test_a_log_is_read_back() -> None:
    """Arrivals from the ids, lanes from the line's shape; a load is what a first run takes beyond others."""
    first, second, third, fourth = (f"01M87D2WJ{n}6XN4QWAAF1CD0FRV" for n in "MNPQ")
    lines = [
        f"[x#info] {first} model='a' attempt=1 run=3.000s: succeeded",
        f"[x#info] {second} model='a' attempt=1 run=1.000s: succeeded",
        f"[x#info] {third} model='b' caller=::1 waited=0.1s run=2.500s status=200 bytes=7: ok",
        f"[x#info] {fourth} model='b' caller=::1 waited=0.1s run=0.500s status=200 bytes=7: ok",
        "[x#info] the target answers again",
    ]
    found = read("log", "", lines)
    assert [(job.model, job.lane, job.run_seconds) for job in found.jobs] == [
        ("a", BATCH, 1.0),
        ("a", BATCH, 1.0),
        ("b", CHAT, 0.5),
        ("b", CHAT, 0.5),
    ]
    assert found.load_seconds == {"a": 2.0, "b": 2.0}
    assert found.jobs[0].arrives_at == 0 < found.jobs[1].arrives_at < found.jobs[2].arrives_at
    with pytest.raises(ValueError, match="no line"):
        read("log", "", ["nothing"])


def test_a_forecast_is_graded() -> None:
    """One that is always far off is right for nobody."""
    jobs = batch_at_once(SEED)
    runs = RealTurn(jobs, Limits()).run()
    graded = grade(runs, jobs, jobs, SEED, eta=lambda scene, place, estimates: 1e9)
    assert graded.batch == Grade(399, 0)


def test_asking_for_forecasts_changes_no_run() -> None:
    """The turn's visits and ledger are looked at, and left as they are."""
    jobs = batch_at_once(SEED)
    ask_at = {number: [0.0, 100.0 * number] for number in range(0, 400, 7)}
    plain, asked = RealTurn(jobs).run(), RealTurn(jobs, eta=seconds_until, ask_at=ask_at).run()
    assert [run.job for run in asked] == [run.job for run in plain]
    assert sum(len(run.etas) for run in asked) > 50


def test_percentile() -> None:
    """The smallest value that at least so many percent do not exceed."""
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([7.0], 50) == 7.0
