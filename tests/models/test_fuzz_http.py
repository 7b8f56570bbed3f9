"""The HTTP surface under whatever our own OpenAPI document allows, and forbids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from aios_jupyter.data import Recipe

from .conftest import TOKEN, Served
from .test_serve import ask

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
EXAMPLES = 12

# The same cases in each run: what fails here fails everywhere.
steady = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed(serve: Callable[..., Served], line: Callable[..., Any]) -> Iterator[Served]:
    """An endpoint of a small model; it is still well at the end."""
    line("fuzzed", 2.0)
    served = serve("fuzzed")
    yield served
    assert ask(served, "POST", "/predict", '{"inputs": [[1, 2]]}')[1]["outputs"] == [[2, 4]]
    assert served.stop() == 0


@pytest.fixture(scope="module")
def rows_fuzzed(serve: Callable[..., Served], line: Callable[..., Any]) -> Iterator[Served]:
    """One with a recipe in front: it takes columns of numbers and of text."""
    raw = pd.DataFrame({"age": [1.0, None, 5.0], "city": ["Ulm", None, "Kiel"]})
    recipe = Recipe("lower(city), ordinal(city), fill(age, 0), robust(age)").fit(raw)
    line("fuzzed-rows", 2.0, recipe=recipe, input_example=raw)
    served = serve("fuzzed-rows")
    yield served
    reply = ask(served, "POST", "/predict", '{"inputs": [{"age": 1, "city": "ULM"}]}')[1]
    assert reply["outputs"] == [[0, 2]]
    assert served.stop() == 0


def operations(served: Served) -> dict[str, Any]:
    status, document = ask(served, "GET", "/openapi.json")
    assert status == 200
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def check(operation: Any, mode: Any, *, columns: bool = False) -> None:
    """Ask an operation with cases that fit its schema, or with such as do not."""
    # A schema cannot say that as many values are sent as the shape needs, or as other columns have.
    loose = columns or operation.path.endswith("/infer")
    without = [positive_data_acceptance] if loose else []

    @steady
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        case.call_and_validate(headers=HEADERS, excluded_checks=without)

    each()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_what_is_sent_is_answered_as_the_document_says(fuzzed: Served, mode: Any) -> None:
    """No 5xx, no status that is not in the document, no reply that does not fit its schema; what
    fits the document is taken, what does not is refused."""
    found = operations(fuzzed)
    assert len(found) == 14
    for operation in found.values():
        if mode is GenerationMode.POSITIVE or operation.body:  # of the others nothing can be wrong
            check(operation, mode)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_so_are_raw_rows(rows_fuzzed: Served, mode: Any) -> None:
    found = operations(rows_fuzzed)
    for path in ("/predict", "/invocations", "/v2/models/fuzzed-rows/infer"):
        check(found[f"POST {path}"], mode, columns=True)
