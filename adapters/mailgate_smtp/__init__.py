"""The SMTP and LMTP proxy: a policy in front of any mail server."""
