// Package jobwire is a worker for Jobwire in a few hundred lines: docs/contract.md
// as code.
package jobwire

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	pb "jobwire-example/jobwirev1"
)

// Handler runs one attempt at a job. Its result becomes JSON; ctx ends when the handler should
// stop: the job was cancelled, its lease was lost, or the worker leaves.
type Handler func(ctx context.Context, job *Job) (any, error)

// Job is one attempt.
type Job struct {
	*pb.Assignment
	worker *Worker
}

// Payload reads the job's JSON into value.
func (j *Job) Payload(value any) error {
	return json.Unmarshal([]byte(j.GetSpec().GetPayload().GetJson()), value)
}

// Progress reports how far the job is, from 0 to 1. Of several reports the newest is sent.
func (j *Job) Progress(fraction float64, message string) {
	j.worker.report(j, &pb.Progress{Fraction: &fraction, Message: message})
}

// held is a job from its assignment to the receipt of its completion.
type held struct {
	lease   *pb.LeaseRef
	stop    context.CancelCauseFunc
	running bool
}

var (
	errCancelled = errors.New("the job was cancelled")
	errLeaseLost = errors.New("the lease is lost")
	errLeaving   = errors.New("the worker leaves")
)

// Worker takes jobs over the Work stream. Set the exported fields and the handlers before Run.
type Worker struct {
	Target      string        // HOST:PORT or any gRPC target
	Queues      []string      // none: "default"
	Concurrency int           // jobs at once
	Grace       time.Duration // for running jobs, once it is told to leave

	handlers map[string]Handler
	spec     *pb.WorkerSpec
	instance string

	mu          sync.Mutex // guards the fields below
	current     *stream    // the worker's stream
	held        map[string]*held
	acks        []*pb.LeaseRef
	received    int64 // frames with assignments that arrived on the stream; 0: it was told
	reports     map[string]*pb.Report
	completions []*pb.Completion
	sent        map[int64]*pb.WorkRequest // frames without a receipt
	sequence    int64
	attempts    int64 // to attach
	draining    bool
	saidStatus  bool
	wake        chan struct{} // something to send
	pause       time.Duration // before the next stream, if this one ends soon
}

// Handle registers a handler for an operation.
func (w *Worker) Handle(operation string, handler Handler) {
	if w.handlers == nil {
		w.handlers = map[string]Handler{}
	}
	w.handlers[operation] = handler
}

// Run works until ctx ends or the broker asks the worker to leave. Then running jobs get the
// grace period, and those that are still running are given back.
func (w *Worker) Run(ctx context.Context) error {
	if len(w.handlers) == 0 {
		return errors.New("the worker has no handlers")
	}
	host, _ := os.Hostname()
	operations := []string{}
	for operation := range w.handlers {
		operations = append(operations, operation)
	}
	w.spec = &pb.WorkerSpec{
		WorkerId:    fmt.Sprintf("%s-%d-%s", host, os.Getpid(), randomHex(4)),
		Queues:      w.Queues,
		Operations:  operations,
		Concurrency: int32(w.Concurrency),
		Client:      "jobwire-go-example",
		BuildId:     os.Getenv("JOBWIRE_BUILD_ID"),
	}
	w.instance = randomHex(8)
	w.held, w.reports = map[string]*held{}, map[string]*pb.Report{}
	w.sent, w.wake = map[int64]*pb.WorkRequest{}, make(chan struct{}, 1)

	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-ctx.Done():
			w.leave(w.Grace)
		case <-stopped:
		}
	}()
	return w.converse(stopped)
}

// leave takes no more jobs, and stops the handlers that still run after the grace period.
func (w *Worker) leave(grace time.Duration) {
	w.mu.Lock()
	w.draining = true
	w.mu.Unlock()
	w.hasNews()
	time.AfterFunc(grace, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, h := range w.held {
			h.stop(errLeaving)
		}
	})
}

// assign starts the handlers of jobs. The server sends no more jobs than the credits allow.
func (w *Worker) assign(assignments []*pb.Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range assignments {
		lease := &pb.LeaseRef{JobId: a.JobId, FencingToken: a.FencingToken}
		if known := w.held[a.JobId]; known != nil {
			if known.lease.FencingToken >= a.FencingToken {
				continue
			}
			// Assigned again: the earlier lease is lost.
			known.stop(errLeaseLost)
		}
		ctx, stop := context.WithCancelCause(context.Background())
		w.held[a.JobId] = &held{lease: lease, stop: stop, running: !w.draining}
		if w.draining {
			released := &pb.Released{NotStarted: true, Reason: "the worker leaves"}
			w.say(lease, &pb.Completion{Outcome: &pb.Completion_Released{Released: released}})
			continue
		}
		go w.run(ctx, w.held[a.JobId], &Job{a, w})
	}
	w.hasNews()
}

func (w *Worker) run(ctx context.Context, h *held, job *Job) {
	completion := &pb.Completion{}
	result, err := w.call(ctx, job)
	var text []byte
	if err == nil {
		text, err = json.Marshal(result)
	}
	switch cause := context.Cause(ctx); {
	case err == nil:
		payload := &pb.Payload{Kind: &pb.Payload_Json{Json: string(text)}}
		completion.Outcome = &pb.Completion_Success{Success: &pb.Success{Result: payload}}
	case cause == errCancelled:
		completion.Outcome = &pb.Completion_Cancelled{Cancelled: &pb.Cancelled{}}
	case cause == errLeaving:
		completion.Outcome = &pb.Completion_Released{Released: &pb.Released{Reason: cause.Error()}}
	default:
		completion.Outcome = failed("HandlerError", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// Nobody reads the outcome of a lost lease.
	if w.held[job.JobId] == h {
		h.running = false
		delete(w.reports, job.JobId)
		w.say(h.lease, completion)
	}
}

// call runs a handler; a panic fails the job, not the worker.
func (w *Worker) call(ctx context.Context, job *Job) (result any, err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("panic: %v", panicked)
		}
	}()
	handler := w.handlers[job.GetSpec().GetOperation()]
	if handler == nil {
		return nil, fmt.Errorf("no handler for %q", job.GetSpec().GetOperation())
	}
	if p := job.GetSpec().GetPayload(); p.GetKind() == nil && len(p.ProtoReflect().GetUnknown()) > 0 {
		// Of a newer producer: as an empty payload it would be lost.
		return nil, errors.New("the payload is of a kind that this worker does not know")
	}
	return handler(ctx, job)
}

func failed(kind string, err error) *pb.Completion_Failure {
	return &pb.Completion_Failure{Failure: &pb.Failure{Type: kind, Message: err.Error()}}
}

// say queues a completion; the lock is held.
func (w *Worker) say(lease *pb.LeaseRef, completion *pb.Completion) {
	completion.JobId, completion.FencingToken = lease.JobId, lease.FencingToken
	w.completions = append(w.completions, completion)
	w.hasNews()
}

func (w *Worker) report(job *Job, progress *pb.Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.held[job.JobId]; h == nil || h.lease.FencingToken != job.FencingToken || !h.running {
		return
	}
	w.reports[job.JobId] = &pb.Report{
		JobId: job.JobId, FencingToken: job.FencingToken, Progress: progress,
	}
	w.hasNews()
}

// lose stops the handlers of lost leases, and forgets them.
func (w *Worker) lose(leases []*pb.LeaseRef) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, lease := range leases {
		h := w.held[lease.JobId]
		// If it has ended, the receipt of its completion settles it.
		if h != nil && h.running && h.lease.FencingToken == lease.FencingToken {
			log.Printf("the lease on %s is lost", lease.JobId)
			h.stop(errLeaseLost)
			w.forget(lease)
		}
	}
	w.hasNews()
}

// forget drops a job; the lock is held.
func (w *Worker) forget(lease *pb.LeaseRef) {
	if h := w.held[lease.JobId]; h != nil && h.lease.FencingToken == lease.FencingToken {
		delete(w.held, lease.JobId)
		delete(w.reports, lease.JobId)
	}
}

// leases names all leases held; the lock is held.
func (w *Worker) leases() []*pb.LeaseRef {
	leases := []*pb.LeaseRef{}
	for _, h := range w.held {
		leases = append(leases, h.lease)
	}
	return leases
}

func (w *Worker) cancel(notices []*pb.CancelNotice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range notices {
		h := w.held[n.JobId]
		if h != nil && h.lease.FencingToken == n.FencingToken {
			h.stop(errCancelled)
		}
	}
}

func (w *Worker) hasNews() {
	select {
	case w.wake <- struct{}{}:
	default: // it is signalled already
	}
}

func randomHex(count int) string {
	buffer := make([]byte, count)
	_, _ = rand.Read(buffer) // never fails
	return hex.EncodeToString(buffer)
}
