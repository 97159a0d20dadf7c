-- Version 2 of the protocol: neither DATA, nor answers left out, nor a chosen list of macros.
dofile(steps)

conn = open(2, 0x3F, 0x7F)
expect("no newer action", not mt.test_action(conn, SMFIF_CHGFROM))
expect("no answer is left out", not mt.test_option(conn, SMFIP_NR_CONN))
greet(conn)
mt.mailfrom(conn, "<alice@example.org>")
mt.rcptto(conn, "<add@example.test>")
finish(conn, "hello\r\n")
expect("a field is added", mt.eom_check(conn, MT_HDRINSERT, "X-Added", "yes"))
mt.disconnect(conn)
