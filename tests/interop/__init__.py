"""mailgate behind real mail servers from Debian packages, private and on loopback."""
