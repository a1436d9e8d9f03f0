-- What wrk sends: one push after the other, from a file with a query and, behind a tab, a body in each line.
local pushes = {}
local sent = 0

function init(args)
  for line in io.lines(args[1]) do
    local tab = string.find(line, "\t", 1, true)
    pushes[#pushes + 1] = wrk.format("POST", wrk.path .. "?" .. string.sub(line, 1, tab - 1),
      { ["Content-Type"] = "text/xml" }, string.sub(line, tab + 1))
  end
end

function request()
  sent = sent % #pushes + 1
  return pushes[sent]
end
