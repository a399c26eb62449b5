-- The body work that Envoy does for extauthz: splice Check's edits into a request, and lift usage
-- out of a response while it streams. It stands after ext_authz in the filter list, and before any
-- decompressor, so that responses arrive here as plain text.
--
-- Input: dynamic metadata `envoy.filters.http.ext_authz`
--   rid    string  the reservation; absent = not a metered call: nothing happens here
--   edits  list    offset, bytes dropped, text put there, offset, ...; ascending; absent = none
--   size   number  bytes of the body that Check saw, in which the offsets count
--
-- Output: dynamic metadata `extauthz.usage`, carried to the sink by the access log. Facts are raw
-- JSON text, written the moment they are complete, so that an abort keeps what was seen:
--   usage, model, service_tier                   at the places named in the scopes below
--   usage_start, error (true), events (number)   from SSE only
--   complete (true)                              at the body's end, or at SSE's own last event
--   bytes (number)                               at the body's end
--   content_encoding, content_type               why a body cannot be read
--   oversize (true), unreadable (true)           a value is above VALUE_BYTES_MAX, or not ASCII; ""
--                                                stands for it
--
-- Why a scanner: models and prompts control whole objects inside these bodies (tool_use.input,
-- functionCall.args), with any key in them. So a key counts by its place, and strings and depth are
-- tracked; without recursion, and without holding a body back. Why byte loops and plain finds, but
-- no patterns, and tables whose fields are all there from the start: LuaJIT compiles those well.

local find, sub, byte, lower = string.find, string.sub, string.byte, string.lower

local CALL_NAMESPACE, USAGE_NAMESPACE = "envoy.filters.http.ext_authz", "extauthz.usage"
local KEY_BYTES_MAX, VALUE_BYTES_MAX = 64, 65536
local LF, CR, SPACE, QUOTE, COMMA, BACKSLASH = 10, 13, 32, 34, 44, 92
local OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = 91, 93, 123, 125

-- A field is what a key leads to: a fact, if the value begins with `first_byte`, or the scope
-- `inside` the value. A fact with a `value` of its own says only that it was there.
local USAGE = {fact = "usage", first_byte = OPEN_OBJECT}
local USAGE_START = {fact = "usage_start", first_byte = OPEN_OBJECT, first_wins = true}
local MODEL = {fact = "model", first_byte = QUOTE, first_wins = true}
local SERVICE_TIER = {fact = "service_tier", first_byte = QUOTE}
local ERROR = {fact = "error", first_byte = OPEN_OBJECT, value = true}

-- A scope maps the keys of an open object to fields. The document itself, and what stands in a
-- list, has no key. No scope lies deeper than SCOPE_DEPTH_MAX.
local NO_KEY, SCOPE_DEPTH_MAX = false, 2
local JSON_ROOT = {
  usage = USAGE, model = MODEL, service_tier = SERVICE_TIER,
  usageMetadata = USAGE, modelVersion = MODEL,  -- Gemini
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
local SSE_ROOT = {
  usage = USAGE, model = MODEL, service_tier = SERVICE_TIER, error = ERROR,
  usageMetadata = USAGE, modelVersion = MODEL,
  message = {inside = {[OPEN_OBJECT] = ANTHROPIC_MESSAGE}},
  response = {inside = {[OPEN_OBJECT] = OPENAI_RESPONSE}},
}
local SSE_DOCUMENT = {[NO_KEY] = {inside = {[OPEN_OBJECT] = SSE_ROOT}}}

-- A protobuf string that is not UTF-8 would make the whole entry unreadable; no fact needs more
-- than ASCII.
local function is_ascii(text)
  return not find(text, "[\128-\255]")
end

-- Every wrapper that Envoy hands out dies when the script yields: it is fetched for each write.
local function set(handle, key, value)
  handle:streamInfo():dynamicMetadata():set(USAGE_NAMESPACE, key, value)
end

local function report(facts, field, text)
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
end

-- The scanner of one JSON document, which comes in pieces of any size.

local function new_document(top, facts)
  return {
    top = top, facts = facts, scopes = {[0] = top}, depth = 0, key = NO_KEY,
    in_string = false, escaped = false, keeping = false, kept = "", kept_from = 1, kept_max = 0,
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
  if not field or field.first_byte ~= first_byte then return end
  if field.first_wins and doc.facts.reported[field.fact] then return end
  doc.keeping, doc.kept, doc.kept_from, doc.kept_max = field, "", at, VALUE_BYTES_MAX
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
  elseif doc.keeping.first_byte == QUOTE then
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
    first_line = true,
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
  sse.first_line, sse.data_at = false, data_begins(s, at, line_end)
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

function envoy_on_response(handle)
  if not metered_call(handle) then return end
  local encoding = handle:headers():get("content-encoding") or "identity"
  if lower(encoding) ~= "identity" then return set(handle, "content_encoding", is_ascii(encoding) and encoding or "") end
  local content_type = handle:headers():get("content-type") or ""
  local media_type = lower(content_type:match("^[^;]*"))
  local is_sse = media_type:find("text/event-stream", 1, true)
  local is_json = media_type:find("json", 1, true)
  if not is_sse and not is_json then return set(handle, "content_type", is_ascii(content_type) and content_type or "") end

  local facts, bytes = {handle = handle, reported = {}}, 0
  local reader = is_sse and new_event_stream(facts) or new_document(JSON_DOCUMENT, facts)
  local read = is_sse and scan_events or scan
  for chunk in handle:bodyChunks() do
    local piece = chunk:getBytes(0, chunk:length())
    bytes = bytes + #piece
    read(reader, piece)
  end
  read(reader, "\n")  -- the last line of SSE needs no end of its own
  if is_sse then set(handle, "events", reader.events) end
  set(handle, "bytes", bytes)
  set(handle, "complete", true)
end
