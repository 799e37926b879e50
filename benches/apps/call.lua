wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer " .. os.getenv("RPC_APP_TOKEN")
wrk.body = os.getenv("BODY")

-- One line: calls per second, p50 and p99 in microseconds, answers that were no 2xx or came not at all.
done = function(summary, latency)
    local errors = summary.errors
    local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
    io.write(string.format("figures %.0f %.0f %.0f %d\n", summary.requests / summary.duration * 1e6,
        latency:percentile(50), latency:percentile(99), failed))
end
