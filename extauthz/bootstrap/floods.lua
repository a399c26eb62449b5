-- Keeps floods of calls that Check refuses out of the one queue in which every agent's calls wait.
-- It stands before every filter that asks Check, and holds its state for one worker of Envoy.
--
-- A key whose last call was let through passes. One whose last call was denied takes tokens of its
-- own, and all that Check does not know (or has refused as nobody's) share those of strangers, which
-- come back where a key turns out to be somebody's. Without a token a call is marked, and the fault
-- filter behind this one answers it, after a while: so that whoever asks again at once does not cost
-- Envoy much either.
--
-- A key is known once one of its calls has been answered, which can take as long as a model thinks: so
-- the strangers' tokens must be enough for all that agents begin with when Envoy has just started.
--
-- What is remembered admits nobody: Check is asked for each call that passes.

local STRANGERS_MAX, DENIED_MAX, TOKENS_PER_SECOND = 1024, 1024, 64
local REMEMBERED_MAX, KEY_BYTES_MAX = 10000, 4096
local CALL_NAMESPACE, VERIFIED_NAMESPACE = "extauthz.call", "envoy.filters.http.jwt_authn"
local KEY_HEADERS = {"x-api-key", "api-key", "x-goog-api-key"}
local MARK = "x-extauthz-flood"  -- taken off requests as they come in, like all that begin so

-- Reasons that Check may give before it has asked who calls, and those that are no denial.
local SAYS_NOT_WHOSE = {unknown_route = true, unmetered_endpoint = true}
local IS_OUTAGE = {store_unavailable = true, service_unavailable = true}

-- A memory that forgets what was not used for as long as it takes to remember that many others.
local function new_memory()
  return {young = {}, old = {}, count = 0}
end

local function put(memory, name, value)
  if memory.young[name] == nil then memory.count = memory.count + 1 end
  memory.young[name] = value
  if memory.count >= REMEMBERED_MAX then
    memory.young, memory.old, memory.count = {}, memory.young, 0
  end
end

local function get(memory, name)
  local value = memory.young[name]
  if value == nil then value = memory.old[name] end
  return value
end

local function forget(memory, name)
  if memory.young[name] ~= nil then memory.count = memory.count - 1 end
  memory.young[name], memory.old[name] = nil, nil
end

local function new_bucket(most)
  return {most = most, tokens = most, filled_at = os.time(), is_denied = false}
end

local function take(bucket)
  local now = os.time()
  if now > bucket.filled_at then
    local more = TOKENS_PER_SECOND * (now - bucket.filled_at)
    bucket.tokens = math.min(bucket.most, bucket.tokens + more)
  end
  bucket.filled_at = now
  if bucket.tokens < 1 then return false end
  bucket.tokens = bucket.tokens - 1
  return true
end

local known, asked = new_memory(), new_memory()  -- a bucket of each key; each call's key, by its id
local strangers = new_bucket(STRANGERS_MAX)

-- What tells whose call it is; Check looks closer. Of AWS's signature, which differs each time, that
-- is the access key's id.
local function credential(headers)
  local given = headers:get("authorization")
  if given then return string.match(given, "Credential=([^/]+)/") or given end
  for _, name in ipairs(KEY_HEADERS) do
    given = headers:get(name)
    if given then return given end
  end
  return nil
end

local function is_verified(handle)
  if handle:streamInfo():dynamicMetadata():get(VERIFIED_NAMESPACE) then return true end
  local tls = handle:connection():ssl()
  return tls ~= nil and tls:peerCertificatePresented()
end

local function call_id(handle)
  local call = handle:streamInfo():dynamicMetadata():get(CALL_NAMESPACE)
  return call and call.request_id
end

-- A body would be kept while its call waits: whoever sends a large one is answered at once.
local function mark(headers, kind)
  local length = headers:get("content-length")
  local is_large = length and #length > 4 or headers:get("transfer-encoding")
  headers:replace(MARK, is_large and kind .. "-body" or kind)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local key = credential(headers)
  if key and #key > KEY_BYTES_MAX then key = nil end
  local own = key and get(known, key)
  if not own then
    if not is_verified(handle) and not take(strangers) then
      mark(headers, "strangers")
      return
    end
  elseif own.is_denied and not take(own) then
    mark(headers, "denied")
    return
  end
  local id = key and call_id(handle)
  if id then put(asked, id, key) end
end

function envoy_on_response(handle)
  local id = call_id(handle)
  local key = id and get(asked, id)
  if not key then return end
  forget(asked, id)
  local headers = handle:headers()
  local reason = headers:get("x-budget-reason")
  if not headers:get("x-budget-decision-id") or IS_OUTAGE[reason] then return end
  local own = get(known, key)
  if reason == "unknown_agent" then
    forget(known, key)
    return
  elseif not own then
    if SAYS_NOT_WHOSE[reason] then return end
    strangers.tokens = math.min(STRANGERS_MAX, strangers.tokens + 1)
    own = new_bucket(DENIED_MAX)
  end
  own.is_denied = reason ~= nil
  put(known, key, own)
end
