"""Model files of the commands, written and read by skops."""

import zipfile

from .._base import KERNELS
from .._command_line import UsageError, write_output
from ..estimators import ConvRFMClassifier
from ..features import ConvFeatures

# Loading them sets attributes and runs nothing.
TRUSTED = {
    f"{kind.__module__}.{kind.__name__}"
    for kind in (ConvRFMClassifier, ConvFeatures, *KERNELS.values())
}


def find_skops():
    """Return `skops.io`, or say how to get it."""
    try:
        import skops.io
    except ImportError as error:
        remedy = 'pip install "skconvrfm[save]"'
        raise UsageError(f"model files need skops: {remedy}") from error
    return skops.io


def save_model(model, path):
    """Write a fitted classifier, whole or not at all."""
    io = find_skops()
    options = {"compression": zipfile.ZIP_DEFLATED}
    write_output("--out", path, lambda file: io.dump(model, file, **options))


def load_model(path):
    """Return the fitted classifier in a file, whatever else is there is refused."""
    io, place = find_skops(), f"MODEL {path}"
    try:
        unknown = set(io.get_untrusted_types(file=path)) - TRUSTED
        if unknown:
            names = ", ".join(sorted(unknown))
            raise UsageError(f"{place}: names {names}, which no model of this has")
        model = io.load(path, trusted=sorted(TRUSTED))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise UsageError(f"{place}: is no file of skconvrfm train") from error
    except Exception as error:  # of any type, by damage and version
        raise UsageError(f"{place}: cannot be loaded: {error}") from error
    if not isinstance(model, ConvRFMClassifier) or not hasattr(model, "classes_"):
        kind = type(model).__name__
        raise UsageError(f"{place}: holds a {kind}, not a fitted ConvRFMClassifier")
    return model
