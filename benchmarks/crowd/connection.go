package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// Wide open, so that no answer waits for the client.
	window = 1<<31 - 1
	// What a call may take beyond its deadline before it counts as unanswered: the clock of the
	// server began when it read the call.
	grace   = 20 * time.Millisecond
	sweep   = 10 * time.Millisecond
	buffers = 1 << 16
	// The largest frame that any server takes.
	frameBytes = 1 << 14
)

// A call that waits for its end.
type call struct {
	started time.Time
	code    string
	details []byte
	text    string
}

// One HTTP/2 connection.
type connection struct {
	mutex    sync.Mutex
	socket   net.Conn
	out      *bufio.Writer
	framer   *http2.Framer
	target   string
	method   string
	message  []byte
	headers  []byte // as they are sent for each call of the line
	calls    map[uint32]*call
	next     uint32
	seen     *tally
	waiting  int // to be started as others end
	deadline time.Duration
	allowed  int64 // bytes that the server takes on the connection
	held     int   // calls held back because it takes no more
}

func connect(target, method string, message []byte) *connection {
	socket, err := net.Dial("tcp", target)
	check(err)
	c := &connection{
		socket: socket, out: bufio.NewWriterSize(socket, buffers), target: target, method: method,
		message: message, calls: map[uint32]*call{}, next: 1, allowed: 65_535,
	}
	_, err = c.out.WriteString(http2.ClientPreface)
	check(err)
	c.framer = http2.NewFramer(c.out, bufio.NewReaderSize(socket, buffers))
	c.framer.SetReuseFrames()
	// No table of headers that were sent before, so that a call's are the same bytes each time.
	check(c.framer.WriteSettings(
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: window},
		http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0},
	))
	check(c.framer.WriteWindowUpdate(0, window-65_535))
	check(c.out.Flush())
	go c.read()
	go c.sweep()
	return c
}

// begin prepares for the calls of a line, and starts the first of them.
func (c *connection) begin(seen *tally, total, inFlight int, deadline time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.seen, c.deadline = seen, deadline
	c.headers = c.encoded(deadline)
	first := min(total, inFlight)
	c.waiting = total - first
	c.send(first)
	check(c.out.Flush())
}

// start starts calls.
func (c *connection) start(count int) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.send(count)
	check(c.out.Flush())
}

func (c *connection) encoded(deadline time.Duration) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSizeLimit(0)
	add := func(name, value string) {
		check(encoder.WriteField(hpack.HeaderField{Name: name, Value: value}))
	}
	add(":method", "POST")
	add(":scheme", "http")
	add(":path", c.method)
	add(":authority", c.target)
	add("te", "trailers")
	add("content-type", "application/grpc")
	if deadline > 0 {
		add("grpc-timeout", fmt.Sprintf("%dm", deadline.Milliseconds()))
	}
	return block.Bytes()
}

func (c *connection) send(count int) {
	now := time.Now()
	for range count {
		if c.allowed < int64(len(c.message)) {
			c.held++
			continue
		}
		c.allowed -= int64(len(c.message))
		stream := c.next
		c.next += 2
		c.calls[stream] = &call{started: now}
		check(c.framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: stream, BlockFragment: c.headers, EndHeaders: true,
		}))
		for from := 0; from < len(c.message); from += frameBytes {
			to := min(from+frameBytes, len(c.message))
			check(c.framer.WriteData(stream, to == len(c.message), c.message[from:to]))
		}
	}
}

func (c *connection) read() {
	decoder := hpack.NewDecoder(0, nil)
	for {
		got, err := c.framer.ReadFrame()
		if err == io.EOF {
			return
		}
		check(err)
		c.take(got, decoder)
	}
}

func (c *connection) take(got http2.Frame, decoder *hpack.Decoder) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	switch it := got.(type) {
	case *http2.SettingsFrame:
		if !it.IsAck() {
			check(c.framer.WriteSettingsAck())
			check(c.out.Flush())
		}
	case *http2.PingFrame:
		if !it.IsAck() {
			check(c.framer.WritePing(true, it.Data))
			check(c.out.Flush())
		}
	case *http2.WindowUpdateFrame:
		if it.StreamID == 0 {
			c.allowed += int64(it.Increment)
			held := c.held
			c.held = 0
			c.send(held)
			check(c.out.Flush())
		}
	case *http2.HeadersFrame:
		c.headersOf(it, decoder)
	case *http2.RSTStreamFrame:
		c.end(it.StreamID)
	}
}

func (c *connection) headersOf(it *http2.HeadersFrame, decoder *hpack.Decoder) {
	one := c.calls[it.StreamID]
	decoder.SetEmitFunc(func(field hpack.HeaderField) {
		if one == nil {
			return
		}
		switch field.Name {
		case "grpc-status":
			one.code = field.Value
		case "grpc-message":
			one.text = field.Value
		case "grpc-status-details-bin":
			one.details, _ = base64.RawStdEncoding.DecodeString(strings.TrimRight(field.Value, "="))
		}
	})
	_, err := decoder.Write(it.HeaderBlockFragment())
	check(err)
	check(decoder.Close())
	if it.StreamEnded() {
		c.end(it.StreamID)
	}
}

func (c *connection) end(stream uint32) {
	one := c.calls[stream]
	if one == nil {
		return
	}
	delete(c.calls, stream)
	now := time.Now()
	what := other
	switch one.code {
	case "0":
		what = accepted
	case "1":
		what = turnedAway
	case "4":
		what = late
	case "8", "14":
		what = refusedBare
		if bytes.Contains(one.details, []byte("google.rpc.RetryInfo")) {
			what = refused
		}
	}
	c.seen.add(what, one.started, now, one.code+" "+one.text)
	if c.waiting > 0 {
		c.waiting--
		c.send(1)
		check(c.out.Flush())
	}
}

// sweep gives up calls whose deadline is over.
func (c *connection) sweep() {
	for range time.Tick(sweep) {
		c.mutex.Lock()
		now := time.Now()
		for stream, one := range c.calls {
			if c.deadline > 0 && now.Sub(one.started) > c.deadline+grace {
				delete(c.calls, stream)
				check(c.framer.WriteRSTStream(stream, http2.ErrCodeCancel))
				c.seen.add(late, one.started, now, "")
			}
		}
		check(c.out.Flush())
		c.mutex.Unlock()
	}
}
