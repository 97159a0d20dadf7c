-- A policy that looks at recipients alone asks for nothing else, and offers no edit.
dofile(steps)

conn = open(6)
for name, option in pairs({
  data = SMFIP_NODATA, headers = SMFIP_NOHDRS, eoh = SMFIP_NOEOH, body = SMFIP_NOBODY,
  unknown = SMFIP_NOUNKNOWN,
}) do
  expect(name .. " is left out", mt.test_option(conn, option))
end
expect("recipients are told", not mt.test_option(conn, SMFIP_NORCPT))
expect("recipients are answered", not mt.test_option(conn, SMFIP_NR_RCPT))
expect("the connection is not answered", mt.test_option(conn, SMFIP_NR_CONN))
for name, action in pairs({
  fields = SMFIF_ADDHDRS, change = SMFIF_CHGHDRS, body = SMFIF_CHGBODY,
  add = SMFIF_ADDRCPT, remove = SMFIF_DELRCPT, quarantine = SMFIF_QUARANTINE,
}) do
  expect(name .. " is not asked for", not mt.test_action(conn, action))
end
mt.disconnect(conn)
