-- What wrk sends: a message of 1 KiB with Chinese text, as an app would.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer bench-key"
wrk.body = '{"subject":"打印机坏了","text":"' .. string.rep("我的打印机今天早上开始不工作了。", 16)
  .. '","sender":{"name":"张三","email":"zhang@example.com","user_id":"u-7788"},"fields":{"order_no":"7788"}}'
