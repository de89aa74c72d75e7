"""The view of the durable lines: what the store said last, less what may not start."""

from foreman.jobs.model import LineKey, LineView, Waiting
from foreman.scheduler.keys import Wanted
from foreman.worker.lines import DurableLines


def view(
    model: str, count: int, job_id: str = "", *, options: str = "", takes_turn: bool = True, priority: int = 0
) -> LineView:
    job = Waiting(job_id, priority, 10.0, 1) if count else None
    return LineView(LineKey(model, options, takes_turn), count, job, job)


def test_a_line_is_as_the_store_last_told_it() -> None:
    """Changed, and gone when nothing waits in it."""
    lines = DurableLines(lambda model: True)
    lines.put(view("a", 2, "1"))
    lines.put(view("a", 3, "2"))
    lines.put(view("b", 1, "3"))
    assert (lines.count, [line.head.job_id for line in lines.lines()]) == (4, ["2", "3"])
    lines.put(view("a", 0))
    assert (lines.count, [line.wanted for line in lines.lines()]) == (1, [Wanted("b")])


def test_options_of_the_runner_keep_the_jobs_of_a_model_apart() -> None:
    """A line is told with the text that the store keeps; which of them share a runner, the keys know."""
    lines = DurableLines(lambda model: True)
    lines.put(view("a", 2, "1"))
    lines.put(view("a", 3, "2", options='{"num_ctx":512}'))
    found = {line.wanted: line.head.job_id for line in lines.lines()}
    assert found == {Wanted("a"): "1", Wanted("a", '{"num_ctx":512}'): "2"}


def test_a_job_that_was_taken_waits_no_more() -> None:
    """Until the store has said what became of it."""
    lines = DurableLines(lambda model: True)
    lines.put(view("a", 1, "1"))
    lines.take()
    assert lines.count == 0
    lines.put(view("a", 0))
    assert lines.count == 0
    lines.settle()
    lines.put(view("a", 1, "2"))
    assert lines.count == 1


def test_jobs_that_bypass_the_turn_are_apart() -> None:
    """The best of their heads is the next one."""
    lines = DurableLines(lambda model: True)
    lines.put(view("a", 5, "1", takes_turn=False))
    lines.put(view("b", 5, "2", takes_turn=False, priority=1))
    assert (lines.count, list(lines.lines()), lines.bypassing()) == (0, [], "2")
    lines.put(view("b", 0, takes_turn=False))
    lines.put(view("a", 0, takes_turn=False))
    assert lines.bypassing() is None


def test_a_model_that_is_missing_is_withheld_until_it_is_there() -> None:
    """Once seen it is offered again, whatever the inventory says later."""
    there: set[str] = set()
    lines = DurableLines(lambda model: model in there)
    lines.put(view("a", 1, "1"))
    assert lines.count == 1
    lines.withhold("a")
    assert (lines.count, list(lines.lines())) == (0, [])
    there.add("a")
    assert lines.count == 1
    there.clear()
    assert lines.count == 1
