-- A mail server that goes without a word, in the middle of a message.
dofile(steps)

for _ = 1, 3 do
  conn = open(6)
  greet(conn)
  begin(conn, "alice@example.org", "add@example.test")
  done("a field", mt.header(conn, "X-Gate", "the first"))
  mt.disconnect(conn, false)
end
conn = open(6)
greet(conn)
begin(conn, "alice@example.org", "add@example.test")
finish(conn, "hello\r\n")
-- The value has its leading space: HDR_LEADSPC was agreed on.
expect("a field is added", mt.eom_check(conn, MT_HDRINSERT, "X-Added", " yes"))
mt.disconnect(conn)
