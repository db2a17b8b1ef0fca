// crowd: many producers at once, `crowd TARGET CONNECTIONS METHOD REQUEST`.
//
// It makes unary gRPC calls that all carry the same request (base64), and reads two kinds of lines:
// `best CALLS IN_FLIGHT` makes so many calls, each once another was answered; `offer CALLS RATE
// DEADLINE_S` starts them at that rate, whatever becomes of others. Each line is answered by one of
// JSON.
//
// It speaks HTTP/2 frames and no more: a usual client takes half of a core at these rates, and then
// it is the client that is measured on a machine of two.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Counts by outcome.
type outcome int

const (
	accepted    outcome = iota
	refused             // RESOURCE_EXHAUSTED or UNAVAILABLE with a RetryInfo
	refusedBare         // the same without
	turnedAway          // CANCELLED, which nobody here asked for: by gRPC, unseen by the server's code
	late                // no answer within the deadline
	other
	outcomes
)

var names = [outcomes]string{"accepted", "refused", "refused_bare", "turned_away", "late", "other"}

// What became of the calls of one line.
type tally struct {
	mutex        sync.Mutex
	began        time.Time
	counts       [outcomes]int
	longest      [outcomes]time.Duration
	lastAccepted time.Duration
	why          string
	left         int
	done         chan struct{}
}

func (t *tally) add(what outcome, started, now time.Time, why string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.counts[what]++
	t.longest[what] = max(t.longest[what], now.Sub(started))
	if what == accepted {
		t.lastAccepted = now.Sub(t.began)
	} else if what == other {
		t.why = why
	}
	if t.left--; t.left == 0 {
		close(t.done)
	}
}

// frame returns a gRPC message: not compressed, its length, the message.
func frame(message []byte) []byte {
	framed := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	return append(framed, message...)
}

type crowd struct{ connections []*connection }

func (c *crowd) best(calls, inFlight int, seen *tally) {
	lines := make([]int, len(c.connections))
	for at := range inFlight {
		lines[at%len(lines)]++
	}
	shares := make([]int, len(c.connections))
	for at := range calls {
		shares[at%len(shares)]++
	}
	for at, one := range c.connections {
		one.begin(seen, shares[at], lines[at], 0)
	}
	<-seen.done
}

// offer returns how long it took to start all calls.
func (c *crowd) offer(calls int, rate float64, deadline time.Duration, seen *tally) time.Duration {
	const tick = 5 * time.Millisecond
	for _, one := range c.connections {
		one.begin(seen, 0, 0, deadline)
	}
	started, turn := 0, 0
	for started < calls {
		due := min(calls, int(time.Since(seen.began).Seconds()*rate)+1)
		if due > started {
			// Whole groups go to one connection, as from producers that send in bursts.
			group := (due - started + len(c.connections) - 1) / len(c.connections)
			for started < due {
				count := min(group, due-started)
				c.connections[turn%len(c.connections)].start(count)
				started += count
				turn++
			}
		}
		time.Sleep(tick)
	}
	offering := time.Since(seen.began)
	<-seen.done
	return offering
}

func (c *crowd) do(line string) map[string]any {
	words := strings.Fields(line)
	calls, err := strconv.Atoi(words[1])
	check(err)
	number, err := strconv.ParseFloat(words[2], 64)
	check(err)
	seen := &tally{began: time.Now(), left: calls, done: make(chan struct{})}
	said := map[string]any{}
	if words[0] == "best" {
		c.best(calls, int(number), seen)
		said["offering_s"] = time.Since(seen.began).Seconds()
	} else {
		deadline, err := strconv.ParseFloat(words[3], 64)
		check(err)
		length := time.Duration(deadline * float64(time.Second))
		said["offering_s"] = c.offer(calls, number, length, seen).Seconds()
	}
	longest := map[string]float64{}
	for at, name := range names {
		said[name] = seen.counts[at]
		longest[name] = seen.longest[at].Seconds()
	}
	said["longest_s"] = longest
	said["took_s"] = seen.lastAccepted.Seconds()
	said["why"] = seen.why
	return said
}

func say(line map[string]any) {
	text, err := json.Marshal(line)
	check(err)
	fmt.Println(string(text))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	count, err := strconv.Atoi(os.Args[2])
	check(err)
	request, err := base64.StdEncoding.DecodeString(os.Args[4])
	check(err)
	all := &crowd{}
	for range count {
		all.connections = append(all.connections, connect(os.Args[1], os.Args[3], frame(request)))
	}
	say(map[string]any{"ready": true})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		say(all.do(lines.Text()))
	}
}
