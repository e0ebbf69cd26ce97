"""The page of the API groups every parameter by its purpose."""

import inspect
import re
from pathlib import Path

import pytest

import skconvrfm.kernels as kernels
from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.features import ConvFeatures

PAGE = Path(__file__).parents[1] / "docs" / "api" / "index.rst"
SECTIONS = {
    "Estimators": [ConvRFMClassifier, ConvRFMRegressor],
    "Kernels": [kernels.ConvNTK, kernels.PatchLaplace, kernels.Gaussian],
    "Feature layers": [ConvFeatures],
}


@pytest.mark.skipif(not PAGE.exists(), reason="tests run without the repository")
@pytest.mark.parametrize("section", SECTIONS)
def test_api_page_names_every_parameter(section):
    text = re.search(rf"^{section}\n-+\n(.*?)\n-+\n", PAGE.read_text(), re.M | re.S)[1]
    named = set(re.findall(r"`(\w+)`", text))
    for public in SECTIONS[section]:
        assert set(inspect.signature(public).parameters) <= named
