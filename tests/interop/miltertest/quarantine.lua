-- A message is taken and held, with the reason.
dofile(steps)

conn = open(6)
greet(conn)
begin(conn, "quarantine.message@example.org", "bob@example.test")
finish(conn, "held\r\n")
expect("the reason", mt.eom_check(conn, MT_QUARANTINE, "look at this"))
passed(conn)
begin(conn, "discard.message@example.org", "bob@example.test")
finish(conn, "dropped\r\n")
replied(conn, "a message to drop", SMFIR_DISCARD)
mt.disconnect(conn)
