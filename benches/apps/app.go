// An app with one function, which returns its first argument: app PORT|SOCKET.
package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
)

func main() {
	network, address := "unix", os.Args[1]
	if address[0] != '/' {
		network, address = "tcp", "127.0.0.1:"+address
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		panic(err)
	}
	panic(http.Serve(listener, http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		response.Header().Set("content-type", "application/json")
		if request.Header.Get("authorization") != "Bearer "+os.Getenv("RPC_APP_TOKEN") {
			response.WriteHeader(401)
		} else if request.Method == "GET" {
			io.WriteString(response, `{"functions":{"Bench.echo":{}}}`)
		} else {
			var body struct{ Args []json.RawMessage }
			json.NewDecoder(request.Body).Decode(&body)
			response.Write(body.Args[0])
		}
	})))
}
