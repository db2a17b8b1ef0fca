// A worker with two handlers: `hello` greets, and `sum` adds the numbers of its payload slowly,
// with progress.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"jobwire-example/jobwire"
)

func main() {
	target := flag.String("target", jobwire.DefaultTarget(), "the broker")
	queue := flag.String("queue", "default", "where to take jobs from")
	concurrency := flag.Int("concurrency", 100, "jobs at once")
	flag.Parse()

	worker := &jobwire.Worker{
		Target: *target, Queues: []string{*queue}, Concurrency: *concurrency,
		Grace: 30 * time.Second,
	}
	worker.Handle("hello", func(_ context.Context, job *jobwire.Job) (any, error) {
		var who struct {
			Name string `json:"name"`
		}
		if err := job.Payload(&who); err != nil {
			return nil, err
		}
		return fmt.Sprintf("Hello, %s! This is attempt %d, in Go.", who.Name, job.Attempt), nil
	})
	worker.Handle("sum", func(ctx context.Context, job *jobwire.Job) (any, error) {
		var numbers []float64
		if err := job.Payload(&numbers); err != nil {
			return nil, err
		}
		total := 0.0
		for i, number := range numbers {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(100 * time.Millisecond):
			}
			total += number
			job.Progress(float64(i+1)/float64(len(numbers)), fmt.Sprintf("%d added", i+1))
		}
		return total, nil
	})

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log.Printf("taking jobs of %s from %s", *queue, *target)
	if err := worker.Run(ctx); err != nil {
		log.Fatal(err)
	}
	log.Print("the worker has left")
}
