-- Every edit of one message is asked for, and the message then passes.
dofile(steps)

conn = open(6)
greet(conn)
begin(conn, "alice@example.org", "bob@example.test", "carol@example.test")
finish(conn, "the body\r\n")
passed(conn)
-- The values have their leading space: HDR_LEADSPC was agreed on.
expect("X-Gate", mt.eom_check(conn, MT_HDRCHANGE, "X-Gate", " the first, changed"))
expect("Date", mt.eom_check(conn, MT_HDRCHANGE, "Date", " Sat, 03 Jan 2026 10:00:00 +0000"))
expect("two are deleted", mt.eom_check(conn, MT_HDRDELETE, "X-Gate"))
for _, value in ipairs({
  "at the very top", "below the very top", "below", "below that", "at the very end",
}) do
  expect(value, mt.eom_check(conn, MT_HDRINSERT, "X-Gate", " " .. value))
end
expect("the body", mt.eom_check(conn, MT_BODYCHANGE, "another body\r\n.\r\n..\r\n"))
expect("one recipient more", mt.eom_check(conn, MT_RCPTADD, "<dave@example.test>"))
expect("one recipient less", mt.eom_check(conn, MT_RCPTDELETE, "<carol@example.test>"))
expect("no quarantine", not mt.eom_check(conn, MT_QUARANTINE))
mt.disconnect(conn)
