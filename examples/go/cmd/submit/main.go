// Submits one job and watches it to its end: submit OPERATION JSON.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"jobwire-example/jobwire"
	pb "jobwire-example/jobwirev1"
)

func main() {
	target := flag.String("target", jobwire.DefaultTarget(), "the broker")
	queue := flag.String("queue", "default", "where to put it")
	timeout := flag.Duration("timeout", time.Minute, "for all of it")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal(`usage: submit [flags] OPERATION JSON, for example: submit sum '[1, 2, 3]'`)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	spec := &pb.JobSpec{
		Operation: flag.Arg(0),
		Payload:   &pb.Payload{Kind: &pb.Payload_Json{Json: flag.Arg(1)}},
	}
	var last *pb.Job
	err := jobwire.SubmitAndWatch(ctx, *target, *queue, spec, func(job *pb.Job) {
		last = job
		fmt.Fprintf(os.Stderr, "%s %s %3.0f%% %s\n", job.JobId, job.State,
			100*job.GetProgress().GetFraction(), job.GetProgress().GetMessage())
	})
	if err != nil {
		log.Fatal(err)
	}
	if last.State != pb.JobState_JOB_STATE_SUCCEEDED {
		log.Fatalf("%s: %s", last.State, last.GetFailure().GetMessage())
	}
	fmt.Println(last.GetResult().GetJson())
}
