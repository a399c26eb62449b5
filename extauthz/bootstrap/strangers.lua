-- Bounds what callers can ask of Check whose key has not been let in before. A flood of them would
-- stand in the one queue in which every agent's calls wait. It stands before every filter that asks
-- Check, and holds its state for one worker of Envoy.
--
-- A key that Check knows (whatever else it says of the call) is remembered and passes; one that it
-- refuses as nobody's is forgotten. Every other call takes a token, which comes back if its key turns
-- out to be somebody's. Without a token the call is marked, and the fault filter behind this one
-- answers it, after a while: so that whoever asks again at once does not cost Envoy much either.
--
-- What is remembered admits nobody: Check is asked for each call that passes.

local TOKENS_MAX, TOKENS_PER_SECOND = 128, 32
local REMEMBERED_MAX, KEY_BYTES_MAX = 10000, 4096
local CALL_NAMESPACE, VERIFIED_NAMESPACE = "extauthz.call", "envoy.filters.http.jwt_authn"
local KEY_HEADERS = {"x-api-key", "api-key", "x-goog-api-key"}
local MARK = "x-extauthz-stranger"  -- taken off requests as they come in, like all that begin so

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

local known, asked = new_memory(), new_memory()  -- keys; the key of each call under way, by its id
local tokens, filled_at = TOKENS_MAX, os.time()

local function take_token()
  local now = os.time()
  if now > filled_at then
    tokens = math.min(TOKENS_MAX, tokens + TOKENS_PER_SECOND * (now - filled_at))
  end
  filled_at = now
  if tokens < 1 then return false end
  tokens = tokens - 1
  return true
end

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

function envoy_on_request(handle)
  local headers = handle:headers()
  local key = credential(headers)
  if key and #key > KEY_BYTES_MAX then key = nil end
  local is_known = key and get(known, key)
  if not is_known and not is_verified(handle) and not take_token() then
    headers:replace(MARK, "1")
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
  if headers:get("x-budget-reason") == "unknown_agent" then
    forget(known, key)
  elseif headers:get("x-budget-decision-id") then
    if not get(known, key) then tokens = math.min(TOKENS_MAX, tokens + 1) end
    put(known, key, true)
  end
end
