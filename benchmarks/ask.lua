-- For wrk: asks for so many models in turn, m0, m1, ... (`-- COUNT PREFIX`), or, with COUNT 0,
-- calls supervisord's XML-RPC for the program PREFIX.
local count, prefix, turn = 1, "m", 0

function init(args)
  count, prefix = tonumber(args[1]), args[2]
end

function request()
  if count == 0 then
    local body = "<methodCall><methodName>supervisor.getProcessInfo</methodName><params><param>" ..
      "<value><string>" .. prefix .. "</string></value></param></params></methodCall>"
    return wrk.format("POST", "/RPC2", {["Content-Type"] = "text/xml"}, body)
  end
  turn = (turn + 1) % count
  return wrk.format("GET", "/backend/monitor?model=" .. prefix .. turn)
end
