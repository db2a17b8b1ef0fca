// asynq: `peer produce|work SOCKET`.
//
// The client has no bulk call, but may be used from many goroutines at once; the server runs many
// tasks at once. Completed tasks and their results are kept for a day (Task Retention).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
)

const (
	concurrency = 100
	submitters  = 50
	retention   = 24 * time.Hour
)

func say(line map[string]any) {
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func submit(client *asynq.Client, count int) {
	payload := []byte(strings.Repeat("x", 256))
	numbers := make(chan struct{}, count)
	for range count {
		numbers <- struct{}{}
	}
	close(numbers)
	var all sync.WaitGroup
	for range submitters {
		all.Add(1)
		go func() {
			defer all.Done()
			for range numbers {
				task := asynq.NewTask("noop", payload, asynq.Retention(retention))
				_, err := client.Enqueue(task)
				check(err)
			}
		}()
	}
	all.Wait()
}

func noop(_ context.Context, task *asynq.Task) error {
	_, err := task.ResultWriter().Write([]byte("done"))
	return err
}

func main() {
	role, path := os.Args[1], os.Args[2]
	redis := asynq.RedisClientOpt{Network: "unix", Addr: path, PoolSize: 2 * concurrency}
	lines := bufio.NewScanner(os.Stdin)
	if role == "produce" {
		client := asynq.NewClient(redis)
		say(map[string]any{"ready": true})
		for lines.Scan() {
			count, err := strconv.Atoi(lines.Text())
			check(err)
			began := time.Now()
			submit(client, count)
			say(map[string]any{"took_s": time.Since(began).Seconds()})
		}
		check(client.Close())
		return
	}
	server := asynq.NewServer(redis, asynq.Config{Concurrency: concurrency, LogLevel: asynq.WarnLevel})
	check(server.Start(asynq.HandlerFunc(noop)))
	say(map[string]any{"ready": true})
	for lines.Scan() {
	}
	server.Shutdown()
}
