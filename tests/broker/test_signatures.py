"""Whether models have to be signed: said by admins, kept through a restart."""

from __future__ import annotations

import pytest
from simulated import Cluster

from aios_jupyter.broker import events as ev
from aios_jupyter.errors import AccessError


def test_admins_alone_say_so_and_it_is_kept_and_written_down() -> None:
    cluster = Cluster("fifo")
    assert not cluster.state.signature_required
    with pytest.raises(AccessError, match="ana may not say which models are used"):
        cluster.do(ev.SignatureDemanded(required=True, by="ana"))
    for required in (True, True, False):
        cluster.do(ev.SignatureDemanded(required=required, by="root", admin=True))
        assert cluster.state.signature_required is required
        cluster.restart()
        assert cluster.state.signature_required is required
    assert [(one.what, one.who) for one in cluster.audits] == [("signature demanded", "root")] * 2
