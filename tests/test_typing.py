"""Public signatures have type annotations."""

import inspect

from test_doctests import public_objects


def public_signatures():
    """Yield functions, constructors and methods of all public objects."""
    for name, value in public_objects():
        if not inspect.isclass(value):
            yield name, inspect.signature(value)
            continue
        for method, function in vars(value).items():
            function = getattr(function, "__func__", function)
            if method in ("__init__", "__call__") or not method.startswith("_"):
                if inspect.isfunction(function):
                    yield f"{name}.{method}", inspect.signature(function)


def test_public_signatures_are_annotated():
    empty = inspect.Signature.empty
    unsaid = [
        (name, parameter.name)
        for name, signature in public_signatures()
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls") and parameter.annotation is empty
    ]
    assert unsaid == []
    returns = dict(public_signatures()).items()
    assert [name for name, s in returns if s.return_annotation is empty] == []
