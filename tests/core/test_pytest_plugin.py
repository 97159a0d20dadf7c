"""The fixture `adapter`: one test, every installed protocol."""

from __future__ import annotations

import pytest

from mailgate import adapter

pytest_plugins = ("pytester",)


def test_a_test_that_takes_it_runs_once_for_each_protocol(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from mailgate import Message, Policy, Reject
        from mailgate.testing import send

        def test_refusal(adapter: str) -> None:
            policy = Policy()

            @policy.mail
            async def no(message: Message) -> Reject | None:
                return Reject(f"not on {message.session.adapter}")

            assert send(policy, adapter=adapter).reply == f"550 5.7.1 not on {adapter}"

        def test_without() -> None: ...
        """
    )
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=len(adapter.names()) + 1)
    result.stdout.fnmatch_lines(["*::test_refusal?opensmtpd? PASSED*"])


def test_it_is_listed_with_the_other_fixtures(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--fixtures").stdout.fnmatch_lines(
        ["adapter*", "*name of an installed protocol*"]
    )


def test_it_costs_other_test_runs_nothing(pytester: pytest.Pytester) -> None:
    """A plugin is imported in every pytest run on the machine."""
    pytester.makepyfile(
        """
        import sys

        def test_imports() -> None:
            assert "mailgate.pytest_plugin" in sys.modules
            heavy = {"mailgate.engine", "mailgate.testing", "mailgate.cli", "click", "uvloop"}
            assert not heavy & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
