-- The body work that Envoy does for extauthz: splice Check's edits into a request, and lift usage
-- out of a response while it streams. It stands after ext_authz in the filter list, and before any
-- decompressor, so that responses arrive here as plain text.
--
-- Input: dynamic metadata `envoy.filters.http.ext_authz`
--   rid    string  the reservation; absent = not a metered call: nothing happens here
--   edits  list    offset, bytes dropped, text put there, offset, ...; ascending; absent = none
--   size   number  bytes of the body that Check saw, in which the offsets count
--   unasked_usage  true    the edits ask for an event of usage that the client did not ask for
--
-- Output: dynamic metadata `extauthz.usage`, carried to the sink by the access log. Facts are raw
-- JSON text, written the moment they are complete, so that an abort keeps what was seen:
--   usage, model, service_tier                   at the places named in the scopes below
--   usage_start, error (true), events (number)   from streams of events only
--   error_code                                   from JSON: why the provider refused
--   metrics                                      what Bedrock itself has counted of a model's own body
--   complete (true)                              at the body's end, or at a stream's own last event
--   bytes (number)                               at the body's end
--   content_encoding, content_type               why a body cannot be read
--   oversize (true), unreadable (true)           an object is above VALUE_BYTES_MAX, a text above
--                                                NAME_BYTES_MAX, or not ASCII; "" stands for it
--
-- Why a scanner: models and prompts control whole objects inside these bodies (tool_use.input,
-- functionCall.args), with any key in them. So a key counts by its place, and strings and depth are
-- tracked; without recursion, and without holding a body back. Why byte loops and plain finds, but
-- no patterns, and tables whose fields are all there from the start: LuaJIT compiles those well.

local find, sub, byte, lower = string.find, string.sub, string.byte, string.lower

local CALL_NAMESPACE, USAGE_NAMESPACE = "envoy.filters.http.ext_authz", "extauthz.usage"
local KEY_BYTES_MAX, VALUE_BYTES_MAX, NAME_BYTES_MAX = 64, 65536, 256
local LF, CR, SPACE, QUOTE, COMMA, BACKSLASH = 10, 13, 32, 34, 44, 92
local OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = 91, 93, 123, 125

-- A field is what a key leads to: a fact, if the value begins with `first_byte` (or with `or_byte`), or
-- the scope `inside` the value. A fact with a `value` of its own says only that it was there. A text of
-- nothing says nothing: Azure's streams begin with an event that has `"model":""`.
local USAGE = {fact = "usage", first_byte = OPEN_OBJECT}
local USAGE_START = {fact = "usage_start", first_byte = OPEN_OBJECT, first_wins = true}
local MODEL = {fact = "model", first_byte = QUOTE, first_wins = true}
local SERVICE_TIER = {fact = "service_tier", first_byte = QUOTE}
-- (xAI's is a text: https://github.com/vercel/ai/issues/10533)
local ERROR = {fact = "error", first_byte = OPEN_OBJECT, or_byte = QUOTE, value = true}
local ERROR_CODE = {fact = "error_code", first_byte = QUOTE}

-- A scope maps the keys of an open object to fields. The document itself, and what stands in a
-- list, has no key. No scope lies deeper than SCOPE_DEPTH_MAX.
local NO_KEY, SCOPE_DEPTH_MAX = false, 4
-- Vertex AI counts text by text, and a call has one.
local PREDICTION = {embeddings = {inside = {[OPEN_OBJECT] = {statistics = USAGE}}}}
local PREDICTIONS = {[NO_KEY] = {inside = {[OPEN_OBJECT] = PREDICTION}}}
local JSON_ROOT = {
  usage = USAGE, model = MODEL, service_tier = SERVICE_TIER,
  usageMetadata = USAGE, modelVersion = MODEL,  -- Gemini
  predictions = {inside = {[OPEN_LIST] = PREDICTIONS}},
  meta = {inside = {[OPEN_OBJECT] = {billed_units = USAGE}}},  -- Cohere's embeddings
  error = {inside = {[OPEN_OBJECT] = {code = ERROR_CODE}}},
}
-- Gemini without alt=sse streams one JSON list of objects, each a root of its own. Only a body of
-- content type JSON may be such a list, never the data of an SSE event. It can end in an error.
local LIST_ROOT = {
  usage = USAGE, model = MODEL, service_tier = SERVICE_TIER, error = ERROR,
  usageMetadata = USAGE, modelVersion = MODEL,
}
local JSON_LIST = {[NO_KEY] = {inside = {[OPEN_OBJECT] = LIST_ROOT}}}
local JSON_DOCUMENT = {[NO_KEY] = {inside = {[OPEN_OBJECT] = JSON_ROOT, [OPEN_LIST] = JSON_LIST}}}

local ANTHROPIC_MESSAGE = {usage = USAGE_START, model = MODEL}
local OPENAI_RESPONSE = {usage = USAGE, model = MODEL, service_tier = SERVICE_TIER}
-- Cohere ends with this. What a model writes stands in strings further in.
local COHERE_DELTA = {usage = USAGE}
local SSE_ROOT = {
  usage = USAGE, model = MODEL, service_tier = SERVICE_TIER, error = ERROR,
  usageMetadata = USAGE, modelVersion = MODEL,
  message = {inside = {[OPEN_OBJECT] = ANTHROPIC_MESSAGE}},
  response = {inside = {[OPEN_OBJECT] = OPENAI_RESPONSE}},
  delta = {inside = {[OPEN_OBJECT] = COHERE_DELTA}},
}
-- Bedrock ends a stream of a model's own events with this.
local INVOCATION_METRICS = {fact = "metrics", first_byte = OPEN_OBJECT, completes = true}
local CHUNK_ROOT = {
  usage = USAGE, model = MODEL, error = ERROR, ["amazon-bedrock-invocationMetrics"] = INVOCATION_METRICS,
  message = {inside = {[OPEN_OBJECT] = ANTHROPIC_MESSAGE}},
}
local CHUNK_DOCUMENT = {[NO_KEY] = {inside = {[OPEN_OBJECT] = CHUNK_ROOT}}}

local SSE_DOCUMENT = {[NO_KEY] = {inside = {[OPEN_OBJECT] = SSE_ROOT}}}

-- A protobuf string that is not UTF-8 would make the whole entry unreadable; no fact needs more
-- than ASCII.
local function is_ascii(text)
  return not find(text, "[\128-\255]")
end

-- Every wrapper that Envoy hands out dies when the script yields: it is fetched for each write.
local function set(handle, key, value)
  if not handle then return end  -- (an event that is only looked at)
  handle:streamInfo():dynamicMetadata():set(USAGE_NAMESPACE, key, value)
end

local NO_TEXT = '""'
local function report(facts, field, text)
  if text == NO_TEXT then return end
  local value = field.value or text
  -- What cannot be reported takes the place of what was: an earlier usage is not the last one.
  if not value then
    set(facts.handle, "oversize", true)
    value = ""
  elseif value ~= true and not is_ascii(value) then
    set(facts.handle, "unreadable", true)
    value = ""
  end
  if value == facts.reported[field.fact] then return end
  facts.reported[field.fact] = value
  set(facts.handle, field.fact, value)
  if field.completes then set(facts.handle, "complete", true) end
end

-- The scanner of one JSON document, which comes in pieces of any size.

local function new_document(top, facts)
  return {
    top = top, facts = facts, scopes = {[0] = top}, depth = 0, key = NO_KEY,
    in_string = false, escaped = false, keeping = false, kept = "", kept_from = 1, kept_max = 0,
    keeping_text = false,
  }
end

local function restart(doc)
  doc.scopes[0], doc.depth, doc.key = doc.top, 0, NO_KEY
  doc.in_string, doc.escaped, doc.keeping = false, false, false
end

local KEY = {}
local function keep_key(doc, at)
  doc.keeping, doc.kept, doc.kept_from, doc.kept_max = KEY, "", at, KEY_BYTES_MAX
end

local function keep_value(doc, field, first_byte, at)
  if not field or (field.first_byte ~= first_byte and field.or_byte ~= first_byte) then return end
  if field.first_wins and doc.facts.reported[field.fact] then return end
  doc.keeping, doc.kept, doc.kept_from = field, "", at
  doc.keeping_text = first_byte == QUOTE
  doc.kept_max = doc.keeping_text and NAME_BYTES_MAX or VALUE_BYTES_MAX
end

-- Adds the text up to `at`; of a text that is too long, only `false` is kept.
local function keep_to(doc, s, at)
  local kept, from = doc.kept, doc.kept_from
  local text = kept and #kept + at - from < doc.kept_max and sub(s, from, at)
  doc.kept = text and (kept == "" and text or kept .. text)
end

local function value_ends(doc, s, at)
  keep_to(doc, s, at)
  report(doc.facts, doc.keeping, doc.kept)
  doc.keeping = false
end

local function string_ends(doc, s, at)
  if doc.keeping == KEY then
    keep_to(doc, s, at - 1)
    doc.key, doc.keeping = doc.kept or "", false  -- too long: a key, but none of ours
  elseif doc.keeping_text then
    value_ends(doc, s, at)
  end
end

-- Is the byte at `at` escaped, by an odd run of backslashes that begins at `from` or later?
local function is_escaped(s, from, at)
  local run = at
  while run > from and byte(s, run - 1) == BACKSLASH do run = run - 1 end
  return (at - run) % 2 == 1
end

-- Passes over the string whose inside goes on at `at`; returns where to go on.
local function pass_string(doc, s, at, last)
  local quote = find(s, '"', at, true)
  while quote and is_escaped(s, at, quote) do
    at = quote + 1
    quote = find(s, '"', at, true)
  end
  doc.in_string, doc.escaped = not quote, not quote and is_escaped(s, at, last + 1)
  if quote and doc.keeping then string_ends(doc, s, quote) end
  return (quote or last) + 1
end

local function open(doc, first_byte, at)
  local scope = doc.scopes[doc.depth]
  local field = scope and scope[doc.key]
  keep_value(doc, field, first_byte, at)
  local inside = field and field.inside and field.inside[first_byte]
  if inside then doc.key = NO_KEY end
  doc.depth = doc.depth + 1
  if doc.depth <= SCOPE_DEPTH_MAX then doc.scopes[doc.depth] = inside end
  return inside
end

local function close(doc, s, at)
  doc.depth, doc.key = doc.depth - 1, NO_KEY
  local scope = doc.scopes[doc.depth]
  if scope and doc.keeping then value_ends(doc, s, at) end
  return scope
end

local function scan(doc, s)
  local at, last, scope = 1, #s, doc.scopes[doc.depth]
  doc.kept_from = 1
  if doc.in_string and last > 0 then at = pass_string(doc, s, doc.escaped and 2 or 1, last) end
  while at <= last do
    local c = byte(s, at)
    if c == QUOTE then
      if scope and doc.key then
        keep_value(doc, scope[doc.key], QUOTE, at)
      elseif scope then
        keep_key(doc, at + 1)
      end
      at = pass_string(doc, s, at + 1, last)
    else
      if c == COMMA then
        if scope then doc.key = NO_KEY end
      elseif c == OPEN_OBJECT or c == OPEN_LIST then
        scope = open(doc, c, at)
      elseif c == CLOSE_OBJECT or c == CLOSE_LIST then
        scope = close(doc, s, at)
      end
      at = at + 1
    end
  end
  if doc.keeping then keep_to(doc, s, last) end
end

-- SSE: data goes to the scanner as it comes; only a line's first bytes may have to wait for more.

local BOM = "\239\187\191"
local DONE, MESSAGE_STOP = "[DONE]", "event: message_stop"  -- the last event of OpenAI, Anthropic
local LINE_START_BYTES = #BOM + #MESSAGE_STOP + 1

local function new_event_stream(facts)
  return {
    doc = new_document(SSE_DOCUMENT, facts), facts = facts, events = 0, held = "",
    first_line = true, after_blank = true,
    in_event = false, in_line = false, data_at = false, after_cr = false,
  }
end

-- Returns where the data of the line from `at` to before `line_end` begins; false if it has none.
local function data_begins(s, at, line_end)
  if sub(s, at, at + 4) == "data:" then return at + (byte(s, at + 5) == SPACE and 6 or 5) end
  return line_end - at == 4 and sub(s, at, at + 3) == "data" and line_end
end

local function begin_line(sse, s, at, line_end)
  if sse.first_line and sub(s, at, at + 2) == BOM then at = at + #BOM end
  sse.first_line, sse.after_blank, sse.data_at = false, at == line_end, data_begins(s, at, line_end)
  -- OpenAI's SDK hangs up at this line, often before the end of the body has arrived; so do others
  -- at Anthropic's. No answer can forge either: inside JSON a line break is escaped.
  local is_done = sse.data_at and sub(s, sse.data_at, sse.data_at + #DONE - 1) == DONE
  local is_stop = line_end - at == #MESSAGE_STOP and sub(s, at, line_end - 1) == MESSAGE_STOP
  if is_done or is_stop then
    set(sse.facts.handle, "complete", true)
  end
  if at == line_end then
    sse.in_event = false
  elseif sse.data_at and sse.in_event then
    scan(sse.doc, "\n")  -- the data lines of one event are one document
  elseif sse.data_at then
    restart(sse.doc)
    sse.in_event, sse.events = true, sse.events + 1
  end
end

local function scan_events(sse, piece)
  local s = sse.held .. piece
  local at, last, lf, cr = 1, #s, 0, 0
  sse.held = ""
  while at <= last do
    if sse.after_cr and byte(s, at) == LF then at = at + 1 end
    if lf < at then lf = find(s, "\n", at, true) or last + 1 end
    if cr < at then cr = find(s, "\r", at, true) or last + 1 end
    local line_end = lf < cr and lf or cr
    local line_goes_on = line_end > last
    sse.after_cr = line_end == cr and not line_goes_on
    if not sse.in_line and line_goes_on and last - at + 1 < LINE_START_BYTES then
      sse.held = sub(s, at)
      break
    end
    if sse.in_line then sse.data_at = sse.data_at and at else begin_line(sse, s, at, line_end) end
    if sse.data_at then scan(sse.doc, sub(s, sse.data_at, line_end - 1)) end
    sse.in_line, at = line_goes_on, line_end + 1
  end
end

-- The event that metering has asked for, and the client has not, ends OpenAI's streams: a usage and no
-- choices. Where it comes in one piece with the ends of its lines, it is taken out. Nothing waits for
-- that: one that comes in two pieces stays, and so does all else, byte for byte.

local NO_CHOICES = {'"choices":[]', '"choices": []'}
local UNASKED_ROOT = {
  usage = {fact = "usage", first_byte = OPEN_OBJECT},
  choices = {fact = "choices", first_byte = OPEN_LIST},
  error = ERROR,
}
local UNASKED_DOCUMENT = {[NO_KEY] = {inside = {[OPEN_OBJECT] = UNASKED_ROOT}}}

-- Whether a piece that begins here begins an event.
local function is_between_events(sse)
  return sse.after_blank and not sse.in_line and sse.held == "" and not sse.after_cr
end

-- First and last byte of the event whose only line holds `at`; nil if it does not begin and end here.
local function event_around(piece, at, is_between)
  local first = at
  while first > 1 and byte(piece, first - 1) ~= LF do first = first - 1 end
  local line_end = find(piece, "\n", at, true)
  if not line_end or sub(piece, first, first + 4) ~= "data:" then return end
  local before = sub(piece, math.max(1, first - 4), first - 1)
  local begins = before == "" and is_between or find(before, "\n\n$") or find(before, "\n\r\n$")
  local blank_end = find(piece, "^\r?\n", line_end + 1) and find(piece, "\n", line_end + 1, true)
  local cr = find(piece, "\r", first, true)
  if begins and blank_end and (not cr or cr >= line_end - 1) then return first, blank_end end
end

local function is_unasked(event)
  local facts = {handle = false, reported = {}}
  scan(new_document(UNASKED_DOCUMENT, facts), sub(event, #"data:" + 1) .. "\n")
  local choices, usage = facts.reported.choices, facts.reported.usage
  return choices == "[]" and usage and usage ~= "" and not facts.reported.error
end

-- The piece without that event; nil if it is not in it.
local function without_unasked(piece, is_between)
  for i = 1, #NO_CHOICES do
    local at = find(piece, NO_CHOICES[i], 1, true)
    while at do
      local first, last = event_around(piece, at, is_between)
      if first and is_unasked(sub(piece, first, last)) then
        return sub(piece, 1, first - 1) .. sub(piece, last + 1)
      end
      at = find(piece, NO_CHOICES[i], at + 1, true)
    end
  end
end

-- AWS's event stream: frames of total length, length of the headers, a checksum, the headers, the
-- payload, a checksum; the numbers big-endian. A model cannot write the headers, and only what they
-- call `metadata` (usage) or `chunk` (a model's own events, in base64) is looked into.
-- https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html

local PRELUDE_BYTES, CHECKSUM_BYTES, FRAME_HEADERS_MAX, CHUNK_BYTES_MAX = 12, 4, 4096, 262144
local STRING_TYPE = 7
local BASE64, PAD = {}, 61
for i = 0, 255 do BASE64[i] = -1 end
for i = 0, 63 do
  BASE64[byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", i + 1)] = i
end
-- The most frequent event, and one that tells nothing.
local DELTA = '{"type":"content_block_delta"'
local DELTA_BASE64_BYTES = 40  -- of which 30 bytes come

local function u32(s, at)
  local a, b, c, d = byte(s, at, at + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

-- The text behind base64; false if it is none.
local function decode_base64(s, first, last)
  while last >= first and byte(s, last) == PAD do last = last - 1 end
  local pieces, n, bits, count = {}, 0, 0, 0
  for at = first, last do
    local value = BASE64[byte(s, at)]
    if value < 0 then return false end
    bits, count = bits * 64 + value, count + 6
    if count >= 8 then
      count = count - 8
      local unit = 2 ^ count
      local code = math.floor(bits / unit)
      bits, n = bits - code * unit, n + 1
      pieces[n] = string.char(code)
    end
  end
  return table.concat(pieces)
end

local function new_frames(facts)
  return {
    facts = facts, events = 0, held = "", left = 0, keeping = false, doc = false, last = false,
    metadata = new_document(JSON_DOCUMENT, facts), chunk = new_document(CHUNK_DOCUMENT, facts),
  }
end

-- The value of a frame's header; its type must be string, as all of these are.
local function frame_header(headers, wanted)
  local at, last = 1, #headers
  while at + 3 <= last do
    local name_end = at + byte(headers, at)
    local name = sub(headers, at + 1, name_end)
    if byte(headers, name_end + 1) ~= STRING_TYPE or name_end + 3 > last then return nil end
    local high, low = byte(headers, name_end + 2, name_end + 3)
    local value_end = name_end + 3 + high * 256 + low
    if name == wanted then return sub(headers, name_end + 4, value_end) end
    at = value_end + 1
  end
end

local function scan_chunk(frames, payload)
  local _, opened = find(payload, '"bytes":"', 1, true)
  local closed = opened and find(payload, '"', opened + 1, true)
  if not closed then return end
  local begins = decode_base64(payload, opened + 1, math.min(closed - 1, opened + DELTA_BASE64_BYTES))
  if begins and sub(begins, 1, #DELTA) == DELTA then return end
  local text = decode_base64(payload, opened + 1, closed - 1)
  if not text then return set(frames.facts.handle, "unreadable", true) end
  restart(frames.chunk)
  scan(frames.chunk, text)
end

local function begin_frame(frames, headers, payload_bytes)
  local kind = frame_header(headers, ":event-type")
  frames.events, frames.left = frames.events + 1, payload_bytes + CHECKSUM_BYTES
  frames.doc, frames.keeping, frames.kept = false, false, ""
  frames.last = kind == "metadata"
  if frame_header(headers, ":message-type") ~= "event" then
    report(frames.facts, ERROR, "")
  elseif kind == "metadata" then
    restart(frames.metadata)
    frames.doc = frames.metadata
  elseif kind == "chunk" and payload_bytes <= CHUNK_BYTES_MAX then
    frames.keeping = true
  end
end

local function end_frame(frames)
  if frames.keeping then scan_chunk(frames, frames.kept) end
  if frames.last then set(frames.facts.handle, "complete", true) end
  frames.keeping, frames.doc, frames.kept = false, false, ""
end

-- Passes over a part of the payload and the checksum behind it; returns where to go on.
local function pass_payload(frames, s, at)
  local last = math.min(#s, at + frames.left - 1)
  local payload_last = math.min(last, at + frames.left - CHECKSUM_BYTES - 1)
  if payload_last >= at then
    if frames.doc then scan(frames.doc, sub(s, at, payload_last)) end
    if frames.keeping then frames.kept = frames.kept .. sub(s, at, payload_last) end
  end
  frames.left = frames.left - (last - at + 1)
  if frames.left == 0 then end_frame(frames) end
  return last + 1
end

local function scan_frames(frames, piece)
  if frames.broken then return end
  local s = frames.held .. piece
  local at, last = 1, #s
  frames.held = ""
  while at <= last do
    if frames.left > 0 then
      at = pass_payload(frames, s, at)
    else
      local has_prelude = last - at + 1 >= PRELUDE_BYTES
      local total = has_prelude and u32(s, at)
      local headers_bytes = has_prelude and u32(s, at + 4)
      if has_prelude and (headers_bytes > FRAME_HEADERS_MAX
          or total < PRELUDE_BYTES + headers_bytes + CHECKSUM_BYTES) then
        frames.broken = true
        return set(frames.facts.handle, "unreadable", true)
      end
      if not has_prelude or last - at + 1 < PRELUDE_BYTES + headers_bytes then
        frames.held = sub(s, at)
        return
      end
      local payload_at = at + PRELUDE_BYTES + headers_bytes
      begin_frame(frames, sub(s, at + PRELUDE_BYTES, payload_at - 1),
        total - PRELUDE_BYTES - headers_bytes - CHECKSUM_BYTES)
      at = payload_at
    end
  end
end

-- Bedrock counts for every model, and tells so in headers where the answer is no stream; the names are
-- those that the end of a stream has.
local COUNT_HEADERS = {
  {"x-amzn-bedrock-input-token-count", "inputTokenCount"},
  {"x-amzn-bedrock-output-token-count", "outputTokenCount"},
  {"x-amzn-bedrock-cache-read-input-token-count", "cacheReadInputTokenCount"},
  {"x-amzn-bedrock-cache-write-input-token-count", "cacheWriteInputTokenCount"},
}

local function report_counts(handle)
  local counts = {}
  for i = 1, #COUNT_HEADERS do
    local value = handle:headers():get(COUNT_HEADERS[i][1])
    if value and find(value, "^%d+$") and #value < 16 then
      counts[#counts + 1] = '"' .. COUNT_HEADERS[i][2] .. '":' .. value
    end
  end
  if counts[1] then set(handle, "metrics", "{" .. table.concat(counts, ",") .. "}") end
end

-- Envoy's entry points.

local function metered_call(handle)
  local call = handle:streamInfo():dynamicMetadata():get(CALL_NAMESPACE)
  return call and call.rid and call
end

-- Raises an error for anything but edits that fit the body exactly.
local function edit_request(handle)
  local call = metered_call(handle)
  if not call or not call.edits or #call.edits == 0 then return end
  local edits, size, body = call.edits, call.size, handle:body()
  assert(body:length() == size and #edits % 3 == 0)
  local pieces, done = {}, 0
  for i = 1, #edits, 3 do
    local offset, dropped, text = edits[i], edits[i + 1], edits[i + 2]
    assert(done <= offset and 0 <= dropped and offset + dropped <= size)
    pieces[#pieces + 1] = body:getBytes(done, offset - done)
    pieces[#pieces + 1] = text
    done = offset + dropped
  end
  pieces[#pieces + 1] = body:getBytes(done, size - done)
  body:setBytes(table.concat(pieces))
end

-- When a script fails, Envoy forwards the request as it came: no error may leave this function.
function envoy_on_request(handle)
  if pcall(edit_request, handle) then return end
  handle:respond({[":status"] = "500", ["content-type"] = "application/json"},
    '{"error":{"type":"internal_error","message":"the body is not the one that was authorized"}}')
end

-- What calls itself gRPC is refused by a route of its own. Envoy makes each refusal of such a request
-- a 200 without a body, which a client could take for an answer.
local function refuse_grpc(handle)
  local headers = handle:headers()
  if not headers:get("grpc-status") or handle:streamInfo():routeName() ~= "no_grpc" then return end
  headers:replace(":status", "415")
  headers:remove("grpc-status")
end

function envoy_on_response(handle)
  refuse_grpc(handle)
  local call = metered_call(handle)
  if not call then return end
  local unasked = call.unasked_usage
  local encoding = handle:headers():get("content-encoding") or "identity"
  if lower(encoding) ~= "identity" then return set(handle, "content_encoding", is_ascii(encoding) and encoding or "") end
  local content_type = handle:headers():get("content-type") or ""
  local media_type = lower(content_type:match("^[^;]*"))
  local is_sse = media_type:find("text/event-stream", 1, true)
  local is_json = media_type:find("json", 1, true)
  local is_frames = media_type:find("application/vnd.amazon.eventstream", 1, true)
  if not is_sse and not is_json and not is_frames then return set(handle, "content_type", is_ascii(content_type) and content_type or "") end

  -- (a body whose length was announced must keep it)
  unasked = unasked and is_sse and not handle:headers():get("content-length")
  local facts, bytes = {handle = handle, reported = {}}, 0
  local reader, read
  if is_sse then
    reader, read = new_event_stream(facts), scan_events
  elseif is_frames then
    reader, read = new_frames(facts), scan_frames
  else
    reader, read = new_document(JSON_DOCUMENT, facts), scan
    report_counts(handle)
  end
  for chunk in handle:bodyChunks() do
    local piece = chunk:getBytes(0, chunk:length())
    bytes = bytes + #piece
    local is_between = unasked and is_between_events(reader)
    read(reader, piece)
    local rest = unasked and without_unasked(piece, is_between)
    if rest then
      unasked = false
      chunk:setBytes(rest)
    end
  end
  if not is_frames then read(reader, "\n") end  -- the last line of SSE needs no end of its own
  if reader.events then set(handle, "events", reader.events) end
  set(handle, "bytes", bytes)
  if is_frames and (reader.broken or reader.left > 0 or reader.held ~= "") then return end
  set(handle, "complete", true)
end
