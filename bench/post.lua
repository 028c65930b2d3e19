-- Posts one body over and over, JSON or BODY_BYTES of it, and prints the result as one line of JSON.
local bytes = tonumber(os.getenv("BODY_BYTES") or "0")
wrk.method = "POST"
wrk.body = bytes > 0 and string.rep("x", bytes) or '{"x": 1}'
wrk.headers["Content-Type"] = "application/json"

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "micros": %d, "p50": %f, "p99": %f, "bad_status": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
