// The peer in Go: grpc-go with go-redis, both at their defaults. It serves Mark, Get and BatchGet.
//
// tests/setup.sh generates the package dyndatapb from the contract, and builds this.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "dyndata-bench-peer/dyndatapb"
)

const defaultTTL = 60 * time.Second

func main() {
	listen := flag.String("listen", "", "where to serve gRPC")
	redisURL := flag.String("redis-url", "redis://127.0.0.1:6379", "Redis to keep the data in")
	flag.Parse()

	options, err := redis.ParseURL(*redisURL)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterDynDataServer(server, &dynData{client: redis.NewClient(options)})
	log.Fatal(server.Serve(listener))
}

type dynData struct {
	pb.UnimplementedDynDataServer
	client *redis.Client
}

func (d *dynData) Mark(ctx context.Context, request *pb.MarkRequest) (*pb.MarkResponse, error) {
	var value any
	switch kind := request.Value.(type) {
	case *pb.MarkRequest_IntValue:
		value = kind.IntValue
	case *pb.MarkRequest_StringValue:
		value = "s:" + kind.StringValue
	case *pb.MarkRequest_BytesValue:
		value = append([]byte("b:"), kind.BytesValue...)
	default:
		return nil, status.Error(codes.InvalidArgument, "value missing")
	}
	ttl := defaultTTL
	if request.Ttl != nil {
		ttl = request.Ttl.AsDuration()
	}
	if err := d.client.Set(ctx, key(request.Id), value, ttl).Err(); err != nil {
		return nil, unavailable(err)
	}
	return &pb.MarkResponse{ExpireTime: timestamppb.New(time.Now().Add(ttl))}, nil
}

func (d *dynData) Get(ctx context.Context, request *pb.GetRequest) (*pb.GetResponse, error) {
	stored, err := d.client.Get(ctx, key(request.Id)).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return &pb.GetResponse{Entry: &pb.Entry{Id: request.Id}}, nil
	case err != nil:
		return nil, unavailable(err)
	}
	return &pb.GetResponse{Entry: entry(request.Id, stored)}, nil
}

func (d *dynData) BatchGet(
	ctx context.Context,
	request *pb.BatchGetRequest,
) (*pb.BatchGetResponse, error) {
	keys := make([]string, len(request.Ids))
	for index, id := range request.Ids {
		keys[index] = key(id)
	}
	values, err := d.client.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, unavailable(err)
	}
	entries := make([]*pb.Entry, len(values))
	for index, value := range values {
		if stored, marked := value.(string); marked {
			entries[index] = entry(request.Ids[index], stored)
		} else {
			entries[index] = &pb.Entry{Id: request.Ids[index]}
		}
	}
	return &pb.BatchGetResponse{Entries: entries}, nil
}

func key(id string) string {
	return "dyn_data/" + id
}

func entry(id, stored string) *pb.Entry {
	if number, err := strconv.ParseInt(stored, 10, 64); err == nil {
		return &pb.Entry{Id: id, Value: &pb.Entry_IntValue{IntValue: number}}
	}
	if bytes, tagged := strings.CutPrefix(stored, "b:"); tagged {
		return &pb.Entry{Id: id, Value: &pb.Entry_BytesValue{BytesValue: []byte(bytes)}}
	}
	if !utf8.ValidString(stored) {
		return &pb.Entry{Id: id, Value: &pb.Entry_BytesValue{BytesValue: []byte(stored)}}
	}
	text := strings.TrimPrefix(stored, "s:")
	return &pb.Entry{Id: id, Value: &pb.Entry_StringValue{StringValue: text}}
}

func unavailable(err error) error {
	return status.Error(codes.Unavailable, err.Error())
}
