// A client that openapi-generator generated: a call, a problem, the regions.
//
// FLY_RPC_URL names the instance to ask; FLY_RPC_TOKEN is a client's token, where the instance wants one.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	flyrpc "fly-rpc.example/client"
)

func main() {
	configuration := flyrpc.NewConfiguration()
	configuration.Servers = flyrpc.ServerConfigurations{{URL: os.Getenv("FLY_RPC_URL")}}
	client := flyrpc.NewAPIClient(configuration)
	ctx := context.WithValue(context.Background(), flyrpc.ContextAccessToken, os.Getenv("FLY_RPC_TOKEN"))

	upcase := flyrpc.NewCallRequest("upcase", "String")
	upcase.SetArgs([]any{"fly"})
	reply, _, err := client.RpcAPI.CallFunction(ctx, "syd").CallRequest(*upcase).Execute()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("result %v from %s\n", reply.Result, reply.Meta.GetRegion())

	problem := problemOf(client.RpcAPI.CallFunction(ctx, "mars").CallRequest(*upcase))
	fmt.Printf("problem %s executed %s\n", problem.Code, problem.Executed)

	raise := flyrpc.NewCallRequest("raise", "Kernel")
	raise.SetArgs([]any{"boom"})
	failed := problemOf(client.RpcAPI.CallFunction(ctx, "syd").CallRequest(*raise))
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
}

func problemOf(request flyrpc.ApiCallFunctionRequest) flyrpc.Problem {
	_, _, err := request.Execute()
	var refused *flyrpc.GenericOpenAPIError
	if !errors.As(err, &refused) {
		log.Fatal(err)
	}
	return refused.Model().(flyrpc.Problem)
}
