-- Two messages of one connection: what was decided about the first is not the second's.
dofile(steps)

conn = open(6)
greet(conn)
begin(conn, "alice@example.org", "add@example.test")
finish(conn, "the first\r\n")
-- The value has its leading space: HDR_LEADSPC was agreed on.
expect("a field is added", mt.eom_check(conn, MT_HDRINSERT, "X-Added", " yes"))
begin(conn, "alice@example.org", "remove@example.test")
finish(conn, "the second\r\n")
expect("none is added again", not mt.eom_check(conn, MT_HDRINSERT))
expect("none is deleted that is not there", not mt.eom_check(conn, MT_HDRDELETE))
begin(conn, "alice@example.org", "body@example.test")
finish(conn, "the third\r\n")
expect("the body", mt.eom_check(conn, MT_BODYCHANGE, "another body\r\n.\r\n..and its dots\r\n"))
mt.disconnect(conn)
