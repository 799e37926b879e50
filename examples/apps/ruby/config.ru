require "json"
require "net/http"

class Problem < StandardError # why a call of another region failed
  attr_reader :document
  def initialize(document) = (@document = document)
end

ADD_IN = lambda do |region, a, b| # in another region, through the instance beside this app
  headers = { "content-type" => "application/json", "authorization" => "Bearer #{ENV["FLY_RPC_TOKEN"]}" }
  uri = URI("#{ENV.fetch("FLY_RPC_URL")}/rpc/#{region}/Math/add")
  response = Net::HTTP.post(uri, [a, b].to_json, headers)
  answer = JSON.parse(response.body)
  response.is_a?(Net::HTTPSuccess) ? answer["result"] : raise(Problem.new(answer))
end

NUMBER, STRING = { type: "number" }, { type: "string" }
PARAMS = ->(types) { types.map { |name, schema| { name:, schema: } } }

FUNCTIONS = {
  "Math.add" => { run: ->(a, b) { a + b }, params: PARAMS.(a: NUMBER, b: NUMBER), idempotent: true },
  "Demo.fail" => { run: ->(message) { raise ArgumentError, message }, params: PARAMS.(message: STRING) },
  "Demo.sleep" => { run: ->(ms) { sleep(ms / 1000.0) and nil }, params: PARAMS.(ms: NUMBER), timeout_ms: 10_000 },
  "Demo.add_in" => { run: ADD_IN, params: PARAMS.(region: STRING, a: NUMBER, b: NUMBER), idempotent: true },
}

answer = ->(status, value) { [status, { "content-type" => "application/json" }, [value.to_json]] }

run(lambda do |env|
  next answer.(401, nil) unless env["HTTP_AUTHORIZATION"] == "Bearer #{ENV.fetch("RPC_APP_TOKEN")}"
  next answer.(200, { functions: FUNCTIONS.transform_values { |it| it.except(:run) } }) if env["REQUEST_METHOD"] == "GET"
  function = FUNCTIONS.fetch(env["PATH_INFO"].split("/").drop(2).join("."))[:run] # /rpc/Math/add
  answer.(200, function.(*JSON.parse(env["rack.input"].read)["args"]))
rescue Problem => problem
  answer.(500, { kind: problem.document["code"], message: problem.document["detail"], data: problem.document })
rescue StandardError => error
  answer.(500, { kind: error.class.name, message: error.message })
end)
