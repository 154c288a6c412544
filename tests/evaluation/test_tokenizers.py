"""Own tokenizers: exports name them, evaluation builds them again, and they alone say which images they take."""

import json
import re
import sys

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.encoders import GridTransformer, export_encoder, load_encoder, wrap
from ssl_blocks.evaluation import Extractor
from ssl_blocks.evaluation.classifier import Classifier
from ssl_blocks.evaluation.saved import load_classifier, save_classifier
from ssl_blocks.evaluation.subject import find_subject
from ssl_blocks.evaluation.tokenizers import rebuild_tokenizer
from ssl_blocks.parts import StoredTokenizer

MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)


class Backwards(sb.PatchTokenizer):
    """A user's own: patches in the order of reading backwards."""

    def __call__(self, images):
        return super().__call__(images.flip(-1, -2))


class Nameless:
    """A user's own, which does not say how it is built."""

    def __init__(self):
        self.inner = sb.PatchTokenizer(image_size=8, patch_size=4, channels=2)
        self.grid, self.patch, self.channels = self.inner.grid, self.inner.patch, 2

    def __call__(self, images):
        return self.inner(images)

    def untokenize(self, patches):
        return self.inner.untokenize(patches)


TOKENIZERS = {
    "channels": sb.ChannelTokenizer(image_size=8, patch_size=4, channels=5),
    "video": sb.ChannelTokenizer(image_size=(8, 4), patch_size=4, channels=4, depth=2),
    "volumes": sb.PatchTokenizer(image_size=(4, 8, 8), patch_size=(2, 4, 4), channels=1, crop=1),
    "remainder": sb.PatchTokenizer.from_grid(image_size=(11, 9), grid=(2, 2), channels=2, crop=1),
    "signal": sb.PatchTokenizer(image_size=(64,), patch_size=8, channels=2),
    "own": Backwards(image_size=8, patch_size=4, channels=2),
}
SHAPES = {
    "channels": (5, 8, 8),
    "video": (4, 8, 4),
    "volumes": (1, 4, 8, 8),
    "remainder": (2, 11, 9),
    "signal": (2, 64),
}
SHAPES["own"] = (2, 8, 8)


def encoder_of(tokenizer):
    torch.manual_seed(0)
    size = tuple(n * p for n, p in zip(tokenizer.grid.sizes, tokenizer.patch, strict=True))
    sizes = {"patch_size": tokenizer.patch, "channels": tokenizer.channels, "dim": 12, "depth": 1, "num_heads": 2}
    return wrap(GridTransformer(image_size=size, **sizes)).eval()


def exported(name, folder):
    encoder, shape = encoder_of(TOKENIZERS[name]), SHAPES[name]
    statistics = {"mean": MEAN[: shape[0]], "std": STD[: shape[0]]}
    return encoder, export_encoder(encoder, folder / "encoder", tokenizer=TOKENIZERS[name], **statistics)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_exported_encoder_is_fed_as_in_pretraining(name, tmp_path):
    encoder, folder = exported(name, tmp_path)
    images = torch.randint(0, 256, (3, *SHAPES[name]), dtype=torch.uint8)
    subject = find_subject(str(folder))
    assert subject.extractor.mean == MEAN[: len(images[0])]
    assert subject.knows_statistics
    trained = Extractor(encoder, subject.extractor.mean, subject.extractor.std, TOKENIZERS[name])
    assert torch.equal(subject.extractor(images), trained(images))
    subject.extractor.check(SHAPES[name])
    cuts = name not in ("signal",)  # which whole images are as good for
    assert (subject.extractor.tokenizer is not None) == cuts
    if cuts:
        assert type(subject.extractor.tokenizer) is type(TOKENIZERS[name])
        assert subject.image_size == TOKENIZERS[name].image_size
        with pytest.raises(ValueError, match="image_size=12 must be left out: this encoder was pretrained on patches"):
            find_subject(str(folder), image_size=12)
    with pytest.raises(ValueError, match=r"do not fit|channels"):
        subject.extractor(torch.zeros(2, 7, *SHAPES[name][1:], dtype=torch.uint8))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_described_in_plain_values_and_built_again(name):
    tokenizer = TOKENIZERS[name]
    assert isinstance(tokenizer, StoredTokenizer)
    images = torch.rand(2, *SHAPES[name])
    again = type(tokenizer).rebuild(json.loads(json.dumps(tokenizer.describe())))
    assert torch.equal(again(images), tokenizer(images))
    assert (again.grid, again.patch, again.image_size) == (tokenizer.grid, tokenizer.patch, tokenizer.image_size)


def test_a_classifier_is_saved_with_its_tokenizer(tmp_path):
    tokenizer = TOKENIZERS["channels"]
    model = Classifier(encoder_of(tokenizer), num_classes=3, tokenizer=tokenizer).eval()
    images = torch.rand(2, 5, 8, 8)
    found = load_classifier(save_classifier(model, tmp_path, mean=MEAN, std=STD))
    assert torch.equal(found.model(images), model(images))
    nameless = Classifier(encoder_of(Nameless()), num_classes=3, tokenizer=Nameless())
    with pytest.raises(TypeError, match=r"must have describe and rebuild \(StoredTokenizer\) .*:Nameless has not"):
        save_classifier(nameless, tmp_path / "other", mean=MEAN[:2], std=STD[:2])


def test_what_cannot_be_built_again_is_one_clear_error_and_ends_no_run(tmp_path):
    half = {"mean": MEAN[:2], "std": STD[:2]}
    folder = export_encoder(encoder_of(Nameless()), tmp_path / "encoder", tokenizer=Nameless(), **half)
    assert load_encoder(folder).features(torch.zeros(1, 2, 8, 8)).shape == (1, 12)
    message = (
        f"pretrained behind a tokenizer {__name__}:Nameless, which cannot be built again: give the class describe()"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        find_subject(str(folder))


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"name": "no_such_module:Tubes", "arguments": {}}, "behind a tokenizer, and 'no_such_module:Tubes' cannot be"),
        ({"name": "subprocess:Popen", "arguments": {"args": "false"}}, "subprocess:Popen must be a tokenizer with"),
        (
            {"name": "ssl_blocks.parts.tokenize:ChannelTokenizer", "arguments": {"side": 3}},
            "tokenizer ssl_blocks.parts.tokenize:ChannelTokenizer cannot be built of {'side': 3}: ",
        ),
    ],
)
def test_what_is_no_tokenizer_is_not_called(note, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rebuild_tokenizer(note)


def test_a_class_of_a_script_is_named_after_its_file(monkeypatch):
    from ssl_blocks.encoders.hub import tokenizer_note

    class Main:
        __spec__ = None
        __file__ = "/somewhere/my_tubes.py"

    monkeypatch.setitem(sys.modules, "__main__", Main)
    monkeypatch.setattr(Backwards, "__module__", "__main__")
    assert tokenizer_note(TOKENIZERS["own"])["name"] == "my_tubes:Backwards"
