"""mailgate behind the milter protocol of Postfix and Sendmail."""

from mailgate_milter.adapter import MilterAdapter

__all__ = ["MilterAdapter"]
