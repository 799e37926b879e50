// A client that openapi-generator generated: a call, a problem, the regions, the functions of an app.
//
// FLY_RPC_URL names the instance to ask; FLY_RPC_TOKEN is a client's token, where the instance wants one. NOTES_URL names an
// instance beside the app.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"

	flyrpc "fly-rpc.example/client"
)

func main() {
	client := clientOf(os.Getenv("FLY_RPC_URL"))
	ctx := context.WithValue(context.Background(), flyrpc.ContextAccessToken, os.Getenv("FLY_RPC_TOKEN"))

	upcase := flyrpc.NewCallRequest("upcase", "String")
	upcase.SetArgs([]any{"fly"})
	reply, _, err := client.RpcAPI.CallFunction(ctx, "syd").CallRequest(*upcase).Execute()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("result %v from %s\n", reply.Result, reply.Meta.GetRegion())

	problem := problemOf[flyrpc.Reply](client.RpcAPI.CallFunction(ctx, "mars").CallRequest(*upcase))
	fmt.Printf("problem %s executed %s\n", problem.Code, problem.Executed)

	raise := flyrpc.NewCallRequest("raise", "Kernel")
	raise.SetArgs([]any{"boom"})
	failed := problemOf[flyrpc.Reply](client.RpcAPI.CallFunction(ctx, "syd").CallRequest(*raise))
	failure := failed.Error.Get()
	fmt.Printf("error %s: %s executed %s\n", failure.Kind, failure.Message, failed.Executed)

	cluster, _, err := client.ClusterAPI.ListRegions(ctx).Execute()
	if err != nil {
		log.Fatal(err)
	}
	var names []string
	for _, region := range cluster.Regions {
		names = append(names, region.Region)
	}
	fmt.Println("regions", strings.Join(names, " "))

	notes := clientOf(os.Getenv("NOTES_URL")).FunctionsAPI
	milk := flyrpc.NotesCreateArgs{Title: "Milk", Tags: []string{"dairy", "cold"}}
	created, _, err := notes.NotesCreate(ctx, "syd").NotesCreateArgs(milk).Execute()
	if err != nil {
		log.Fatal(err)
	}
	counted, _, err := notes.NotesCount(ctx, "iad").Execute()
	if err != nil {
		log.Fatal(err)
	}
	note := created.Result
	fmt.Printf("note %d %s from %s, %d in %s\n", note.Number, note.Title, created.Meta.GetRegion(), counted.Result,
		counted.Meta.GetRegion())

	nameless := flyrpc.NotesCreateArgs{Tags: []string{}}
	untitled := problemOf[flyrpc.NotesCreateReply](notes.NotesCreate(ctx, "syd").NotesCreateArgs(nameless))
	failure = untitled.Error.Get()
	fmt.Printf("error %s: %s executed %s\n", failure.Kind, failure.Message, untitled.Executed)
}

func clientOf(url string) *flyrpc.APIClient {
	configuration := flyrpc.NewConfiguration()
	configuration.Servers = flyrpc.ServerConfigurations{{URL: url}}
	return flyrpc.NewAPIClient(configuration)
}

// A call, whose function has a type of its own.
type request[Reply any] interface {
	Execute() (*Reply, *http.Response, error)
}

func problemOf[Reply any](call request[Reply]) flyrpc.Problem {
	_, _, err := call.Execute()
	var refused *flyrpc.GenericOpenAPIError
	if !errors.As(err, &refused) {
		log.Fatal(err)
	}
	return refused.Model().(flyrpc.Problem)
}
