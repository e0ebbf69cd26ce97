"""Public signatures have type annotations."""

import inspect

import pytest
from test_doctests import public_objects


def public_signatures():
    """Yield functions, constructors and methods of all public objects."""
    for parameter in public_objects():
        value, name = parameter.values[0], parameter.id
        if not inspect.isclass(value):
            yield pytest.param(value, id=name)
            continue
        for method, function in vars(value).items():
            function = getattr(function, "__func__", function)
            if method in ("__init__", "__call__") or not method.startswith("_"):
                if inspect.isfunction(function):
                    yield pytest.param(function, id=f"{name}.{method}")


@pytest.mark.parametrize("function", list(public_signatures()))
def test_public_signature_is_annotated(function):
    signature = inspect.signature(function)
    parameters = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    unsaid = [p.name for p in parameters if p.annotation is inspect.Parameter.empty]
    assert unsaid == []
    assert signature.return_annotation is not inspect.Signature.empty
