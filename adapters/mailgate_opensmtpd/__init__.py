"""mailgate behind OpenSMTPD's filter protocol."""

from mailgate_opensmtpd.adapter import OpenSMTPDAdapter

__all__ = ["OpenSMTPDAdapter"]
