"""Candidates that cannot be scored, whatever an evaluator does."""

from __future__ import annotations

import time
from contextlib import closing

import psutil
import pytest
from toy_search import answer, breaking, loop_of, pool, quick_workers, row, rules, trials_of

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.search.pool import Answer, Job


@pytest.fixture(scope="module", autouse=True)
def _quick_workers():
    with quick_workers():
        yield


WORDS = {
    "raises": r"ValueError: no such \x1b[31mlabel",
    "interrupts": "KeyboardInterrupt",
    "exits": "SystemExit: 0",
    "vanishes": "exited with status 0 without a result, 3 times",
    "dies": "was killed by signal SIGKILL, 3 times",
    "nan": "its loss is (nan,)",
    "hangs": "took over 1 s",
}


def searched(folder, how, *, timeout=None):
    with closing(pool(folder, breaking, how, workers=1, timeout=timeout)) as running:
        loop_of(folder, evaluate=running.run, limits=rules(8)).run()
    return trials_of(folder)


@pytest.mark.parametrize("how", WORDS)
def test_a_candidate_that_fails_has_a_reason_and_the_search_goes_on(how, tmp_path):
    trials = searched(tmp_path, how, timeout=1 if how == "hangs" else None)
    assert [one.number for one in trials if one.state == "failed"] == [1]
    assert trials[1].reason.endswith(WORDS[how])
    assert trials[1].losses == ()
    assert all(one.losses for one in trials if one.number != 1)


def test_what_a_hanging_evaluator_started_goes_with_it(tmp_path):
    searched(tmp_path, "hangs", timeout=1)
    ours = psutil.Process()
    assert not [one for one in ours.children(recursive=True) if "sleep" in one.name()]
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "600"]
    ]


def test_what_an_evaluator_prints_goes_nowhere(tmp_path, capfd):
    trials = searched(tmp_path, "prints")
    assert [one.state for one in trials] == ["complete"] * 8
    assert capfd.readouterr() == ("", "")


def failing(*numbers, reason="it broke", **others):
    def evaluate(jobs):
        for job in jobs:
            bad = Answer(reason=reason, **others)
            yield job, bad if job.key in numbers else answer(job)

    return evaluate


def test_a_failed_candidate_is_told_as_worse_than_all_others(tmp_path):
    loop = loop_of(tmp_path, evaluate=failing(2, 5), limits=rules(8))
    told = []
    tell = loop.optimizer.tell
    loop.optimizer.tell = lambda losses: (told.append(losses[0]), tell(losses))
    loop.run()
    for number, count in ((2, 4), (5, 8)):
        others = [told[i] for i in range(count) if i not in {2, 5}]
        assert told[number] == max(others) + (max(others) - min(others))


def test_too_many_failures_end_the_search_with_their_reasons(tmp_path):
    loop = loop_of(tmp_path, evaluate=failing(*range(99)), limits=rules(40))
    with pytest.raises(InputError, match="4 of 4 candidates failed: it broke"):
        loop.run()
    assert len(trials_of(tmp_path)) == 4


def test_as_many_failures_as_are_allowed_do_not(tmp_path):
    limits = rules(8, max_failed_share=0.25)
    loop_of(tmp_path, evaluate=failing(0, 5), limits=limits).run()
    with pytest.raises(InputError, match="2 of 4"):
        loop_of(tmp_path / "..", evaluate=failing(0, 3), limits=limits, name="PSO").run()


def test_a_server_that_is_down_is_no_fault_of_the_candidate(tmp_path):
    down = failing(5, reason="the endpoint is down", is_environment=True)
    with pytest.raises(EnvironmentFault, match="trial 5: the endpoint is down"):
        loop_of(tmp_path, evaluate=down).run()
    assert trials_of(tmp_path)[5].state == "running"
    assert len(loop_of(tmp_path).run()) == 12


def test_the_same_candidate_is_evaluated_once(tmp_path):
    asked = []

    def counting(jobs):
        for job in jobs:
            asked.append(job.values)
            yield job, answer(job)

    loop = loop_of(tmp_path, evaluate=counting, limits=rules(8))
    ask = loop.optimizer.ask
    known = []
    loop.optimizer.ask = lambda: (known.append(ask()), known[len(known) // 3])[1]
    trials = loop.run()
    assert len(asked) == len(set(asked)) < 8
    copies = [one for one in trials if one.same_as is not None]
    assert copies
    assert all(one.losses == trials[one.same_as].losses for one in copies)


def test_patience_ends_a_search_that_finds_nothing_new(tmp_path):
    flat = lambda jobs: ((job, Answer((row(1.0),))) for job in jobs)  # noqa: E731
    trials = loop_of(tmp_path, evaluate=flat, limits=rules(40, patience=7)).run()
    assert len(trials) == 8


def halved(jobs):
    """Scores on few items are those on all, and 1 more."""
    for job in jobs:
        (found,) = answer(job).rows
        yield job, Answer((row(found.value + (0 if job.items is None else 1)),))


def test_halving_scores_most_candidates_on_few_items_and_keeps_their_order(tmp_path):
    asked = []

    def counting(jobs):
        asked.extend(job.items for job in jobs)
        yield from halved(jobs)

    limits = rules(16, batch=8, rungs=(4, 16, None), keep=0.5)
    trials = loop_of(tmp_path, evaluate=counting, limits=limits).run()
    assert [asked.count(items) for items in (4, 16, None)] == [16, 8, 4]
    for batch in (trials[:8], trials[8:]):
        true = sorted(batch, key=loss_of)
        assert [one.items for one in sorted(true, key=loss_of)] == [None] * 2 + [16] * 2 + [4] * 4
        assert sorted(batch, key=lambda one: one.losses) == true
        assert [one.losses[0] for one in true] == pytest.approx([loss_of(one) for one in true])


def loss_of(trial):
    from toy_search import bowl

    return bowl(trial.values)


def test_a_batch_that_was_halved_goes_on_as_if_it_had_not_been_cut_off(tmp_path):
    limits = rules(8, batch=8, rungs=(4, None), keep=0.25)
    whole = loop_of(tmp_path, evaluate=halved, limits=limits).run()

    def cut_off(jobs):
        for at, found in enumerate(halved(jobs)):
            if at == 5:
                raise KeyboardInterrupt
            yield found

    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(KeyboardInterrupt):
        loop_of(other, evaluate=cut_off, limits=limits).run()
    again = loop_of(other, evaluate=halved, limits=limits).run()
    assert [(one.values, one.losses, one.items) for one in again] == [
        (one.values, one.losses, one.items) for one in whole
    ]


def test_a_worker_that_cannot_begin_says_why(tmp_path):
    with closing(pool(tmp_path, refusing)) as running, pytest.raises(InputError, match="no model"):
        loop_of(tmp_path, evaluate=running.run).run()


def refusing(_):
    raise InputError("no model")


def test_closing_does_not_wait_for_what_is_under_way(tmp_path):
    running = pool(tmp_path, breaking, "hangs")
    found = running.run([job_of(1), job_of(0)])
    job, _ = next(found)
    assert job.key == 0
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 5


def job_of(key):
    return Job(key, (0.0, 0.0))
