"""The SMTP and LMTP proxy: a policy in front of any mail server."""

from mailgate_smtp.adapter import SmtpAdapter, SmtpOptions

__all__ = ["SmtpAdapter", "SmtpOptions"]
