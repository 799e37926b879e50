package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"time"
)

type object = map[string]any

func call(region, module, function string, args ...any) any { // through the instance beside this app
	body, _ := json.Marshal(object{"module": module, "function": function, "args": args})
	request, _ := http.NewRequest("POST", os.Getenv("FLY_RPC_URL")+"/rpc/"+region, bytes.NewReader(body))
	request.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + os.Getenv("FLY_RPC_TOKEN")}}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(err)
	}
	defer response.Body.Close()
	var answer struct{ Result any }
	json.NewDecoder(response.Body).Decode(&answer)
	return answer.Result
}

var functions = map[string]func(args []any) any{
	"Math.add":    func(args []any) any { return args[0].(float64) + args[1].(float64) },
	"Demo.fail":   func(args []any) any { panic(args[0]) },
	"Demo.sleep":  func(args []any) any { time.Sleep(time.Duration(args[0].(float64)) * time.Millisecond); return nil },
	"Demo.add_in": func(args []any) any { return call(args[0].(string), "Math", "add", args[1:]...) },
}

func serve(response http.ResponseWriter, request *http.Request) {
	answer := func(status int, value any) {
		response.Header().Set("content-type", "application/json")
		response.WriteHeader(status)
		json.NewEncoder(response).Encode(value)
	}
	if request.Header.Get("authorization") != "Bearer "+os.Getenv("RPC_APP_TOKEN") {
		answer(401, nil)
		return
	}
	if request.Method == "GET" {
		list := object{}
		for name := range functions {
			list[name] = object{}
		}
		answer(200, object{"functions": list})
		return
	}
	defer func() {
		if failure := recover(); failure != nil {
			answer(500, object{"kind": "panic", "message": failure})
		}
	}()
	var body struct{ Args []any }
	json.NewDecoder(request.Body).Decode(&body)
	name := strings.Join(strings.Split(request.URL.Path, "/")[2:], ".") // /rpc/Math/add
	answer(200, functions[name](body.Args))
}

func main() {
	http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(serve))
}
