"""AltUp is told by probing: with its router's scores held, it mixes its streams linearly. Relevance: test_streams."""

from __future__ import annotations

import pytest

from limelight.errors import UnknownKindError
from limelight.relevance.classify import classify_modules
from limelight.relevance.layers import altup
from tests.tiny import fresh


def test_streams_that_are_not_mixed_linearly_have_no_router() -> None:
    adapter = fresh("gemma3n")
    module = adapter.decoder.layers[1].altup
    assert [m.spec for m in altup.recognise("", module)] == [module.modality_router]
    plain = module.predict
    module.predict = lambda x: plain(x).tanh()
    assert not list(altup.recognise("", module))
    with pytest.raises(UnknownKindError, match="altup"):
        classify_modules(adapter.decoder)
    del module.predict
    classify_modules(adapter.decoder)
    assert not list(altup.recognise("", adapter.decoder.layers[1]))
