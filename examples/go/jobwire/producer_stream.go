package jobwire

import (
	"context"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "jobwire-example/jobwirev1"
)

const (
	openTimeout = 2 * time.Second
	silence     = 1500 * time.Millisecond // before the server is asked, and once more before it is left
	mostGap     = time.Minute             // between attempts to open a stream where calls work
	// Above this many unanswered frames submissions gather for the next one.
	frameWindow = 4
	// The contract's and the server's, for one frame.
	maxFrameBytes = 1 << 20
)

var pings = keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}

// produceStream is one open stream.
type produceStream struct {
	conn   *grpc.ClientConn
	calls  grpc.BidiStreamingClient[pb.ProduceRequest, pb.ProduceResponse]
	cancel context.CancelFunc
	opened *pb.ProducerOpened
	beat   time.Duration
	began  time.Time
	wake   chan struct{} // something to send
	drain  chan struct{} // closed: the server asks for another stream
	over   chan struct{} // closed: it has ended

	// Guarded by the producer's lock.
	sent       map[int64][]*task // what each unanswered frame carried
	unanswered int               // submissions
	sequence   int64
	heard      time.Time // when the server was last heard from, or began to owe an answer
	asked      time.Time // whether it works; zero: it was heard since
	ask        bool      // the question is still to be sent
}

// converse keeps a stream open until the producer is closed.
func (p *Producer) converse() {
	defer close(p.done)
	var pause time.Duration
	for p.ctx.Err() == nil {
		s, err := p.open()
		if err != nil {
			most := mostWait
			if p.byCalls { // only this goroutine writes it
				most = mostGap
			}
			pause = min(max(2*pause, leastWait), most)
			log.Printf("no producer's stream, trying again in %v: %v", pause, err)
			p.sleep(pause)
			continue
		}
		select {
		case <-s.drain:
		case <-s.over:
		case <-p.ctx.Done():
		}
		if pause = min(max(2*pause, leastWait), mostWait); time.Since(s.began) >= steady {
			pause = 0
		}
		p.sleep(pause)
	}
	p.mu.Lock()
	left := []*produceStream{}
	for s := range p.streams {
		left = append(left, s)
		s.hasNews() // its writer ends our side
	}
	p.mu.Unlock()
	for _, s := range left {
		select {
		case <-s.over:
		case <-time.After(leaveTimeout):
			s.cancel()
		}
	}
}

// open makes a stream the current one: at the next server with each attempt, on a new connection.
func (p *Producer) open() (*produceStream, error) {
	var err error
	noStreams := true
	for range p.targets {
		p.mu.Lock()
		p.target = (p.target + 1) % len(p.targets)
		target := p.targets[p.target]
		p.mu.Unlock()
		var s *produceStream
		if s, err = openAt(p.ctx, target); err == nil {
			p.adopt(s)
			return s, nil
		}
		code := status.Code(err)
		noStreams = noStreams && (code == codes.Unimplemented || code == codes.DeadlineExceeded)
	}
	if noStreams && p.ctx.Err() == nil {
		p.turnToCalls()
	}
	return nil, err
}

func openAt(ctx context.Context, target string) (*produceStream, error) {
	conn, err := dial(target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // Close leaves it politely
	s := &produceStream{
		conn: conn, cancel: cancel, began: time.Now(), wake: make(chan struct{}, 1),
		drain: make(chan struct{}), over: make(chan struct{}), sent: map[int64][]*task{},
	}
	patience := time.AfterFunc(openTimeout, cancel)
	first, err := s.greet(ctx)
	switch {
	case !patience.Stop():
		err = status.Error(codes.DeadlineExceeded, "no answer to the opening")
	case err == nil && first.Opened == nil:
		err = status.Error(codes.Unavailable, "the first frame is no answer to the opening")
	}
	if err != nil {
		cancel()
		_ = conn.Close()
		return nil, err
	}
	s.opened, s.beat, s.heard = first.Opened, first.Opened.HeartbeatInterval.AsDuration(), time.Now()
	return s, nil
}

func (s *produceStream) greet(ctx context.Context) (*pb.ProduceResponse, error) {
	var err error
	if s.calls, err = pb.NewJobServiceClient(s.conn).Produce(ctx); err != nil {
		return nil, err
	}
	// A failed Send has no status; Recv has it.
	_ = s.calls.Send(&pb.ProduceRequest{Open: &pb.ProducerOpening{Client: "jobwire-go-example"}})
	return s.calls.Recv()
}

// adopt submits on a stream from now on, and names all follows to it.
func (p *Producer) adopt(s *produceStream) {
	p.mu.Lock()
	before := p.current
	p.current, p.byCalls = s, false
	p.streams[s] = struct{}{}
	for jobID := range p.follows {
		p.changed[jobID] = struct{}{}
	}
	p.mu.Unlock()
	if before != nil {
		before.hasNews() // it may be left once it owes no answer
	}
	s.hasNews()
	go p.write(s)
	go p.read(s)
	go p.listen(s)
}

// turnToCalls has submissions and follows go by calls until a stream opens.
func (p *Producer) turnToCalls() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byCalls {
		return
	}
	p.byCalls, p.current = true, nil
	for _, t := range p.waiting {
		go p.submitByCall(t)
	}
	p.waiting = nil
	for _, tasks := range p.follows {
		for _, t := range tasks {
			go p.watchByCall(t)
		}
	}
}

// read takes what the server sends until the stream ends.
func (p *Producer) read(s *produceStream) {
	var err error
	for {
		var frame *pb.ProduceResponse
		if frame, err = s.calls.Recv(); err != nil {
			break
		}
		p.mu.Lock()
		s.heard, s.asked, s.ask = time.Now(), time.Time{}, false
		p.mu.Unlock()
		for _, answer := range frame.Answers {
			p.answer(s, answer)
		}
		for _, end := range frame.Ends {
			p.end(end)
		}
		for _, lost := range frame.LostFollows {
			p.lose(lost)
		}
		if frame.Drain != nil && !isClosed(s.drain) {
			log.Printf("moving to another stream: %s", frame.Drain.Reason)
			close(s.drain)
		}
	}
	if err != io.EOF {
		log.Printf("the producer's stream is lost: %v", err)
	}
	s.cancel()
	_ = s.conn.Close()
	close(s.over)
	p.takeBack(s)
}

// answer handles the answer to one frame.
func (p *Producer) answer(s *produceStream, answer *pb.ProduceAnswer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	tasks := s.sent[answer.Sequence]
	delete(s.sent, answer.Sequence)
	s.unanswered -= len(tasks)
	for i, t := range tasks {
		t.breaks = 0
		var result *pb.SubmitResult
		if i < len(answer.Results) {
			result = answer.Results[i]
		}
		accepted, refused := result.GetAccepted(), result.GetError()
		code := codes.Code(refused.GetCode())
		switch {
		case accepted != nil:
			p.accept(t, accepted, s)
		case code == codes.Unavailable,
			code == codes.ResourceExhausted && refused.RetryDelay != nil:
			p.sendLater(t, refused.RetryDelay.AsDuration())
		default:
			t.fail(itemError(refused))
		}
	}
	s.hasNews() // there is room for the next frame
}

// takeBack has what an ended stream left unanswered sent again, in its order.
func (p *Producer) takeBack(s *produceStream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.streams, s)
	if p.current == s {
		p.current = nil
	}
	again, waiting := []*task{}, p.waiting
	for _, sequence := range slices.Sorted(maps.Keys(s.sent)) {
		again = append(again, s.sent[sequence]...)
	}
	p.waiting = nil
	for _, t := range again {
		t.breaks++
		p.send(t)
	}
	p.waiting = append(p.waiting, waiting...)
}

// listen asks a server that is silent whether it works, and leaves one that does not answer.
func (p *Producer) listen(s *produceStream) {
	ticks := time.NewTicker(silence / 6)
	defer ticks.Stop()
	for {
		select {
		case <-s.over:
			return
		case <-ticks.C:
		}
		p.mu.Lock()
		patience := s.beat + silence
		if len(s.sent) > 0 {
			patience = silence
		}
		switch {
		case s.asked.IsZero() && time.Since(s.heard) >= patience:
			s.asked, s.ask = time.Now(), true
			s.hasNews()
		case !s.asked.IsZero() && time.Since(s.asked) >= silence:
			log.Printf("%s is silent", s.conn.Target())
			s.cancel()
		}
		p.mu.Unlock()
	}
}

// write sends one frame at a time. Whatever comes up meanwhile goes into the next one.
func (p *Producer) write(s *produceStream) {
	beat := time.NewTimer(s.beat)
	defer beat.Stop()
	for {
		frame, last := p.next(s)
		if last {
			_ = s.calls.CloseSend()
			return
		}
		if frame == nil {
			select {
			case <-s.wake:
				continue
			case <-s.over:
				return
			case <-beat.C:
				frame = &pb.ProduceRequest{} // a sign of life
			}
		}
		if s.calls.Send(frame) != nil {
			return // Recv says why
		}
		beat.Reset(s.beat)
	}
}

// next returns what there is to send, nil if there is nothing, and whether nothing comes any more.
func (p *Producer) next(s *produceStream) (*pb.ProduceRequest, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || isClosed(s.drain) && p.current != s && len(s.sent) == 0 {
		return nil, true
	}
	frame, tasks := &pb.ProduceRequest{}, []*task(nil)
	if p.current == s {
		tasks = p.gather(s, frame)
	}
	if len(tasks) > 0 && len(s.sent) == 0 && s.asked.IsZero() {
		s.heard = time.Now() // it owed nothing until now
	}
	if len(tasks) > 0 || s.ask {
		s.sequence++
		frame.Sequence, s.ask = s.sequence, false
		s.sent[s.sequence] = tasks
		s.unanswered += len(tasks)
	}
	if frame.Sequence == 0 && len(frame.Follows)+len(frame.Unfollows) == 0 {
		return nil, false
	}
	return frame, false
}

// gather fills a frame with submissions and follows; the lock is held.
func (p *Producer) gather(s *produceStream, frame *pb.ProduceRequest) []*task {
	for jobID := range p.changed {
		if len(p.follows[jobID]) > 0 {
			frame.Follows = append(frame.Follows, &pb.Follow{JobId: jobID})
		} else {
			frame.Unfollows = append(frame.Unfollows, jobID)
		}
		delete(p.changed, jobID)
		if len(frame.Follows) == maxItems || len(frame.Unfollows) == maxItems {
			break
		}
	}
	if len(s.sent) >= frameWindow {
		return nil
	}
	room := min(maxItems, int(s.opened.MaxUnanswered)-s.unanswered)
	tasks, bytes := []*task{}, 0
	for len(p.waiting) > 0 && len(tasks) < room {
		t := p.waiting[0]
		if bytes += t.size; bytes > maxFrameBytes && len(tasks) > 0 {
			break
		}
		p.waiting = p.waiting[1:]
		if t.ctx.Err() != nil {
			continue // its caller waits no more
		}
		submission := &pb.Submission{Request: t.request}
		if t.follow {
			submission.Follow = &pb.Follow{}
		}
		tasks = append(tasks, t)
		frame.Submissions = append(frame.Submissions, submission)
	}
	return tasks
}

// hasNews has the current stream's writer look for what to send; the lock is held.
func (p *Producer) hasNews() {
	if p.current != nil {
		p.current.hasNews()
	}
}

func (s *produceStream) hasNews() {
	select {
	case s.wake <- struct{}{}:
	default: // it is signalled already
	}
}

// sleep waits, for less if the producer is closed.
func (p *Producer) sleep(pause time.Duration) {
	if pause == 0 {
		return
	}
	select {
	case <-time.After(spread(pause)):
	case <-p.ctx.Done():
	}
}

// spread makes waits that begin together end apart; none ends early.
func spread(wait time.Duration) time.Duration { return wait + rand.N(wait/2+1) }

func isClosed(signal <-chan struct{}) bool {
	select {
	case <-signal:
		return true
	default:
		return false
	}
}
