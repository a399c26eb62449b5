-- A stand-in for Envoy's stream handle: as strict as Envoy about wrappers, which die at each yield.
-- stream(call, headers, body) -> handle, state
return function(call, headers, body)
  local state = {usage = {}, writes = 0, forwarded = {}}
  local yields = 0

  local function wrap(methods)
    local born = yields
    return setmetatable({}, {__index = function(_, name)
      assert(born == yields, "a wrapper was used after a yield: " .. name)
      return assert(methods[name], name)
    end})
  end

  local function buffer(bytes, set)
    return wrap({
      length = function() return #bytes end,
      getBytes = function(_, from, count)
        assert(from >= 0 and count >= 0 and from + count <= #bytes, "index/length out of range")
        return bytes:sub(from + 1, from + count)
      end,
      setBytes = function(_, new) set(new) end,
    })
  end

  local metadata = {
    get = function(_, namespace) return namespace == "envoy.filters.http.ext_authz" and call or nil end,
    set = function(_, namespace, key, value)
      assert(namespace == "extauthz.usage" and value ~= nil)
      state.usage[key] = value
      state.writes = state.writes + 1
    end,
  }

  local handle = {
    streamInfo = function() return wrap({dynamicMetadata = function() return wrap(metadata) end}) end,
    headers = function() return wrap({get = function(_, name) return headers[name] end}) end,
    body = function()
      state.buffered, yields = true, yields + 1
      return body and buffer(body, function(new) state.sent = new end)
    end,
    respond = function(_, response_headers, response_body)
      state.status, state.response = response_headers[":status"], response_body
    end,
    bodyChunks = function()
      state.reading = true
      return function()
        yields = yields + 1
        local piece = coroutine.yield()
        local at = #state.forwarded + 1
        state.forwarded[at] = piece
        return piece and buffer(piece, function(new) state.forwarded[at] = new end)
      end
    end,
  }
  return handle, state
end
