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
--   bytes (number), complete (true)              once, when the body was read to its end
--   content_encoding, content_type               why a body cannot be read
--   oversize (true)                              a value above VALUE_BYTES_MAX was not reported
--
-- Why a scanner: models and prompts control whole objects inside these bodies (tool_use.input,
-- functionCall.args), with any key in them. So a key counts by its place, and strings and depth are
-- tracked; without recursion, and without holding a body back. Why byte loops and plain finds, but
-- no patterns: those LuaJIT compiles.

local find, sub, byte, lower, concat = string.find, string.sub, string.byte, string.lower, table.concat

local AUTHZ_NAMESPACE, USAGE_NAMESPACE = "envoy.filters.http.ext_authz", "extauthz.usage"
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
-- content type JSON may be such a list, never the data of an SSE event.
local JSON_LIST = {[NO_KEY] = {inside = {[OPEN_OBJECT] = JSON_ROOT}}}
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

-- The scanner of one JSON document, which comes in pieces of any size.

local function restart(doc)
  doc.depth, doc.key, doc.keeping, doc.in_string, doc.escaped = 0, NO_KEY, nil, false, false
  doc.scopes[0] = doc.top
end

local function new_document(top, report)
  local doc = {top = top, report = report, scopes = {}}
  restart(doc)
  return doc
end

-- Text is kept up to bytes_max; of longer text only `false` is kept.
local KEY = {}
local function keep_from(doc, what, at, bytes_max)
  doc.keeping, doc.kept_from, doc.kept, doc.kept_bytes_max = what, at, "", bytes_max
end

local function keep_to(doc, s, at)
  local fits = doc.kept and #doc.kept + at - doc.kept_from + 1 <= doc.kept_bytes_max
  doc.kept = fits and doc.kept .. sub(s, doc.kept_from, at)
end

local function value_ends(doc, s, at)
  keep_to(doc, s, at)
  doc.report(doc.keeping, doc.kept)
  doc.keeping = nil
end

local function string_begins(doc, scope, at)
  if not doc.key then return keep_from(doc, KEY, at + 1, KEY_BYTES_MAX) end
  local field = scope[doc.key]
  if field and field.first_byte == QUOTE then keep_from(doc, field, at, VALUE_BYTES_MAX) end
end

local function string_ends(doc, s, at)
  if doc.keeping == KEY then
    keep_to(doc, s, at - 1)
    doc.key, doc.keeping = doc.kept or "", nil  -- too long: a key, but none of ours
  elseif doc.keeping and doc.keeping.first_byte == QUOTE then
    value_ends(doc, s, at)
  end
end

-- Passes over the string whose inside goes on at `at`; returns where to go on. The first quote ends
-- it if no backslash stands before; else its escapes are walked.
local function pass_string(doc, s, at, last)
  local quote = find(s, '"', at, true) or last + 1
  if byte(s, quote - 1) == BACKSLASH then
    while at <= last do
      local c = byte(s, at)
      if c == QUOTE then break end
      at = at + (c == BACKSLASH and 2 or 1)
    end
  else
    at = quote
  end
  doc.in_string, doc.escaped = at > last, at > last + 1
  if not doc.in_string then string_ends(doc, s, at) end
  return at + 1
end

local function opens(doc, first_byte, at)
  local scope = doc.scopes[doc.depth]
  local field = scope and scope[doc.key]
  if field and field.first_byte == first_byte then keep_from(doc, field, at, VALUE_BYTES_MAX) end
  local inside = field and field.inside and field.inside[first_byte]
  if inside then doc.key = NO_KEY end
  doc.depth = doc.depth + 1
  if doc.depth <= SCOPE_DEPTH_MAX then doc.scopes[doc.depth] = inside end
  return inside
end

local function closes(doc, s, at)
  doc.depth, doc.key = doc.depth - 1, NO_KEY
  local scope = doc.scopes[doc.depth]
  if scope and doc.keeping then value_ends(doc, s, at) end
  return scope
end

local function scan(doc, s)
  local at, last = 1, #s
  doc.kept_from = 1
  if doc.in_string and last > 0 then at = pass_string(doc, s, doc.escaped and 2 or 1, last) end
  local scope = doc.scopes[doc.depth]
  while at <= last do
    local c = byte(s, at)
    if c == QUOTE then
      if scope then string_begins(doc, scope, at) end
      at = pass_string(doc, s, at + 1, last)
    else
      if c == COMMA then
        if scope then doc.key = NO_KEY end
      elseif c == OPEN_OBJECT or c == OPEN_LIST then
        scope = opens(doc, c, at)
      elseif c == CLOSE_OBJECT or c == CLOSE_LIST then
        scope = closes(doc, s, at)
      end
      at = at + 1
    end
  end
  if doc.keeping then keep_to(doc, s, last) end
end

-- SSE: data goes to the scanner as it comes; only a line's first bytes may have to wait for more.

local BOM = "\239\187\191"
local LINE_START_BYTES = #BOM + #"data: "

-- Returns where the data of the line from `at` to before `line_end` begins; nil if it has none.
local function data_begins(s, at, line_end)
  if sub(s, at, at + 4) == "data:" then return at + (byte(s, at + 5) == SPACE and 6 or 5) end
  if line_end - at == 4 and sub(s, at, at + 3) == "data" then return line_end end
  return nil
end

-- Returns how to feed a piece of the body, and how to ask for the number of events so far.
local function sse_reader(report)
  local doc, events = new_document(SSE_DOCUMENT, report), 0
  local held, first_line, after_cr = "", true, false
  local in_event, in_line, data_at = false, false, nil

  local function begin_line(s, at, line_end)
    if first_line and sub(s, at, at + #BOM - 1) == BOM then at = at + #BOM end
    first_line, in_line, data_at = false, true, data_begins(s, at, line_end)
    if at == line_end then
      in_event = false
    elseif data_at and in_event then
      scan(doc, "\n")  -- the data lines of one event are one document
    elseif data_at then
      restart(doc)
      in_event, events = true, events + 1
    end
  end

  local function feed(piece)
    local s = held .. piece
    local at, last, lf, cr = 1, #s, 0, 0
    held = ""
    while at <= last do
      if after_cr and byte(s, at) == LF then at = at + 1 end
      if lf < at then lf = find(s, "\n", at, true) or last + 1 end
      if cr < at then cr = find(s, "\r", at, true) or last + 1 end
      local line_end = lf < cr and lf or cr
      local line_goes_on = line_end > last
      after_cr = line_end == cr and not line_goes_on
      if not in_line and line_goes_on and last - at + 1 < LINE_START_BYTES then
        held = sub(s, at)
        break
      end
      if in_line then data_at = data_at and at else begin_line(s, at, line_end) end
      if data_at then scan(doc, sub(s, data_at, line_end - 1)) end
      in_line, at = line_goes_on, line_end + 1
    end
  end

  return feed, function() return events end
end

local function json_reader(report)
  local doc = new_document(JSON_DOCUMENT, report)
  return function(piece) scan(doc, piece) end, function() return nil end
end

-- Envoy's entry points. Every wrapper that Envoy hands out dies when the script yields.

local function metered_call(handle)
  local call = handle:streamInfo():dynamicMetadata():get(AUTHZ_NAMESPACE)
  return call and call.rid and call or nil
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
  body:setBytes(concat(pieces))
end

-- When a script fails, Envoy forwards the request as it came: no error may leave this function.
function envoy_on_request(handle)
  if pcall(edit_request, handle) then return end
  handle:respond({[":status"] = "500", ["content-type"] = "application/json"},
    '{"error":{"type":"internal_error","message":"the body is not the one that was authorized"}}')
end

function envoy_on_response(handle)
  if not metered_call(handle) then return end
  local function set(key, value) handle:streamInfo():dynamicMetadata():set(USAGE_NAMESPACE, key, value) end

  local encoding = handle:headers():get("content-encoding") or "identity"
  if lower(encoding) ~= "identity" then return set("content_encoding", encoding) end
  local content_type = handle:headers():get("content-type") or ""
  local media_type = lower(content_type:match("^[^;]*"))
  local is_sse = media_type:find("text/event-stream", 1, true)
  if not is_sse and not media_type:find("json", 1, true) then return set("content_type", content_type) end

  local reported = {}
  local function report(field, text)
    local known, value = reported[field.fact], field.value or text
    if not value then return set("oversize", true) end
    if value == known or known and field.first_wins then return end
    reported[field.fact] = value
    set(field.fact, value)
  end

  local feed, events = (is_sse and sse_reader or json_reader)(report)
  local bytes = 0
  for chunk in handle:bodyChunks() do
    local piece = chunk:getBytes(0, chunk:length())
    bytes = bytes + #piece
    feed(piece)
  end
  feed("\n")  -- the last line of SSE needs no end of its own
  if is_sse then set("events", events()) end
  set("bytes", bytes)
  set("complete", true)
end
