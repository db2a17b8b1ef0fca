"""What the broker is made of, built in a straight line: each part gets the parts that it uses."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from jobwire_server.broker.admin import Operators
from jobwire_server.broker.alarms import Alarms
from jobwire_server.broker.announcements import Announcements
from jobwire_server.broker.attempts import Attempts
from jobwire_server.broker.bulk import Bulk
from jobwire_server.broker.cancellations import Cancellations
from jobwire_server.broker.deletions import Deletions
from jobwire_server.broker.due_schedules import DueSchedules
from jobwire_server.broker.held_jobs import HeldJobs
from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.broker.listing import JobListing
from jobwire_server.broker.new_jobs import NewJobs
from jobwire_server.broker.open_queues import OpenQueues
from jobwire_server.broker.producers import Producers
from jobwire_server.broker.queue_clock import QueueClocks
from jobwire_server.broker.registration import Registration
from jobwire_server.broker.reports import Reports
from jobwire_server.broker.run_job import JobRuns
from jobwire_server.broker.schedules import Schedules
from jobwire_server.broker.submissions import Submissions
from jobwire_server.broker.worker_calls import WorkerCalls
from jobwire_server.domain.background import Alarm, OwnedTasks
from jobwire_server.domain.ids import UlidFactory
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.records import RecordCodec
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store.activity import Activity
from jobwire_server.store.bulk import BulkStore
from jobwire_server.store.cancels import CancelStore
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.connection.connect import Connection
from jobwire_server.store.group_commit import Backlog
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.notices import Notices
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.runner import ScriptRunner
from jobwire_server.store.schedules import ScheduleStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.tokens import Tokens
from jobwire_server.store.upkeep import UpkeepStore
from jobwire_server.store.workers import WorkerStore
from jobwire_server.watch.admin_watch import AdminWatch
from jobwire_server.watch.follows import Follows
from jobwire_server.watch.job_watch import JobWatch
from jobwire_server.watch.queue_watch import QueueWatch
from jobwire_server.workers.callers import Callers
from jobwire_server.workers.cancel_notices import CancelNotices
from jobwire_server.workers.claims import Claims
from jobwire_server.workers.departures import Departures
from jobwire_server.workers.dispatchers import Dispatchers
from jobwire_server.workers.joining import Joining
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.leases import Leases
from jobwire_server.workers.queues_in_use import QueuesInUse
from jobwire_server.workers.reaper import Reaper
from jobwire_server.workers.sessions import Sessions
from jobwire_server.workers.signals import Signals
from jobwire_server.workers.signs_of_life import SignsOfLife
from jobwire_server.workers.streams import Streams
from jobwire_server.workers.waiting_calls import WaitingCalls


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one broker. Those that run are started and stopped by the router."""

    options: BrokerOptions
    server_id: str
    records: RecordCodec
    condition: StoreCondition
    clock: StoreClock
    tasks: OwnedTasks
    runner: ScriptRunner
    jobs: JobStore
    upkeep: UpkeepStore
    queues: QueueStore
    workers: WorkerStore
    bulk_store: BulkStore
    cancels: CancelStore
    schedule_store: ScheduleStore
    settings: QueueSettingsCache
    tokens: Tokens
    activity: Activity
    notices: Notices
    alarms: Alarms
    lanes: QueueLanes
    attempts: Attempts
    held: HeldJobs
    due_schedules: DueSchedules
    clocks: QueueClocks
    known: KnownWorkers
    callers: Callers
    reaper: Reaper
    waiting: WaitingCalls
    dispatchers: Dispatchers
    claims: Claims
    cancel_notices: CancelNotices
    reports: Reports
    registration: Registration
    worker_calls: WorkerCalls
    sessions: Sessions
    signals: Signals
    stream_tasks: OwnedTasks
    streams: Streams
    open_queues: OpenQueues
    deletions: Deletions
    announcements: Announcements
    new_jobs: NewJobs
    submissions: Submissions
    schedules: Schedules
    bulk: Bulk
    listing: JobListing
    operators: Operators
    job_watch: JobWatch
    queue_watch: QueueWatch
    admin_watch: AdminWatch
    runs: JobRuns
    follows: Follows
    cancellations: Cancellations
    producers: Producers


def build_parts(
    connection: Connection,
    options: BrokerOptions,
    records: RecordCodec,
    server_id: str,
    *,
    random_fraction: Callable[[], float] = random.random,
    moments_settled: Callable[[str, int], None] = lambda outcome, count: None,
    condition: StoreCondition | None = None,
) -> Parts:
    """Return the parts of a broker; none of them runs yet.

    Args:
        connection: The store.
        options: How jobs and workers are treated.
        records: Reads and writes records.
        server_id: Unique among live servers.
        random_fraction: Returns numbers in [0, 1) for the jitter of backoffs.
        moments_settled: Told how many moments of schedules were `submitted`, `skipped`, `missed`.
        condition: Of the store, kept by whoever watches it; None: it is taken to be well.
    """
    condition = condition or StoreCondition(connection.address)
    clock = StoreClock()
    new_ulid = UlidFactory(clock.now_ms)
    tasks = OwnedTasks()

    # The store.
    activity = Activity()
    runner = ScriptRunner(
        connection,
        wait_replicas=options.wait_replicas,
        wait_timeout_ms=options.wait_timeout_ms,
        condition=condition,
        activity=activity,
    )
    jobs = JobStore(runner, server_id)
    upkeep = UpkeepStore(runner)
    queues = QueueStore(runner)
    workers = WorkerStore(runner, server_id)
    schedule_store = ScheduleStore(runner)
    bulk_store = BulkStore(runner)
    cancels = CancelStore(runner)
    notices = Notices(connection)
    settings = QueueSettingsCache(queues.settings)
    tokens = Tokens(runner)
    limits = options.limits
    backlog = Backlog(limits.max_queued_requests, limits.max_queued_bytes)

    # Ends of attempts, and the clocks that bring some of them about.
    alarms = Alarms()
    lanes = QueueLanes(jobs, options, backlog, settings)
    job_watch = JobWatch(jobs, notices, tokens, options.bookmark_ms / 1000)
    follows = Follows(job_watch, jobs)
    attempts = Attempts(lanes, options, random_fraction, alarms, settings, tasks, follows)
    cancellations = Cancellations(lanes, alarms, options)
    held = HeldJobs(jobs, workers, options, random_fraction, alarms, settings)
    due_schedules = DueSchedules(
        schedule_store, settings, options, condition, records, moments_settled
    )
    in_use = QueuesInUse()
    clocks = QueueClocks(
        upkeep, options, held, due_schedules, clock, settings, activity, alarms, in_use
    )

    # Workers.
    waiting = WaitingCalls()
    changed_workers = Alarm()
    known = KnownWorkers(workers, waiting, notices, changed_workers)
    callers = Callers(workers, backlog, known, waiting, changed_workers)
    reaper = Reaper(workers, options, held)
    registration = Registration(known, held, reaper)
    reports = Reports(lanes, known, callers, options)
    dispatchers = Dispatchers(jobs, notices, options, settings, attempts, in_use)
    claims = Claims(jobs, known, callers, waiting, dispatchers, options, attempts, alarms)
    cancel_notices = CancelNotices(claims, waiting, known, callers, attempts, cancels, notices)

    # Their streams.
    stream_tasks = OwnedTasks()
    sessions = Sessions(attempts, reports, known, options, server_id)
    leases = Leases(sessions.by_worker, reports, options)
    signs = SignsOfLife(sessions.by_worker, workers, clock, options.worker_timeout_ms)
    signals = Signals(notices, leases, signs, stream_tasks)
    joining = Joining(reports, held, dispatchers, stream_tasks)
    departures = Departures(workers, options, attempts, registration, reaper, stream_tasks)
    streams = Streams(
        sessions, workers, clock, joining, departures, leases, signs, signals, stream_tasks
    )

    worker_calls = WorkerCalls(
        lanes,
        known,
        callers,
        claims,
        cancel_notices,
        reports,
        attempts,
        streams,
        records,
        options,
        clock,
    )

    # Producers and operators.
    open_queues = OpenQueues(jobs, queues, options, backlog, settings, lanes, clocks, dispatchers)
    deletions = Deletions(queues, open_queues)
    announcements = Announcements(queues, open_queues, deletions, clocks, clock, activity)
    new_jobs = NewJobs(records, clock, new_ulid.job_id)
    submissions = Submissions(
        records, open_queues, lanes, alarms, condition, backlog, limits, clock
    )
    schedules = Schedules(
        schedule_store,
        open_queues,
        lanes,
        alarms,
        settings,
        options,
        new_ulid,
        condition,
        records,
        tokens,
    )
    bulk = Bulk(jobs, bulk_store, queues, alarms, settings, options, records)
    listing = JobListing(jobs, queues, records, tokens)
    operators = Operators(jobs, queues, workers, settings, tokens, open_queues)

    producers = Producers(submissions, cancellations, follows, clock, options, tasks)

    # Watchers.
    queue_watch = QueueWatch(job_watch, jobs, queues, records, tokens)
    admin_watch = AdminWatch(job_watch, notices, queues, operators)
    runs = JobRuns(submissions, lanes, job_watch, tasks)

    return Parts(
        options=options,
        server_id=server_id,
        records=records,
        condition=condition,
        clock=clock,
        tasks=tasks,
        runner=runner,
        jobs=jobs,
        upkeep=upkeep,
        queues=queues,
        workers=workers,
        bulk_store=bulk_store,
        cancels=cancels,
        schedule_store=schedule_store,
        settings=settings,
        tokens=tokens,
        activity=activity,
        notices=notices,
        alarms=alarms,
        lanes=lanes,
        attempts=attempts,
        held=held,
        due_schedules=due_schedules,
        clocks=clocks,
        known=known,
        callers=callers,
        reaper=reaper,
        waiting=waiting,
        dispatchers=dispatchers,
        claims=claims,
        cancel_notices=cancel_notices,
        reports=reports,
        registration=registration,
        worker_calls=worker_calls,
        sessions=sessions,
        signals=signals,
        stream_tasks=stream_tasks,
        streams=streams,
        open_queues=open_queues,
        deletions=deletions,
        announcements=announcements,
        new_jobs=new_jobs,
        submissions=submissions,
        schedules=schedules,
        bulk=bulk,
        listing=listing,
        operators=operators,
        job_watch=job_watch,
        queue_watch=queue_watch,
        admin_watch=admin_watch,
        runs=runs,
        follows=follows,
        cancellations=cancellations,
        producers=producers,
    )
