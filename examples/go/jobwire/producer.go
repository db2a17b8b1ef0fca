package jobwire

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "jobwire-example/jobwirev1"
)

const (
	callTimeout    = 5 * time.Second
	mostBreaks     = 3 // under one submission; then it goes by a call
	leastResend    = 100 * time.Millisecond
	mostResend     = 5 * time.Second
	leaveTimeout   = 5 * time.Second
	mostReplyBytes = 64 << 20
)

// ErrClosed is what callers get from a producer that was closed.
var ErrClosed = errors.New("the producer is closed")

// Producer submits jobs and awaits their ends over one Produce stream, or by calls where there is
// none. It is safe for many goroutines, and survives restarts of servers for as long as the
// context of each call allows.
type Producer struct {
	targets []string
	ctx     context.Context
	close   context.CancelFunc
	done    chan struct{}
	calls   []pb.JobServiceClient // to each target, for what the stream does not carry
	conns   []*grpc.ClientConn

	mu      sync.Mutex          // guards the fields below and those of streams
	current *produceStream      // where submissions and follows go; nil: none is open
	target  int                 // of the current stream, or the next to try
	byCalls bool                // servers answer calls and open no stream
	waiting []*task             // to be submitted
	follows map[string][]*task  // who waits for the end of a job
	changed map[string]struct{} // jobs to name to the current stream: follow it, or no more
	streams map[*produceStream]struct{}
}

// task is what one caller waits for.
type task struct {
	ctx      context.Context
	request  *pb.SubmitJobRequest
	size     int
	follow   bool
	jobID    string        // whose end it awaits
	gone     bool          // nobody waits any more
	breaks   int           // streams that ended before they answered, in a row
	wait     time.Duration // before it is sent again
	accepted chan *pb.SubmitJobResponse
	ended    chan *pb.JobEnd
	failed   chan error
}

// NewProducer makes a producer for servers of one store: HOST:PORT or any gRPC target.
func NewProducer(targets ...string) (*Producer, error) {
	p := &Producer{
		targets: targets, target: len(targets) - 1, done: make(chan struct{}), follows: map[string][]*task{},
		changed: map[string]struct{}{}, streams: map[*produceStream]struct{}{},
	}
	for _, target := range targets {
		conn, err := dial(target)
		if err != nil {
			return nil, err
		}
		p.conns = append(p.conns, conn)
		p.calls = append(p.calls, pb.NewJobServiceClient(conn))
	}
	p.ctx, p.close = context.WithCancel(context.Background())
	go p.converse()
	return p, nil
}

func dial(target string) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(pings), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(mostReplyBytes)))
}

// Submit returns when the job is in the store. If ctx ends earlier, the job may or may not be.
func (p *Producer) Submit(
	ctx context.Context, queue string, spec *pb.JobSpec,
) (*pb.SubmitJobResponse, error) {
	return p.submit(newTask(ctx, queue, spec, false))
}

// Call submits a job and returns its end, whichever it is: look at its state. If ctx ends earlier,
// the job goes on.
func (p *Producer) Call(ctx context.Context, queue string, spec *pb.JobSpec) (*pb.JobEnd, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends calls that were made for it
	t := newTask(ctx, queue, spec, true)
	defer p.forget(t)
	if _, err := p.submit(t); err != nil {
		return nil, err
	}
	return p.await(t)
}

// Wait returns the end of a job that was submitted before, by anyone.
func (p *Producer) Wait(ctx context.Context, jobID string) (*pb.JobEnd, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := newTask(ctx, "", nil, true)
	defer p.forget(t)
	p.mu.Lock()
	p.followFor(t, jobID)
	p.mu.Unlock()
	return p.await(t)
}

// Close leaves the stream. Callers that still wait get ErrClosed.
func (p *Producer) Close() {
	p.close()
	<-p.done
	for _, conn := range p.conns {
		_ = conn.Close()
	}
}

func newTask(ctx context.Context, queue string, spec *pb.JobSpec, follow bool) *task {
	request := &pb.SubmitJobRequest{Queue: queue, Spec: spec, JobId: NewJobID(queue)}
	return &task{
		ctx: ctx, request: request, size: proto.Size(request), follow: follow,
		accepted: make(chan *pb.SubmitJobResponse, 1), ended: make(chan *pb.JobEnd, 1),
		failed: make(chan error, 1),
	}
}

func (p *Producer) submit(t *task) (*pb.SubmitJobResponse, error) {
	p.mu.Lock()
	p.send(t)
	p.mu.Unlock()
	select {
	case job := <-t.accepted:
		return job, nil
	case err := <-t.failed:
		return nil, err
	case <-t.ctx.Done():
		return nil, t.ctx.Err()
	case <-p.ctx.Done():
		return nil, ErrClosed
	}
}

func (p *Producer) await(t *task) (*pb.JobEnd, error) {
	select {
	case end := <-t.ended:
		return end, nil
	case err := <-t.failed:
		return nil, err
	case <-t.ctx.Done():
		return nil, t.ctx.Err()
	case <-p.ctx.Done():
		return nil, ErrClosed
	}
}

func (t *task) fail(err error) {
	select {
	case t.failed <- err:
	default:
	}
}

// send has a task submitted; the lock is held.
func (p *Producer) send(t *task) {
	if p.byCalls || t.breaks >= mostBreaks {
		go p.submitByCall(t)
		return
	}
	p.waiting = append(p.waiting, t)
	p.hasNews()
}

// sendLater has a task submitted again after a moment.
func (p *Producer) sendLater(t *task, delay time.Duration) {
	t.wait = min(max(2*t.wait, leastResend), mostResend)
	if delay == 0 {
		delay = t.wait
	}
	time.AfterFunc(spread(delay), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.send(t)
	})
}

// accept tells a caller that its job is in the store; the lock is held.
func (p *Producer) accept(t *task, job *pb.SubmitJobResponse, followedOn *produceStream) {
	t.accepted <- job
	if !t.follow {
		return
	}
	if followedOn == nil || followedOn != p.current || job.JobId != t.request.JobId {
		// Another stream follows it; or it is another job, which a caller may just have left.
		p.followFor(t, job.JobId)
		return
	}
	t.jobID = job.JobId
	p.follows[t.jobID] = append(p.follows[t.jobID], t)
	if t.gone {
		p.leave(t)
	}
}

// followFor has the current stream, or calls, tell a task the end of a job; the lock is held.
func (p *Producer) followFor(t *task, jobID string) {
	t.jobID = jobID
	p.follows[jobID] = append(p.follows[jobID], t)
	switch {
	case t.gone:
		p.leave(t)
	case p.byCalls:
		go p.watchByCall(t)
	default:
		p.change(jobID)
	}
}

// change has the current stream follow a job, or no more; the lock is held.
func (p *Producer) change(jobID string) {
	p.changed[jobID] = struct{}{}
	p.hasNews()
}

// leave takes a task from those who wait for its job; the lock is held.
func (p *Producer) leave(t *task) {
	t.gone = true
	before := p.follows[t.jobID]
	left := slices.DeleteFunc(slices.Clone(before), func(other *task) bool { return other == t })
	if len(before) == 0 || len(left) > 0 {
		p.follows[t.jobID] = left
		return
	}
	delete(p.follows, t.jobID)
	p.change(t.jobID)
}

// end tells the end of a job to all who wait for it.
func (p *Producer) end(end *pb.JobEnd) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.follows[end.JobId] {
		t.ended <- end
	}
	delete(p.follows, end.JobId)
}

// lose handles a follow that ended before its job.
func (p *Producer) lose(lost *pb.FollowEnd) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch codes.Code(lost.GetError().GetCode()) {
	case codes.Unavailable:
		time.AfterFunc(spread(max(lost.Error.RetryDelay.AsDuration(), leastResend)), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.change(lost.JobId)
		})
	case codes.ResourceExhausted:
		for _, t := range p.follows[lost.JobId] {
			go p.watchByCall(t)
		}
	default:
		for _, t := range p.follows[lost.JobId] {
			t.fail(itemError(lost.GetError()))
		}
		delete(p.follows, lost.JobId)
	}
}

// forget is for a caller that waits no more.
func (p *Producer) forget(t *task) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave(t)
}

// submitByCall submits without the stream.
func (p *Producer) submitByCall(t *task) {
	for attempt := 0; ; attempt++ {
		ctx, cancel := context.WithTimeout(t.ctx, callTimeout)
		job, err := p.client(attempt).SubmitJob(ctx, t.request)
		cancel()
		if err == nil {
			p.mu.Lock()
			p.accept(t, job, nil)
			p.mu.Unlock()
			return
		}
		if err = p.pause(t.ctx, err); err != nil {
			t.fail(err)
			return
		}
	}
}

// watchByCall awaits the end of a job without the stream.
func (p *Producer) watchByCall(t *task) {
	for attempt := 0; ; attempt++ {
		err := watch(t.ctx, p.client(attempt), t.jobID, func(job *pb.Job) {
			if job.FinishedAt != nil {
				p.end(&pb.JobEnd{
					JobId: t.jobID, State: job.State, Result: job.Result, Failure: job.Failure,
				})
			}
		})
		if err == nil {
			return
		}
		if err = p.pause(t.ctx, err); err != nil {
			t.fail(err)
			return
		}
	}
}

// client returns the stubs of one server: of the next one with each attempt.
func (p *Producer) client(attempt int) pb.JobServiceClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[(p.target+attempt)%len(p.calls)]
}

// pause waits before a call is repeated; a server that hangs is no reason to give up.
func (p *Producer) pause(ctx context.Context, err error) error {
	if code := status.Code(err); ctx.Err() == nil && p.ctx.Err() == nil &&
		(code == codes.DeadlineExceeded || code == codes.Canceled) {
		err = status.Error(codes.Unavailable, err.Error())
	}
	return pause(ctx, err)
}

// itemError is what the call would have failed with if the item had been sent alone.
func itemError(e *pb.ItemError) error {
	if e == nil {
		return status.Error(codes.Unknown, "the server answered what this program does not know")
	}
	plain := status.New(codes.Code(e.Code), e.Message)
	detailed, err := plain.WithDetails(&errdetails.ErrorInfo{
		Reason: e.Reason.String()[len("ERROR_REASON_"):], Domain: "jobwire", Metadata: e.Metadata,
	})
	if err != nil {
		return plain.Err()
	}
	return detailed.Err()
}
