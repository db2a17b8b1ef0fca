// Calls an operation many times from many goroutines over one stream: call OPERATION JSON.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"jobwire-example/jobwire"
	pb "jobwire-example/jobwirev1"
)

func main() {
	targets := flag.String("targets", jobwire.DefaultTarget(), "servers of one store, by commas")
	queue := flag.String("queue", "default", "where to put the jobs")
	calls := flag.Int("calls", 1000, "how many")
	goroutines := flag.Int("goroutines", 50, "how many at once")
	timeout := flag.Duration("timeout", time.Minute, "for each call")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal(`usage: call [flags] OPERATION JSON, for example: call hello '{"name": "Ada"}'`)
	}
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	producer, err := jobwire.NewProducer(strings.Split(*targets, ",")...)
	if err != nil {
		log.Fatal(err)
	}
	spec := &pb.JobSpec{
		Operation: flag.Arg(0),
		Payload:   &pb.Payload{Kind: &pb.Payload_Json{Json: flag.Arg(1)}},
	}

	var wait sync.WaitGroup
	took := make([]time.Duration, *calls)
	next := make(chan int)
	began := time.Now()
	for range *goroutines {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for i := range next {
				ctx, cancel := context.WithTimeout(stopped, *timeout)
				sent := time.Now()
				end, err := producer.Call(ctx, *queue, spec)
				cancel()
				switch {
				case err != nil:
					log.Print(err)
				case end.State != pb.JobState_JOB_STATE_SUCCEEDED:
					log.Printf("%s %s: %s", end.JobId, end.State, end.GetFailure().GetMessage())
				default:
					took[i] = time.Since(sent)
				}
			}
		}()
	}
	for i := range *calls {
		next <- i
	}
	close(next)
	wait.Wait()
	rate := float64(*calls) / time.Since(began).Seconds()
	producer.Close()

	took = slices.DeleteFunc(took, func(t time.Duration) bool { return t == 0 })
	slices.Sort(took)
	fmt.Printf("%d of %d succeeded, %.0f a second", len(took), *calls, rate)
	if len(took) > 0 {
		fmt.Printf(", half of them within %v, all within %v", took[len(took)/2], took[len(took)-1])
	}
	fmt.Println()
	if len(took) < *calls {
		os.Exit(1)
	}
}
