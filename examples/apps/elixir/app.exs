Mix.install([:bandit, :req])

defmodule Problem do # why a call of another region failed
  defexception [:message, :document]
end

defmodule App do
  use Plug.Router
  plug :check
  plug Plug.Parsers, parsers: [:json], json_decoder: Jason
  plug :match
  plug :dispatch

  @params %{"Math.add" => [a: "number", b: "number"], "Demo.fail" => [message: "string"], "Demo.sleep" => [ms: "integer"],
            "Demo.add_in" => [region: "string", a: "number", b: "number"]}

  def run("Math.add", [a, b]), do: a + b
  def run("Demo.fail", [message]), do: raise(ArgumentError, message)
  def run("Demo.sleep", [ms]), do: Process.sleep(ms) && nil
  def run("Demo.add_in", [region | args]) do # in another region, through the instance beside this app
    call = [json: args, auth: {:bearer, System.get_env("FLY_RPC_TOKEN", "none")}]
    case Req.post!(System.fetch_env!("FLY_RPC_URL") <> "/rpc/#{region}/Math/add", call) do
      %{status: 200, body: answer} -> answer["result"]
      %{body: problem} -> raise Problem, message: problem["detail"], document: problem
    end
  end

  get "/rpc" do
    declared = fn params -> %{params: for({name, type} <- params, do: %{name: name, schema: %{type: type}})} end
    answer(conn, 200, %{functions: Map.new(@params, fn {name, params} -> {name, declared.(params)} end)})
  end

  post "/rpc/:module/:function" do
    try do
      answer(conn, 200, run("#{module}.#{function}", conn.body_params["args"]))
    rescue
      problem in Problem -> answer(conn, 500, %{kind: problem.document["code"], message: problem.message, data: problem.document})
      error -> answer(conn, 500, %{kind: inspect(error.__struct__), message: Exception.message(error)})
    end
  end

  defp check(conn, _) do
    locked = get_req_header(conn, "authorization") != ["Bearer " <> System.fetch_env!("RPC_APP_TOKEN")]
    if locked, do: conn |> answer(401, nil) |> halt(), else: conn
  end
  defp answer(conn, status, value), do: conn |> put_resp_content_type("application/json") |> send_resp(status, Jason.encode!(value))
end

{:ok, _} = Bandit.start_link(plug: App, ip: :loopback, port: String.to_integer(System.fetch_env!("PORT")))
Process.sleep(:infinity)
