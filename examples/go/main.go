// Mark, Get, BatchGet and Increment, an absent id, and the reason of an error. gRPC retries calls by
// itself, except an Increment.
//
//	go generate    # needs buf: npm install @bufbuild/buf
//	. ../../.tools/examples/env    # see ../serve.sh
//	go run .
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "dyndata-example/dyndatapb"
)

//go:generate buf generate

const (
	namespace = "examples"
	// The deadline of one call, including its retries.
	deadline = 2 * time.Second
	// Names the calls that may be repeated. The writes among them are safe as long as each id has one
	// writer. Increment and MarkIf are left out: if a connection breaks, a retry could count twice.
	//
	// RESOURCE_EXHAUSTED is here for an overloaded server, which names a time in
	// grpc-retry-pushback-ms. gRPC waits for that long instead of its backoff.
	serviceConfig = `{"methodConfig": [{
		"name": [
			{"service": "dyndata.v1.DynData", "method": "Mark"},
			{"service": "dyndata.v1.DynData", "method": "Get"},
			{"service": "dyndata.v1.DynData", "method": "BatchGet"},
			{"service": "dyndata.v1.DynData", "method": "BatchMark"},
			{"service": "dyndata.v1.DynData", "method": "Unmark"},
			{"service": "dyndata.v1.DynData", "method": "BatchUnmark"},
			{"service": "dyndata.v1.DynData", "method": "Touch"}
		],
		"retryPolicy": {
			"maxAttempts": 4,
			"initialBackoff": "0.1s",
			"maxBackoff": "1s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
		}
	}]}`
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", explain(err))
		os.Exit(1)
	}
}

func run() error {
	client, err := dial()
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	marked, err := client.Mark(ctx, &pb.MarkRequest{
		Namespace: namespace,
		Id:        "alice",
		Value:     &pb.MarkRequest_IntValue{IntValue: 100},
		Ttl:       durationpb.New(30 * time.Second),
	})
	if err != nil {
		return err
	}
	fmt.Println("alice is marked until", marked.ExpireTime.AsTime().Format(time.RFC3339Nano))

	ctx, cancel = context.WithTimeout(context.Background(), deadline)
	defer cancel()
	got, err := client.Get(ctx, &pb.GetRequest{Namespace: namespace, Id: "alice"})
	if err != nil {
		return err
	}
	fmt.Println("Get:", describe(got.Entry))

	ctx, cancel = context.WithTimeout(context.Background(), deadline)
	defer cancel()
	batch, err := client.BatchGet(ctx, &pb.BatchGetRequest{
		Namespace: namespace,
		Ids:       []string{"alice", "bob"},
	})
	if err != nil {
		return err
	}
	var entries []string
	for _, entry := range batch.Entries {
		entries = append(entries, describe(entry))
	}
	fmt.Println("BatchGet:", strings.Join(entries, ", "))

	ctx, cancel = context.WithTimeout(context.Background(), deadline)
	defer cancel()
	counted, err := client.Increment(ctx, &pb.IncrementRequest{
		Namespace: namespace,
		Id:        "visits",
		Ttl:       durationpb.New(30 * time.Second),
	})
	if err != nil {
		return err
	}
	fmt.Println("Increment: visits is", counted.Value)

	ctx, cancel = context.WithTimeout(context.Background(), deadline)
	defer cancel()
	_, err = client.Get(ctx, &pb.GetRequest{Namespace: namespace, Id: ""})
	if err == nil {
		return errors.New("an empty id was accepted")
	}
	fmt.Println("refused:", explain(err))
	return nil
}

func dial() (pb.DynDataClient, error) {
	authorities, err := credentials.NewClientTLSFromFile(os.Getenv("DYNDATA_CLIENT_TLS_CA"), "")
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(os.Getenv("DYNDATA_TOKEN_FILE"))
	if err != nil {
		return nil, err
	}
	// The channel connects with the first call, and reconnects by itself.
	channel, err := grpc.NewClient(
		strings.TrimPrefix(os.Getenv("DYNDATA_ADDR"), "https://"),
		grpc.WithTransportCredentials(authorities),
		grpc.WithPerRPCCredentials(bearer(strings.TrimSpace(string(token)))),
		grpc.WithDefaultServiceConfig(serviceConfig),
	)
	if err != nil {
		return nil, err
	}
	return pb.NewDynDataClient(channel), nil
}

// bearer is a token that is sent with each call, and only over TLS.
type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// describe returns the value of an id as text. An entry without a value means that the id is not
// marked, which is not an error.
func describe(entry *pb.Entry) string {
	switch value := entry.Value.(type) {
	case *pb.Entry_IntValue:
		return fmt.Sprint(entry.Id, " is ", value.IntValue)
	case *pb.Entry_StringValue:
		return fmt.Sprint(entry.Id, " is ", value.StringValue)
	case *pb.Entry_BytesValue:
		return fmt.Sprintf("%s is %x", entry.Id, value.BytesValue)
	default:
		return entry.Id + " is not marked"
	}
}

// explain returns the code, the reason (for programs) and the message (for people).
func explain(err error) string {
	call, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	for _, detail := range call.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return fmt.Sprintf("%s (%s): %s", call.Code(), info.Reason, call.Message())
		}
	}
	// An error of gRPC itself, for example because it cannot reach the server.
	return fmt.Sprintf("%s: %s", call.Code(), call.Message())
}
