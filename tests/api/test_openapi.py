"""The OpenAPI document is complete, and a short run of Schemathesis finds nothing against it."""

import json

from api.app import ROUTES
from tests.api.fuzzing import fuzz
from tests.api.harness import run, running_api


def test_every_route_is_in_the_document() -> None:
    async def test() -> None:
        async with running_api() as api:
            document = (await api.get("/openapi.json")).json
            documented = {
                (path, method.upper()) for path, methods in document["paths"].items() for method in methods
            }
            routes = {
                (route.path.replace(":path", ""), method)
                for route in ROUTES
                for method in route.methods or ()
                if method != "HEAD"
            }
            assert documented == routes
            model = document["components"]["schemas"]["ChatRequest"]["properties"]["model"]
            assert model == {"type": "string", "enum": ["fake"]}

    run(test())


def test_every_reference_leads_somewhere() -> None:
    async def test() -> None:
        async with running_api() as api:
            text = (await api.get("/openapi.json")).body.decode()
            names = set(json.loads(text)["components"]["schemas"])
            used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
            assert used <= names

    run(test())


def test_a_short_run_of_schemathesis() -> None:
    report = run(fuzz(12, seed=7, phases="fuzzing"))
    assert report.status == 0, report.output
    assert report.num_cases >= 60
    assert report.num_submitted
