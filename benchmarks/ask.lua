-- A script for wrk, with the arguments `-- COUNT PREFIX`. Requests readings of COUNT models in turn:
-- PREFIX0, PREFIX1 and so on. With COUNT 0 it calls supervisord's XML-RPC for the program PREFIX.
local count, prefix, number = 1, "m", 0

function init(args)
  count, prefix = tonumber(args[1]), args[2]
end

function request()
  if count == 0 then
    local body = "<methodCall><methodName>supervisor.getProcessInfo</methodName><params><param>" ..
      "<value><string>" .. prefix .. "</string></value></param></params></methodCall>"
    return wrk.format("POST", "/RPC2", {["Content-Type"] = "text/xml"}, body)
  end
  number = (number + 1) % count
  return wrk.format("GET", "/backend/monitor?model=" .. prefix .. number)
end
