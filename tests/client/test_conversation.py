"""What a producer and a server say to each other, without a network: breaks at any point."""

from __future__ import annotations

import itertools
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from jobwire._producing.conversation import Conversation
from jobwire._producing.line import LATE_S, SILENCE_S, Health, Line
from jobwire._producing.parcels import (
    Follower,
    HandedBack,
    News,
    Outcome,
    Parcel,
    submission,
    submissions,
)
from jobwire._producing.reach import Reach
from jobwire.errors import (
    CallError,
    DeadlineExceeded,
    InvalidRequest,
    Unavailable,
    call_error,
)
from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import job_service_pb2 as jobs

SUCCEEDED = job_pb2.JOB_STATE_SUCCEEDED
WINDOW = 7


class Waiter(Parcel):
    """A parcel that notes what becomes of it."""

    __slots__ = ("gone", "outcomes")

    def __init__(self, data: bytes, queue: str = "q", **more: Any) -> None:
        super().__init__(data, queue, **more)
        self.outcomes: list[Outcome] = []
        self.gone = False

    @property
    def left(self) -> bool:
        return self.gone or bool(self.outcomes)

    def settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class Listener(Follower):
    """A follower that notes what it hears."""

    def __init__(self, changes: bool = False) -> None:
        self.changes = changes
        self.heard: list[News] = []

    def hear(self, news: News) -> None:
        self.heard.append(news)


def one(job_id: str, queue: str = "q", *, follow: bool = False, **more: Any) -> Waiter:
    frame = jobs.ProduceRequest()
    frame.submissions.add().request.MergeFrom(jobs.SubmitJobRequest(queue=queue, job_id=job_id))
    return Waiter(submission(frame, follow=follow), queue, follows=follow, **more)


def several(job_ids: list[str]) -> Waiter:
    requests = [jobs.SubmitJobRequest(queue="q", job_id=job_id) for job_id in job_ids]
    return Waiter(submissions(requests), "", count=len(job_ids), batch=True)


def taken(talk: Conversation, line: Line) -> jobs.ProduceRequest | None:
    frame = talk.next_frame(line)
    return None if frame is None else jobs.ProduceRequest.FromString(frame)


def opened(**fields: Any) -> jobs.ProduceResponse:
    fields.setdefault("heartbeat_interval", Duration(seconds=5))
    return jobs.ProduceResponse(opened=jobs.ProducerOpened(**fields))


def accepting(frame: jobs.ProduceRequest) -> jobs.ProduceResponse:
    results = [
        jobs.SubmitResult(accepted=jobs.SubmitJobResponse(job_id=item.request.job_id))
        for item in frame.submissions
    ]
    return jobs.ProduceResponse(
        answers=[jobs.ProduceAnswer(sequence=frame.sequence, results=results)]
    )


def refusing(frame: jobs.ProduceRequest, code: int, delay_s: float = 0) -> jobs.ProduceResponse:
    error = errors_pb2.ItemError(
        code=code, message="no", reason=errors_pb2.ERROR_REASON_STORE_UNAVAILABLE
    )
    if delay_s:
        error.retry_delay.FromMilliseconds(int(delay_s * 1000))
    results = [jobs.SubmitResult(error=error) for _ in frame.submissions]
    return jobs.ProduceResponse(
        answers=[jobs.ProduceAnswer(sequence=frame.sequence, results=results)]
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def conversation(clock: Clock | None = None, timeout_s: float | None = 30) -> Conversation:
    return Conversation(clock or Clock(), timeout_s, 60)


def begun(talk: Conversation, **fields: Any) -> Line:
    """A line that is open."""
    line = talk.begin()
    first = taken(talk, line)
    assert first is not None
    assert first.HasField("open")
    talk.feed(line, opened(**fields))
    return line


class ServerLine:
    """The server's end of a stream."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.frames: list[jobs.ProduceRequest] = []
        self.follows: set[str] = set()
        self.began = False


class Producing(RuleBasedStateMachine):
    """A server that accepts, refuses for now, breaks and drains; nothing is lost or doubled."""

    accepted = Bundle("accepted")

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.talk = Conversation(self.clock, None, None)
        self.numbers = itertools.count()
        self.parcels: list[tuple[Waiter, list[str]]] = []
        self.listeners: list[tuple[Listener, str]] = []
        self.stored: dict[str, int] = {}
        """How often the server got a job as a new one: ids make a repeat no new one."""
        self.ended: set[str] = set()
        self.lines: list[ServerLine] = []

    def _id(self) -> str:
        return f"j{next(self.numbers)}"

    @rule(count=st.integers(1, 5), queue=st.sampled_from("ab"))
    def submit(self, count: int, queue: str) -> None:
        for _ in range(count):
            job_id = self._id()
            parcel = one(job_id, queue)
            self.parcels.append((parcel, [job_id]))
            self.talk.submit(parcel)

    @rule(count=st.integers(1, 12))
    def submit_batch(self, count: int) -> None:
        ids = [self._id() for _ in range(count)]
        parcel = several(ids)
        self.parcels.append((parcel, ids))
        self.talk.submit(parcel)

    @rule()
    def call(self) -> None:
        job_id = self._id()
        parcel = one(job_id, follow=True)
        self.parcels.append((parcel, [job_id]))
        self.talk.submit(parcel)

    @precondition(lambda self: self.stored)
    @rule(data=st.data(), changes=st.booleans())
    def follow(self, data: st.DataObject, changes: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.stored)))
        listener = Listener(changes)
        self.listeners.append((listener, job_id))
        self.talk.follow(job_id, listener)

    @rule()
    def open(self) -> None:
        if self.talk.line is None:
            self.lines.append(ServerLine(self.talk.begin()))

    @rule()
    def write(self) -> None:
        for server in self.lines:
            frame = taken(self.talk, server.line)
            if frame is None:
                continue
            assert frame.HasField("open") is not server.began
            assert len(frame.submissions) == 0 or frame.sequence > 0
            if not server.began:
                server.began = True
                self.talk.feed(server.line, opened(max_unanswered=WINDOW, max_follows=1000))
            for follow in frame.follows:
                server.follows.add(follow.job_id)
            server.follows -= {*frame.unfollows}
            if frame.sequence:
                # It may be accepted although no answer ever comes.
                server.frames.append(frame)

    @precondition(lambda self: any(server.frames for server in self.lines))
    @rule(data=st.data(), answered=st.booleans(), refused=st.sampled_from([0, 0, 0, 14]))
    def decide(self, data: st.DataObject, answered: bool, refused: int) -> None:
        server = data.draw(st.sampled_from([each for each in self.lines if each.frames]))
        at = data.draw(st.integers(0, len(server.frames) - 1))
        self._decide(server, at, answered, refused)

    def _decide(self, server: ServerLine, at: int, answered: bool, refused: int) -> None:
        frame = server.frames[at]
        # Refused items of a batch are told, so only frames without one are refused here.
        inside = {item.request.job_id for item in frame.submissions}
        batch = any(parcel.batch and inside & {*ids} for parcel, ids in self.parcels)
        if refused and not batch:
            if answered:
                server.frames.pop(at)
                self.talk.feed(server.line, refusing(frame, refused))
            return
        for item in frame.submissions:
            self.stored[item.request.job_id] = self.stored.get(item.request.job_id, 0) + 1
        if answered:
            server.frames.pop(at)
            for item in frame.submissions:
                if item.HasField("follow"):
                    server.follows.add(item.request.job_id)
            self.talk.feed(server.line, accepting(frame))

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.ended.add(data.draw(st.sampled_from(sorted(self.stored))))

    @rule()
    def tell_ends(self) -> None:
        for server in self.lines:
            for job_id in sorted(server.follows & self.ended):
                server.follows.discard(job_id)
                end = jobs.JobEnd(job_id=job_id, state=SUCCEEDED)
                self.talk.feed(server.line, jobs.ProduceResponse(ends=[end]))

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def break_off(self, data: st.DataObject) -> None:
        server = data.draw(st.sampled_from(self.lines))
        self.lines.remove(server)
        for parcel in server.line.parcels():
            # That a parcel is handed back after some breaks has a test of its own.
            parcel.breaks = 0
        self.talk.broken(server.line, Unavailable("broke"))

    @precondition(lambda self: self.talk.line is not None and self.lines)
    @rule()
    def move(self) -> None:
        self.lines.append(ServerLine(self.talk.begin()))

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.talk.tick()

    @invariant()
    def windows_hold(self) -> None:
        for server in getattr(self, "lines", []):
            waiting = sum(len(frame.submissions) for frame in server.frames)
            largest = max((len(frame.submissions) for frame in server.frames), default=0)
            assert waiting <= max(WINDOW, largest)

    @invariant()
    def nothing_is_told_twice(self) -> None:
        for parcel, _ in getattr(self, "parcels", []):
            assert len(parcel.outcomes) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "talk"):
            return
        for server in [*self.lines]:
            self.lines.remove(server)
            for parcel in server.line.parcels():
                parcel.breaks = 0
            self.talk.broken(server.line, None)
        self.open()
        for _ in range(400):
            if self.talk.is_idle:
                break
            self.clock.now += 10
            self.talk.tick()
            self.write()
            for server in self.lines:
                while server.frames:
                    self._decide(server, 0, True, 0)
            self.ended.update(self.stored)
            self.tell_ends()
        for parcel, ids in self.parcels:
            (outcome,) = parcel.outcomes
            assert not isinstance(outcome, CallError | HandedBack), outcome
            if isinstance(outcome, list):
                assert [result.accepted.job_id for result in outcome] == ids
            else:
                assert [outcome.job_id] == ids
            assert all(self.stored[job_id] for job_id in ids)
        assert {job_id for _, ids in self.parcels for job_id in ids} == {*self.stored}
        for listener, job_id in self.listeners:
            (news,) = listener.heard
            if listener.changes:
                # What this server tells of an end is no job as it stands.
                assert isinstance(news, HandedBack)
            else:
                assert isinstance(news, jobs.JobEnd)
                assert news.job_id == job_id


TestProducing = Producing.TestCase
TestProducing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_lone_submission_goes_at_once_and_what_comes_meanwhile_is_gathered() -> None:
    talk = conversation()
    line = begun(talk)
    for number in range(20):
        talk.submit(one(f"a{number}"))
        if number < 4:
            frame = taken(talk, line)
            assert frame is not None
            assert len(frame.submissions) == 1
            if number == 0:
                first = frame
        else:
            assert taken(talk, line) is None
    talk.feed(line, accepting(first))
    frame = taken(talk, line)
    assert frame is not None
    assert len(frame.submissions) == 16


def test_a_queue_that_gets_no_answer_holds_up_others_no_longer_than_a_moment() -> None:
    clock = Clock()
    talk = conversation(clock)
    line = begun(talk)
    stuck = []
    for number in range(4):
        talk.submit(one(f"s{number}", "stuck"))
        stuck.append(taken(talk, line))
    for number in range(20):
        talk.submit(one(f"s2{number}", "stuck"))
    talk.submit(one("x", "other"))
    assert taken(talk, line) is None
    clock.now += LATE_S + 0.01
    frame = taken(talk, line)
    assert frame is not None
    assert [item.request.job_id for item in frame.submissions] == ["x"]
    assert taken(talk, line) is None
    assert stuck[0] is not None
    talk.feed(line, accepting(stuck[0]))
    frame = taken(talk, line)
    assert frame is not None
    assert {item.request.queue for item in frame.submissions} == {"stuck"}


def test_frames_are_cut_by_number_and_by_size() -> None:
    talk = conversation()
    line = begun(talk, max_unanswered=100_000)
    waiters = [one(f"a{number}") for number in range(2_500)]
    for waiter in waiters:
        talk.submit(waiter)
    sizes = []
    while (frame := taken(talk, line)) is not None:
        sizes.append(len(frame.submissions))
    assert sizes == [1000, 1000, 500]
    large = conversation()
    line = begun(large)
    for _ in range(3):
        frame = jobs.ProduceRequest()
        item = frame.submissions.add().request
        item.spec.payload.data = bytes(700_000)
        large.submit(Waiter(submission(frame)))
    found = [taken(large, line) for _ in range(3)]
    assert [len(frame.submissions) for frame in found if frame] == [1, 1, 1]


def test_whoever_stopped_waiting_before_the_frame_is_not_submitted() -> None:
    talk = conversation()
    waiters = [one(name) for name in "abc"]
    for waiter in waiters:
        talk.submit(waiter)
    waiters[1].gone = True
    line = talk.begin()
    frame = taken(talk, line)
    assert frame is not None
    assert [item.request.job_id for item in frame.submissions] == ["a", "c"]
    # Nor again, after a break.
    waiters[0].gone = True
    talk.broken(line, None)
    frame = taken(talk, talk.begin())
    assert frame is not None
    assert [item.request.job_id for item in frame.submissions] == ["c"]


def test_a_parcel_under_which_streams_break_is_handed_back() -> None:
    talk = conversation()
    waiter = one("a")
    talk.submit(waiter)
    for _ in range(3):
        assert not waiter.outcomes
        line = begun(talk)
        talk.broken(line, Unavailable("broke"))
    (outcome,) = waiter.outcomes
    assert isinstance(outcome, HandedBack)


def test_a_refusal_for_now_is_sent_again_when_it_may_be() -> None:
    clock = Clock()
    talk = conversation(clock)
    line = begun(talk)
    waiter = one("a", ends_at=clock.now + 10)
    talk.submit(waiter)
    frame = taken(talk, line)
    assert frame is not None
    talk.feed(line, refusing(frame, 14, delay_s=3))
    assert taken(talk, line) is None
    assert talk.waits_s is not None
    assert 3 <= talk.waits_s <= 4
    clock.now += talk.waits_s
    frame = taken(talk, line)
    assert frame is not None
    assert [item.request.job_id for item in frame.submissions] == ["a"]
    # There is no time left for another wait as long.
    clock.now += 5
    talk.feed(line, refusing(frame, 14, delay_s=3))
    (outcome,) = waiter.outcomes
    assert isinstance(outcome, Unavailable)


def test_a_refusal_for_good_is_told_at_once() -> None:
    talk = conversation()
    line = begun(talk)
    waiter = one("a")
    talk.submit(waiter)
    frame = taken(talk, line)
    assert frame is not None
    talk.feed(line, refusing(frame, 3))
    (outcome,) = waiter.outcomes
    assert isinstance(outcome, InvalidRequest)


def test_an_answer_that_is_too_short_loses_nobody() -> None:
    talk = conversation()
    line = begun(talk)
    waiters = [one(name) for name in "ab"]
    for waiter in waiters:
        talk.submit(waiter)
    frame = taken(talk, line)
    assert frame is not None
    answer = accepting(frame)
    del answer.answers[0].results[1:]
    talk.feed(line, answer)
    assert isinstance(waiters[0].outcomes[0], jobs.SubmitJobResponse)
    assert isinstance(waiters[1].outcomes[0], CallError)


def test_a_submission_that_nobody_answers_ends_with_its_time() -> None:
    clock = Clock()
    talk = conversation(clock)
    line = begun(talk)
    sent, waiting = one("a", ends_at=clock.now + 5), one("b", ends_at=clock.now + 5)
    talk.submit(sent)
    assert taken(talk, line) is not None
    talk.submit(waiting)
    clock.now += 6
    talk.tick()
    for waiter in (sent, waiting):
        (outcome,) = waiter.outcomes
        assert isinstance(outcome, DeadlineExceeded)


def test_a_silent_server_is_asked_and_then_given_up() -> None:
    clock = Clock()
    talk = conversation(clock)
    line = begun(talk)
    clock.now += 4
    assert line.health(clock.now) is Health.WELL
    talk.submit(one("a"))
    frame = taken(talk, line)
    assert frame is not None
    clock.now += SILENCE_S - 0.1
    assert line.health(clock.now) is Health.WELL
    assert taken(talk, line) is None
    clock.now += 0.2
    assert line.health(clock.now) is Health.WELL
    question = taken(talk, line)
    assert question is not None
    assert question.sequence
    assert not question.submissions
    clock.now += SILENCE_S - 0.1
    assert line.health(clock.now) is Health.WELL
    talk.feed(line, accepting(question))
    clock.now += 0.2
    assert line.health(clock.now) is Health.WELL, "it has answered the question"
    clock.now += SILENCE_S
    assert line.health(clock.now) is Health.WELL
    assert taken(talk, line) is not None
    clock.now += SILENCE_S
    assert line.health(clock.now) is Health.SILENT


def test_heartbeats_go_out_while_there_is_nothing_else() -> None:
    clock = Clock()
    talk = conversation(clock)
    line = begun(talk)
    assert talk.next_frame(line) is None
    clock.now += 4
    assert talk.next_frame(line) == b""
    assert talk.next_frame(line) is None


def test_many_followers_of_a_job_share_a_follow() -> None:
    talk = conversation()
    line = begun(talk)
    ends = [Listener() for _ in range(3)]
    for listener in ends:
        talk.follow("a", listener)
    frame = taken(talk, line)
    assert frame is not None
    assert [follow.job_id for follow in frame.follows] == ["a"]
    talk.unfollow("a", ends[0])
    assert taken(talk, line) is None
    changes = Listener(changes=True)
    talk.follow("a", changes)
    frame = taken(talk, line)
    assert frame is not None
    assert frame.follows[0].content == jobs.FOLLOW_CONTENT_CHANGES
    running = job_pb2.Job(job_id="a", state=job_pb2.JOB_STATE_RUNNING)
    done = job_pb2.Job(job_id="a", state=SUCCEEDED, result=job_pb2.Payload(json="7"))
    talk.feed(line, jobs.ProduceResponse(jobs=[running]))
    talk.feed(line, jobs.ProduceResponse(jobs=[done]))
    assert changes.heard == [running, done]
    for listener in ends[1:]:
        (end,) = listener.heard
        assert isinstance(end, jobs.JobEnd)
        assert (end.state, end.result.json) == (SUCCEEDED, "7")
    assert ends[0].heard == []
    assert talk.is_idle


def test_a_job_that_nobody_follows_any_more_is_dropped() -> None:
    talk = conversation()
    line = begun(talk)
    listener = Listener()
    talk.follow("a", listener)
    assert taken(talk, line) is not None
    talk.unfollow("a", listener)
    frame = taken(talk, line)
    assert frame is not None
    assert [*frame.unfollows] == ["a"]


def test_follows_beyond_the_window_are_handed_back() -> None:
    talk = conversation()
    line = begun(talk, max_follows=2)
    listeners = [Listener() for _ in range(3)]
    for number, listener in enumerate(listeners):
        talk.follow(f"j{number}", listener)
    frame = taken(talk, line)
    assert frame is not None
    assert len(frame.follows) == 2
    assert [len(listener.heard) for listener in listeners] == [0, 0, 1]
    assert isinstance(listeners[2].heard[0], HandedBack)


def test_follows_wait_until_the_window_is_known() -> None:
    talk = conversation()
    listeners = [Listener() for _ in range(2_500)]
    for number, listener in enumerate(listeners):
        talk.follow(f"j{number}", listener)
    line = talk.begin()
    named = 0
    while (frame := taken(talk, line)) is not None:
        assert len(frame.follows) <= 1000
        named += len(frame.follows)
    assert named == 1000
    talk.feed(line, opened(max_follows=10_000))
    while (frame := taken(talk, line)) is not None:
        assert 0 < len(frame.follows) <= 1000
        named += len(frame.follows)
    assert named == 2_500
    assert not any(listener.heard for listener in listeners)


def test_an_old_break_is_not_counted_against_a_new_follower() -> None:
    clock = Clock()
    talk = conversation(clock)
    talk.broken(begun(talk), Unavailable("broke"))
    clock.now += 1000
    talk.submit(one("a"))
    talk.begin()
    listener = Listener()
    talk.follow("a", listener)
    talk.tick()
    assert not listener.heard


NO_STREAM = call_error(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
BROKE = Unavailable("broke")


def test_streams_rest_where_calls_work_and_they_do_not() -> None:
    clock = Clock()
    reach = Reach(clock)
    for _ in range(3):
        assert not reach.is_doubtful
        reach.failed(BROKE)
    assert reach.is_doubtful
    assert reach.wants_evidence
    assert not reach.is_resting
    for _ in range(2):
        clock.now += 1
        reach.answered()
        reach.failed(BROKE)
    assert reach.is_resting
    clock.now += 61
    assert not reach.is_doubtful


def test_streams_do_not_rest_while_no_server_can_be_reached() -> None:
    clock = Clock()
    reach = Reach(clock)
    for _ in range(50):
        clock.now += reach.next_s
        reach.failed(BROKE)
    assert reach.is_doubtful
    assert not reach.is_resting
    assert 0 < reach.next_s <= 2
    # What waits tries the next one as soon as it is open.
    reach.opened()
    assert not reach.is_doubtful
    reach.worked()
    assert reach.is_fine


def test_an_older_server_is_known_at_once() -> None:
    reach = Reach(Clock())
    reach.failed(NO_STREAM)
    assert reach.is_resting
    # A proxy that is being switched over says something else.
    proxied = Reach(Clock())
    proxied.failed(call_error(grpc.StatusCode.UNIMPLEMENTED, "Received http2 header: 404"))
    assert not proxied.is_resting


def test_a_stream_that_never_opens_is_known_once_a_call_was_answered() -> None:
    clock = Clock()
    reach = Reach(clock)
    reach.failed(None, silent=True)
    assert reach.is_doubtful
    assert not reach.is_resting
    clock.now += 1
    reach.answered()
    reach.failed(None, silent=True)
    assert reach.is_resting


def test_a_follow_that_is_lost_for_now_is_named_again() -> None:
    clock = Clock()
    talk = conversation(clock)
    line = begun(talk)
    listener = Listener()
    talk.follow("a", listener)
    assert taken(talk, line) is not None
    error = errors_pb2.ItemError(code=14, message="away")
    lost = jobs.ProduceResponse(lost_follows=[jobs.FollowEnd(job_id="a", error=error)])
    talk.feed(line, lost)
    clock.now += 1
    frame = taken(talk, line)
    assert frame is not None
    assert [follow.job_id for follow in frame.follows] == ["a"]
    assert listener.heard == []


def test_followers_are_told_when_no_server_can_be_had_for_long() -> None:
    clock = Clock()
    talk = conversation(clock)
    listener = Listener()
    talk.follow("a", listener)
    line = begun(talk)
    talk.broken(line, Unavailable("broke"))
    clock.now += 59
    talk.tick()
    assert not listener.heard
    clock.now += 2
    talk.tick()
    (error,) = listener.heard
    assert isinstance(error, Unavailable)


def test_a_server_that_takes_shorter_lists_gets_shorter_ones() -> None:
    talk = conversation()
    for number in range(800):
        talk.submit(one(f"a{number}"))
    line = begun(talk)
    talk.broken(line, InvalidRequest("submissions: at most 100"))
    frame = taken(talk, talk.begin())
    assert frame is not None
    assert len(frame.submissions) == 500
