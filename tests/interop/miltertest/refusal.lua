-- A message is refused for its body, and the next one of the same connection passes.
dofile(steps)

conn = open(6)
greet(conn)
begin(conn, "alice@example.org", "bob@example.test")
finish(conn, "forbidden\r\n")
replied(conn, "the message", SMFIR_REPLYCODE)
expect("the reply", mt.eom_check(conn, MT_SMTPREPLY, "550", "5.6.0", "not this body"))
expect("no edit", not mt.eom_check(conn, MT_HDRINSERT))
begin(conn, "alice@example.org", "bob@example.test")
finish(conn, "allowed\r\n")
passed(conn)
mt.disconnect(conn)
