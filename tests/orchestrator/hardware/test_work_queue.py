"""The queue of one kind of device: the cheapest first, nothing lost, nothing twice, nothing for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.hardware.work_queue import Piece, WorkQueue
from tests.orchestrator.hardware.made_up import MadeUpWork, measurement
from workers.timing.contract import Status

WORKS = [MadeUpWork(f"work {number}", macs=number) for number in range(9)]


def subjects(pieces: list[Piece]) -> list[str]:
    return [piece.workload.subject for piece in pieces]


def test_the_cheapest_go_first_in_sessions() -> None:
    queue = WorkQueue(reversed(WORKS), session=4, retries=1)
    assert subjects(queue.take()) == ["work 0", "work 1", "work 2", "work 3"]
    assert subjects(queue.take()) == ["work 4", "work 5", "work 6", "work 7"]
    assert subjects(queue.take()) == ["work 8"]
    assert queue.take() == []


def test_a_batch_counts_with_all_its_samples() -> None:
    large, small = MadeUpWork("large batch", macs=2, batch_size=8), MadeUpWork("small batch", macs=5)
    assert subjects(WorkQueue([large, small], session=2, retries=0).take()) == ["small batch", "large batch"]


def test_noisy_ones_are_tried_again_after_all_others_and_not_for_ever() -> None:
    queue = WorkQueue(WORKS[:3], session=1, retries=2)
    noisy = measurement(1.0, status="noisy")
    order = []
    for _ in range(9):
        for piece in queue.take():
            order.append(piece.workload.subject)
            queue.measured(piece, noisy if piece.workload == WORKS[0] else measurement(1.0))
    assert order == ["work 0", "work 1", "work 2", "work 0", "work 0"]


def test_what_is_wrong_or_refused_is_not_tried_again() -> None:
    statuses: list[Status] = ["wrong", "error", "timeout", "ok"]
    for status in statuses:
        queue = WorkQueue(WORKS[:1], session=1, retries=2)
        assert queue.measured(queue.take()[0], measurement(1.0, status=status))
        assert len(queue) == 0


def test_a_good_one_in_doubt_is_tried_again() -> None:
    queue = WorkQueue(WORKS[:1], session=1, retries=1)
    piece = queue.take()[0]
    assert not queue.measured(piece, measurement(1.0), doubtful=True)
    assert queue.measured(queue.take()[0], measurement(1.0), doubtful=True), "once"


def test_a_lost_sessions_pieces_come_alone_and_after_all_others() -> None:
    queue = WorkQueue(WORKS[:4], session=2, retries=0)
    assert queue.lost(queue.take(), moved=False) == []
    assert [subjects(queue.take()) for _ in range(4)] == [["work 2", "work 3"], ["work 0"], ["work 1"], []]


def test_a_piece_that_loses_two_sessions_is_given_up() -> None:
    queue = WorkQueue(WORKS[:1], session=2, retries=0)
    queue.lost(queue.take(), moved=False)
    assert subjects(queue.lost(queue.take(), moved=False)) == ["work 0"]
    assert len(queue) == 0


def test_what_a_device_hung_with_stays_together_on_another_but_only_once() -> None:
    queue = WorkQueue(WORKS[:3], session=3, retries=0)
    queue.lost(queue.take(), moved=True)
    again = queue.take()
    assert subjects(again) == ["work 0", "work 1", "work 2"]
    queue.lost(again, moved=True)
    assert [subjects(queue.take()) for _ in range(4)] == [["work 0"], ["work 1"], ["work 2"], []]


def test_pieces_that_are_put_back_are_next_again() -> None:
    queue = WorkQueue(WORKS[:4], session=2, retries=0)
    queue.put_back(queue.take())
    assert subjects(queue.take()) == ["work 0", "work 1"]


@given(st.data())
def test_whatever_happens_every_piece_ends_once(data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(0, 3), max_size=7))
    works = [MadeUpWork(str(number), macs) for number, macs in enumerate(costs)]
    queue = WorkQueue(works, data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2)))
    ended: Counter[str] = Counter()
    put_back = 0
    while pieces := queue.take():
        happens = data.draw(st.sampled_from(["measured", "lost", "put back"]))
        if happens == "put back" and put_back < 5:
            put_back += 1
            queue.put_back(pieces)
        elif happens == "lost":
            ended.update(subjects(queue.lost(pieces, moved=data.draw(st.booleans()))))
        else:
            for piece in pieces:
                status: Status = data.draw(st.sampled_from(["ok", "noisy", "throttled", "error"]))
                if queue.measured(piece, measurement(1.0, status=status)):
                    ended[piece.workload.subject] += 1
    assert ended == Counter(work.subject for work in works)
