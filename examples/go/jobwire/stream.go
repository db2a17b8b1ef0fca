package jobwire

import (
	"context"
	"io"
	"log"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "jobwire-example/jobwirev1"
)

const (
	// Doubles with each attempt: a server may hang, or be slow.
	attachTimeout     = time.Second
	mostAttachTimeout = 6 * time.Second
	leastWait         = 50 * time.Millisecond
	mostWait          = 2 * time.Second
	resendAfter       = 500 * time.Millisecond
	silentIntervals   = 2
	// A stream that lasted for less is followed by another one only after a wait.
	steady = time.Second
	// The contract's, for reports and for completions.
	maxItems = 1000
)

// What this worker can do beyond the first version of the contract.
var features = []string{"received"}

// stream is one attached stream.
type stream struct {
	conn     *grpc.ClientConn
	work     grpc.BidiStreamingClient[pb.WorkRequest, pb.WorkResponse]
	cancel   context.CancelFunc
	attached *pb.Attached
	interval time.Duration // of the server's heartbeats
	beat     time.Duration // of the worker's
	contact  time.Duration // after this long without hearing from a server others may have the jobs
	heard    atomic.Int64  // when the server was last heard from, Unix ns
	refuses  atomic.Bool   // ignores assignments: its successor has named the leases
	moving   chan outcome  // not nil: another stream is being attached in its place
	began    time.Time
	over     chan struct{}
	once     sync.Once
	counts   bool  // acknowledges whole frames: the server has the feature
	frames   int64 // with assignments, that have arrived
}

// outcome is the result of an attach.
type outcome struct {
	stream *stream
	err    error
}

func (s *stream) close() {
	s.once.Do(func() {
		close(s.over)
		s.cancel()
		_ = s.conn.Close()
	})
}

// converse keeps a stream open for as long as the worker lives.
func (w *Worker) converse(stopped <-chan struct{}) error {
	s, err := w.attach(nil, stopped)
	for err == nil {
		err = w.hold(s, stopped)
		s.close()
		switch {
		case err == nil:
			return nil // the goodbye was answered
		case s.moving != nil:
			// However it ended; most likely superseded by its successor.
			moved := <-s.moving
			s, err = moved.stream, moved.err
		case !final(err, true):
			log.Printf("the stream is lost, attaching again: %v", err)
			w.pauseAfter(s, stopped)
			s, err = w.attach(s, stopped)
		}
	}
	return err
}

// pauseAfter waits before another stream unless this one lasted for long enough: whatever ended it may
// end the next one as well.
func (w *Worker) pauseAfter(s *stream, stopped <-chan struct{}) {
	if w.pause = min(2*w.pause, mostWait); w.pause == 0 || time.Since(s.began) >= steady {
		w.pause = leastWait
	}
	if time.Since(s.began) < steady {
		select {
		case <-time.After(w.pause/2 + rand.N(w.pause/2)):
		case <-stopped:
		}
	}
}

// final tells whether another stream would end in the same way. Statuses that a proxy may send while
// it is switched over are final only for a worker that was never attached.
func final(err error, attachedBefore bool) bool {
	switch status.Code(err) {
	case codes.InvalidArgument:
		return true
	case codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return !attachedBefore
	case codes.Aborted:
		for _, detail := range status.Convert(err).Details() {
			if info, ok := detail.(*errdetails.ErrorInfo); ok {
				// Superseded by a stream of this same process: no reason to stop.
				return info.Metadata["same_process"] == "false"
			}
		}
		return true
	}
	return false
}

// attach opens a stream, and keeps trying until a server takes the worker. Each attempt makes a new
// connection, so that a worker that is asked to move can reach another server behind the same
// address.
func (w *Worker) attach(before *stream, stopped <-chan struct{}) (*stream, error) {
	var fence *time.Timer
	var fenced atomic.Bool
	if before != nil {
		select {
		case <-before.over: // not while the worker is only asked to leave it
			fence = time.AfterFunc(time.Until(before.lastWord().Add(before.contact)), func() {
				log.Printf("no server was heard for %v: the jobs may run elsewhere", before.contact)
				fenced.Store(true)
				w.mu.Lock()
				leases := w.leases()
				w.mu.Unlock()
				w.lose(leases)
			})
			defer fence.Stop()
		default:
		}
	}
	patience := attachTimeout
	for wait := leastWait; ; wait = min(2*wait, mostWait) {
		named := fenced.Load()
		s, err := w.attachOnce(before, patience)
		if err == nil && fenced.Load() != named {
			// It has just named leases that were given up in the meantime.
			s.close()
			continue
		}
		if err == nil || final(err, before != nil) {
			return s, err
		}
		log.Printf("%s does not take the worker, trying on: %v", w.Target, err)
		patience = min(2*patience, mostAttachTimeout)
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-stopped:
			return nil, err
		}
	}
}

// lastWord is when the server was last heard from.
func (s *stream) lastWord() time.Time { return time.Unix(0, s.heard.Load()) }

func (w *Worker) attachOnce(before *stream, wait time.Duration) (*stream, error) {
	conn, err := grpc.NewClient(w.Target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 20 * time.Second, Timeout: 10 * time.Second,
		}))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &stream{conn: conn, cancel: cancel, began: time.Now(), over: make(chan struct{})}
	patience := time.AfterFunc(wait, cancel)
	first, err := w.greet(ctx, s, before)
	if err == nil && (!patience.Stop() || first.Attached == nil) {
		err = status.Error(codes.Unavailable, "no answer to the attachment")
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.attached, s.interval = first.Attached, first.Attached.HeartbeatInterval.AsDuration()
	s.beat, s.contact = s.interval, first.Attached.ReconnectWindow.AsDuration()
	if own := first.Attached.WorkerHeartbeatInterval; own != nil {
		s.beat = own.AsDuration()
	}
	if told := first.Attached.ContactTimeout; told != nil {
		s.contact = told.AsDuration()
	}
	s.counts = slices.Contains(first.Attached.Features, "received")
	s.heard.Store(time.Now().UnixNano())
	w.mu.Lock()
	w.current = s
	w.acks, w.received = nil, 0 // the attach named them
	w.sayAgain()
	w.mu.Unlock()
	w.lose(s.attached.LostLeases)
	w.receive(s, first)
	w.hasNews()
	return s, nil
}

func (w *Worker) greet(ctx context.Context, s, before *stream) (*pb.WorkResponse, error) {
	var err error
	if s.work, err = pb.NewWorkerServiceClient(s.conn).Work(ctx); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.attempts++
	attach := &pb.Attach{
		Worker: w.spec, InstanceId: w.instance, Leases: w.leases(), Credits: w.credits(),
		Attempt: w.attempts, Features: features,
	}
	if before != nil {
		// Assignments that it brings from here on are not among the leases just named, so the
		// server takes them back.
		before.refuses.Store(true)
	}
	w.mu.Unlock()
	// A failed Send has no status; Recv has it.
	_ = s.work.Send(&pb.WorkRequest{Attach: attach})
	return s.work.Recv()
}

func (w *Worker) credits() int32 {
	if w.draining {
		return 0
	}
	return int32(w.Concurrency)
}

// sayAgain queues what the previous stream carried and no receipt answered; the lock is held.
func (w *Worker) sayAgain() {
	for _, frame := range w.sent {
		w.completions = append(frame.Completions, w.completions...)
		for _, r := range frame.Reports {
			if h := w.held[r.JobId]; h != nil && h.running && w.reports[r.JobId] == nil {
				w.reports[r.JobId] = r
			}
		}
	}
	w.sent = map[int64]*pb.WorkRequest{}
	w.saidStatus = false
}

// hold reads and writes until the stream ends: nil after the goodbye, otherwise why.
func (w *Worker) hold(s *stream, stopped <-chan struct{}) error {
	go w.write(s)
	// The server may hang, and a server that hangs can't say so.
	silence := time.AfterFunc(silentIntervals*s.interval, s.cancel)
	defer silence.Stop()
	for {
		frame, err := s.work.Recv()
		if err == io.EOF {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.draining && len(w.held) == 0 {
				return nil
			}
			return status.Error(codes.Unavailable, "the server ended the stream")
		}
		if err != nil {
			return err
		}
		silence.Reset(silentIntervals * s.interval)
		s.heard.Store(time.Now().UnixNano())
		w.receive(s, frame)
		if drain := frame.Drain; drain != nil && drain.Leave {
			log.Printf("asked to leave: %s", drain.Reason)
			grace := w.Grace
			if drain.Deadline != nil {
				grace = time.Until(drain.Deadline.AsTime()) // it finishes its jobs
			}
			w.leave(grace)
		} else if drain != nil && s.moving == nil {
			log.Printf("moving to another stream: %s", drain.Reason)
			// The old stream goes on until the new one is attached.
			s.moving = make(chan outcome, 1)
			go func() {
				w.pauseAfter(s, stopped)
				next, err := w.attach(s, stopped)
				s.moving <- outcome{next, err}
				s.close()
			}()
		}
	}
}

func (w *Worker) receive(s *stream, frame *pb.WorkResponse) {
	for _, receipt := range frame.Receipts {
		w.settle(receipt)
	}
	w.lose(frame.LostLeases)
	if !s.refuses.Load() && len(frame.Assignments) > 0 {
		w.acknowledge(s, frame.Assignments)
		w.assign(frame.Assignments)
	}
	w.cancel(frame.Cancellations)
}

// acknowledge tells that assignments have arrived: by the number of frames where the server has
// the feature, and one by one otherwise.
func (w *Worker) acknowledge(s *stream, assignments []*pb.Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.frames++
	if s.counts {
		if w.current == s {
			w.received = s.frames
		}
		return
	}
	for _, a := range assignments {
		w.acks = append(w.acks, &pb.LeaseRef{JobId: a.JobId, FencingToken: a.FencingToken})
	}
}

// settle handles the receipt of a frame: what it does not list is recorded.
func (w *Worker) settle(receipt *pb.Receipt) {
	w.mu.Lock()
	frame := w.sent[receipt.Sequence]
	delete(w.sent, receipt.Sequence)
	refused := map[string]*pb.ItemError{}
	for _, r := range receipt.Refused {
		refused[r.JobId] = r.Error
	}
	for _, c := range frame.GetCompletions() {
		lease := &pb.LeaseRef{JobId: c.JobId, FencingToken: c.FencingToken}
		err := refused[c.JobId]
		delete(refused, c.JobId)
		switch {
		case err == nil, err.Reason == pb.ErrorReason_ERROR_REASON_LEASE_LOST,
			err.Reason == pb.ErrorReason_ERROR_REASON_JOB_NOT_FOUND:
			w.forget(lease)
		case codes.Code(err.Code) == codes.Unavailable,
			codes.Code(err.Code) == codes.ResourceExhausted:
			wait := resendAfter
			if err.RetryDelay != nil {
				wait = err.RetryDelay.AsDuration()
			}
			time.AfterFunc(wait, func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.say(lease, c)
			})
		case c.GetSuccess() != nil:
			// It has a wrong field, most likely a result that is too large.
			failure := failed("InvalidResult", status.Error(codes.InvalidArgument, err.Message))
			failure.Failure.NonRetryable = true
			w.say(lease, &pb.Completion{Outcome: failure})
		default:
			log.Printf("the outcome of %s could not be recorded: %s", c.JobId, err.Message)
			w.forget(lease)
		}
	}
	// The rest concerns reports. They are not repeated: the next one replaces them.
	gone := []*pb.LeaseRef{}
	for _, r := range frame.GetReports() {
		if err := refused[r.JobId]; err.GetReason() == pb.ErrorReason_ERROR_REASON_LEASE_LOST {
			gone = append(gone, &pb.LeaseRef{JobId: r.JobId, FencingToken: r.FencingToken})
		}
	}
	w.mu.Unlock()
	w.lose(gone)
}

// write sends one frame at a time. Whatever comes up meanwhile goes into the next one.
func (w *Worker) write(s *stream) {
	beat := time.NewTicker(s.beat)
	defer beat.Stop()
	said := time.Now()
	for {
		frame := w.nextFrame(s)
		if frame == nil && time.Since(said) >= s.beat {
			frame = &pb.WorkRequest{Heartbeat: &pb.Heartbeat{}}
		}
		if frame != nil {
			said = time.Now()
			if s.work.Send(frame) != nil {
				return // Recv says why
			}
			continue
		}
		select {
		case <-w.wake:
		case <-beat.C:
		case <-s.over:
			w.hasNews() // for the next stream, in case this one took the signal
			return
		}
	}
}

// nextFrame returns what there is to send on the current stream; nil if there is nothing.
func (w *Worker) nextFrame(s *stream) *pb.WorkRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != s {
		return nil
	}
	frame, some := &pb.WorkRequest{Acks: w.acks, Received: w.received}, len(w.acks) > 0 || w.received > 0
	w.acks, w.received = nil, 0
	if w.draining && !w.saidStatus {
		none := int32(0)
		frame.Credits, frame.Status = &none, pb.WorkerStatus_WORKER_STATUS_DRAINING
		w.saidStatus, some = true, true
	}
	count := min(len(w.completions), maxItems)
	frame.Completions, w.completions = w.completions[:count:count], w.completions[count:]
	for id, r := range w.reports {
		if len(frame.Reports) == maxItems {
			break
		}
		frame.Reports = append(frame.Reports, r)
		delete(w.reports, id)
	}
	if len(frame.Completions)+len(frame.Reports) > 0 {
		w.sequence++
		frame.Sequence, some = w.sequence, true
		w.sent[w.sequence] = frame
	}
	if !some && w.draining && len(w.held) == 0 {
		frame.Detach, some = &pb.Detach{}, true
		w.current = nil // nothing comes after the goodbye
	}
	if !some {
		return nil
	}
	return frame
}
