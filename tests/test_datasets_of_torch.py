"""Lists of images, and torch's Datasets and DataLoaders, are what their arrays are."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import config_context
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.datasets import load_digit_images
from skconvrfm.features import ConvFeatures

IMAGES, LABELS = load_digit_images(return_X_y=True)
IMAGES, LABELS = np.uint8(255 * IMAGES[:60]), LABELS[:60] % 3


def make_model(**options):
    return ConvRFMClassifier(
        "linear", ConvFeatures(8, patch_size=3), n_rounds=0
    ).set_params(**options)


EXPECTED = make_model().fit(IMAGES, LABELS).decision_function(IMAGES)


class Pairs(Dataset):
    """Pairs of an image, as `convert` makes it, and a label."""

    def __init__(self, convert=np.asarray, images=IMAGES, parts=2):
        self.convert, self.images, self.parts = convert, images, parts

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        label = int(LABELS[index])
        return (self.convert(self.images[index]), label, label)[: self.parts]


def first(images=IMAGES):
    """Images (n, 1, h, w), as torch has them."""
    return torch.as_tensor(images[:, None])


def test_lists_of_images_are_their_arrays():
    for convert in (Image.fromarray, np.asarray, torch.as_tensor):
        images = [convert(image) for image in IMAGES]
        model = make_model().fit(images, LABELS)
        np.testing.assert_array_equal(model.decision_function(images), EXPECTED)


def test_pil_images_of_a_palette_are_refused_by_index():
    images = [Image.fromarray(image) for image in IMAGES]
    images[2] = images[2].convert("P")
    with pytest.raises(ValueError, match=r"X\[2\] is a PIL image of mode 'P'.*convert"):
        make_model().fit(images, LABELS)


def test_lists_of_other_sizes_name_the_first_odd_one():
    images = [Image.fromarray(image) for image in IMAGES]
    images[3] = images[3].resize((9, 8))
    with pytest.raises(ValueError, match=r"\(8, 9\) \(number 3\).*load_image_folder"):
        make_model().fit(images, LABELS)


@pytest.mark.parametrize(
    "dataset",
    [
        Pairs(),
        Pairs(Image.fromarray),
        DataLoader(Pairs(torch.as_tensor), batch_size=7),
        DataLoader(Pairs(torch.as_tensor), batch_size=None),
        TensorDataset(torch.as_tensor(IMAGES), torch.as_tensor(LABELS)),
    ],
)
def test_a_dataset_gives_images_and_labels(dataset):
    model = make_model().fit(dataset)
    np.testing.assert_array_equal(model.decision_function(dataset), EXPECTED)
    partial = make_model().partial_fit(dataset)
    np.testing.assert_array_equal(partial.predict(dataset), model.predict(IMAGES))


def test_channels_of_torch_come_first():
    dataset = TensorDataset(first(), torch.as_tensor(LABELS))
    model = make_model(channels="first").fit(dataset)
    np.testing.assert_array_equal(model.decision_function(dataset), EXPECTED)
    with pytest.raises(ValueError, match="pass channels='first'"):
        make_model().fit(dataset)


def test_given_targets_replace_labels():
    y = np.arange(60.0)
    model = ConvRFMRegressor(n_rounds=0)
    found = model.fit(Pairs(), y).predict(Pairs())
    np.testing.assert_array_equal(found, model.fit(IMAGES, y).predict(IMAGES))


def test_a_dataset_without_labels_needs_y():
    dataset = TensorDataset(torch.as_tensor(IMAGES))
    with pytest.raises(ValueError, match="requires y"):
        make_model().fit(dataset)
    model = make_model().fit(dataset, LABELS)
    np.testing.assert_array_equal(model.decision_function(dataset), EXPECTED)


def test_shuffled_loaders_serve_a_fit_alone():
    loader = DataLoader(Pairs(torch.as_tensor), batch_size=8, shuffle=True)
    model = make_model().fit(loader)
    np.testing.assert_allclose(model.decision_function(IMAGES), EXPECTED, atol=1e-3)
    for call in (model.predict, lambda X: model.fit(X, LABELS)):
        with pytest.raises(
            ValueError, match="DataLoader with a RandomSampler.*shuffle"
        ):
            call(loader)


def test_datasets_beyond_the_working_memory_lie_in_a_file(monkeypatch):
    with config_context(working_memory=0.003):
        model = make_model().fit(Pairs())
        assert model.scale_ == 255
        found = model.decision_function(Pairs())
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-4, atol=1e-5)


def test_transformers_take_datasets():
    learner = ConvRFMClassifier(n_rounds=1)
    for output in ("filters", "image"):
        transformer = PatchAGOPTransformer(learner, output=output)
        expected = transformer.fit(IMAGES, LABELS).transform(IMAGES)
        found = transformer.fit(Pairs()).transform(Pairs())
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(transformer.fit_transform(Pairs()), expected)


class Endless(IterableDataset):
    def __iter__(self):
        yield IMAGES[0], 0


@pytest.mark.parametrize(
    ("dataset", "match", "kind"),
    [
        (Pairs(parts=3), "items of 3 parts", TypeError),
        (Endless(), "unknown length: call partial_fit", TypeError),
        (DataLoader(Endless()), "unknown length: call partial_fit", TypeError),
        (Pairs(images=IMAGES[:0]), "without images", ValueError),
        (
            Pairs(images=[*IMAGES[:5], np.zeros((9, 8))]),
            r"X\[5\] is an image of shape \(9, 8\).*transform",
            ValueError,
        ),
    ],
)
def test_datasets_that_hold_no_images_are_refused(dataset, match, kind):
    with pytest.raises(kind, match=match):
        make_model().fit(dataset)
