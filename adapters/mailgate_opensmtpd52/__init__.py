"""mailgate behind the legacy filter API of OpenSMTPD."""

from mailgate_opensmtpd52.adapter import OpenSMTPD52Adapter

__all__ = ["OpenSMTPD52Adapter"]
