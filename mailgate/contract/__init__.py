"""What every adapter has to do alike: the same policy, the same mail, the same outcome.

An adapter's tests play the server of its protocol (a `Server`) and run every case:

    from mailgate.contract import CASES, Case, NotServed, check

    REFUSED = {"recipient_added": "add needs add_recipient"}  # what the protocol cannot do

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_contract(case: Case) -> None:
        if case.name in REFUSED:
            with pytest.raises(NotServed, match=REFUSED[case.name]):
                check(case, MyServer(), MyAdapter.capabilities)
        else:
            check(case, MyServer(), MyAdapter.capabilities)

What a case expects is written out in it; no adapter is compared with another one.
"""

from mailgate.contract import content, envelope, verdicts
from mailgate.contract.case import Case, Delivery, Mail, NotServed, Server, check

CASES: list[Case] = [*content.CASES, *verdicts.CASES, *envelope.CASES]

__all__ = ["CASES", "Case", "Delivery", "Mail", "NotServed", "Server", "check"]
