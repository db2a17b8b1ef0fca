package jobwire

import (
	"context"
	"crypto/rand"
	"math/big"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "jobwire-example/jobwirev1"
)

// DefaultTarget is JOBWIRE_TARGET, or the address where `jobwire serve` listens by default.
func DefaultTarget() string {
	if target := os.Getenv("JOBWIRE_TARGET"); target != "" {
		return target
	}
	return "127.0.0.1:50051"
}

// NewJobID makes an id. With an id made before the first call, a submission can be repeated without
// making a second job.
func NewJobID(queue string) string {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	random, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 80)) // never fails
	number := new(big.Int).Lsh(big.NewInt(time.Now().UnixMilli()), 80)
	number.Or(number, random)
	ulid := make([]byte, 26)
	for i := range ulid {
		shifted := new(big.Int).Rsh(number, uint(125-5*i))
		ulid[i] = alphabet[shifted.Uint64()&31]
	}
	return queue + "-" + string(ulid)
}

// SubmitAndWatch submits a job and calls seen with it at every change, until it has ended. It
// survives restarts of the broker for as long as ctx allows.
func SubmitAndWatch(
	ctx context.Context, target, queue string, spec *pb.JobSpec, seen func(*pb.Job),
) error {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := pb.NewJobServiceClient(conn)
	id := NewJobID(queue)
	for {
		_, err = client.SubmitJob(ctx, &pb.SubmitJobRequest{Queue: queue, Spec: spec, JobId: id})
		if err == nil {
			break
		}
		if err = pause(ctx, err); err != nil {
			return err
		}
	}
	revision := int64(0)
	for {
		err = watch(ctx, client, id, func(job *pb.Job) {
			// The first answer of a new watch may be a state that was seen before.
			if job.Revision > revision {
				revision = job.Revision
				seen(job)
			}
		})
		if err == nil {
			return nil
		}
		if err = pause(ctx, err); err != nil {
			return err
		}
	}
}

func watch(ctx context.Context, client pb.JobServiceClient, id string, seen func(*pb.Job)) error {
	answers, err := client.WatchJob(ctx, &pb.WatchJobRequest{JobId: id})
	if err != nil {
		return err
	}
	for {
		answer, err := answers.Recv()
		if err != nil {
			return err
		}
		if job := answer.GetJob(); job != nil {
			seen(job)
			if job.FinishedAt != nil { // also in states that a newer server has
				return nil
			}
		}
	}
}

// pause waits before a repeat; it returns the error if repeating would change nothing.
func pause(ctx context.Context, err error) error {
	if status.Code(err) != codes.Unavailable && status.Code(err) != codes.ResourceExhausted {
		return err
	}
	select {
	case <-time.After(300 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return err
	}
}
