-- One recipient is refused, with a reply of its own, and the others pass.
dofile(steps)

conn = open(6)
greet(conn)
begin(conn, "alice@example.org", "bob@example.test")
done("a recipient", mt.rcptto(conn, "<nobody@example.test>"))
replied(conn, "a recipient that is not there", SMFIR_REPLYCODE)
done("a recipient", mt.rcptto(conn, "<carol@example.test>"))
replied(conn, "another recipient", SMFIR_CONTINUE)
done("the end", mt.eom(conn))
passed(conn)
mt.disconnect(conn)
