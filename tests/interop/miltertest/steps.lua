-- What the scripts share: miltertest itself says nothing about what fails.

function expect(what, holds)
  if not holds then
    mt.echo("not so: " .. what)
    error(what)
  end
end

function done(what, problem)
  expect(what .. " is taken: " .. tostring(problem), problem == nil)
end

function replied(conn, what, reply)
  expect(what .. " is answered as it should", mt.getreply(conn) == reply)
end

-- Connect and agree on what a version of the protocol has.
function open(version, actions, steps)
  local conn = mt.connect(socket)
  expect("a connection", conn ~= nil)
  done("the offer", mt.negotiate(conn, version, actions, steps))
  return conn
end

-- Greet as a client does, with the macros of Postfix.
function greet(conn)
  mt.macro(conn, SMFIC_CONNECT, "j", "mta.example.org", "{daemon_name}", "smtpd")
  done("the client", mt.conninfo(conn, "mail.example.org", "192.0.2.1"))
  if not mt.test_option(conn, SMFIP_NOHELO) then
    done("the greeting", mt.helo(conn, "client.example.org"))
  end
end

-- Begin a message, and announce its content where somebody wants to know.
function begin(conn, sender, ...)
  mt.macro(conn, SMFIC_MAIL, "i", "4FAKE1", "{mail_addr}", sender)
  done("the sender", mt.mailfrom(conn, "<" .. sender .. ">"))
  for _, recipient in ipairs({...}) do
    done("a recipient", mt.rcptto(conn, "<" .. recipient .. ">"))
    replied(conn, "a recipient", SMFIR_CONTINUE)
  end
  if not mt.test_option(conn, SMFIP_NODATA) then
    done("the command DATA", mt.data(conn))
  end
end

-- Send the content, and have the milter decide.
function finish(conn, body)
  for _, field in ipairs({
    {"X-Gate", "the first"}, {"Date", "Fri, 02 Jan 2026 10:00:00 +0000"},
    {"X-Gate", "the second"}, {"Subject", "steps"},
    {"X-Gate", "the third,\n folded"}, {"To", "bob@example.test"},
  }) do
    done("a field", mt.header(conn, field[1], field[2]))
  end
  done("the end of the header", mt.eoh(conn))
  done("the body", mt.bodystring(conn, body))
  done("the end", mt.eom(conn))
end

-- See that the message passes: what a milter says to that is its own choice.
function passed(conn)
  local reply = mt.getreply(conn)
  expect("the message passes", reply == SMFIR_CONTINUE or reply == SMFIR_ACCEPT)
end
