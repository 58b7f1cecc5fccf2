"""`--model my_encoder.py`: a Python file that makes an encoder."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from test_verbs_clustering import davis

from unspool.cli import main
from unspool.encoders import facts_of, load_encoder
from unspool.errors import ShapeError, UsageError

POOLED = """
from torch import nn

def encoder():
    return nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.GELU())
"""


def file(folder: Path, content: str, name: str = "my_encoder.py") -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_a_file_that_returns_a_module_is_an_encoder(tmp_path: Path) -> None:
    path = file(tmp_path, POOLED)
    encoder = load_encoder(path, device="cpu")
    assert (encoder.name, encoder.patch, encoder.dim, encoder.multiple) == ("my_encoder.py", 16, 8, 16)
    assert encoder(torch.zeros(2, 3, 32, 64, dtype=torch.uint8))["tokens"].shape == (2, 8, 2, 4)
    assert not any(p.requires_grad for p in encoder.parameters())  # type: ignore[attr-defined]


def test_what_it_draws_follows_the_seed(tmp_path: Path) -> None:
    path = file(tmp_path, POOLED)
    hashes = [load_encoder(path, device="cpu", seed=seed).weights_hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_its_place_and_hash_are_recorded_and_other_code_is_another_encoder(tmp_path: Path) -> None:
    path = file(tmp_path, POOLED)
    facts = facts_of(load_encoder(path, device="cpu"))
    assert facts["file"] == {"path": str(path), "sha256": hashlib.sha256(POOLED.encode()).hexdigest()}
    file(tmp_path, POOLED.replace("GELU", "ReLU"))
    assert facts_of(load_encoder(path, device="cpu"))["weights_hash"] != facts["weights_hash"]


def test_the_attribute_patch_goes_before_a_probe(tmp_path: Path) -> None:
    path = file(
        tmp_path, POOLED.replace("return ", "m = ").replace("GELU())", "GELU()); m.patch = 8; return m")
    )
    with pytest.raises(ShapeError, match=r"my_encoder.py.*patch=8 it must return"):
        load_encoder(path, device="cpu")


def test_tokens_row_by_row_are_a_grid(tmp_path: Path) -> None:
    tokens = "nn.Sequential(nn.Conv2d(3, 8, 32, 32), nn.Flatten(2), Turn())"
    turn = "\nclass Turn(nn.Module):\n    def forward(self, x):\n        return x.transpose(1, 2)\n"
    path = file(tmp_path, POOLED.replace("nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.GELU())", tokens) + turn)
    assert load_encoder(path, device="cpu").patch == 32


def test_a_complete_encoder_is_taken_as_it_is(tmp_path: Path) -> None:
    content = """
        import timm
        from unspool.encoders.vit import ViTEncoder

        def encoder():
            network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True)
            return ViTEncoder(network, name="tiny")
    """
    encoder = load_encoder(file(tmp_path, re.sub(r"^ {8}", "", content, flags=re.MULTILINE)), device="cpu")
    assert (encoder.name, encoder.patch, encoder.dim) == ("my_encoder.py", 16, 192)
    assert "cls_attention" in encoder.offers


WRONG = {
    "has no function encoder": "x = 1",
    "cannot be run .SyntaxError": "def encoder(",
    "cannot be run .ModuleNotFoundError": "import no_such_library_here",
    "encoder.. failed .ValueError: no weights": "def encoder():\n    raise ValueError('no weights')",
    "encoder.. returned int": "def encoder():\n    return 3",
    "failed on an image of 224x224": "from torch import nn\ndef encoder():\n    return nn.Linear(3, 4)",
}


@pytest.mark.parametrize("message", WRONG)
def test_a_file_that_makes_no_encoder_is_told_why(message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"my_encoder.py: .*{message}"):
        load_encoder(file(tmp_path, WRONG[message]), device="cpu")


def test_an_answer_that_is_no_grid_is_told_its_shape(tmp_path: Path) -> None:
    pooled = POOLED.replace("nn.GELU()", "nn.AdaptiveAvgPool2d(1), nn.Flatten()")
    with pytest.raises(ShapeError, match=r"gave \[1, 8\].*drop class tokens and pooling"):
        load_encoder(file(tmp_path, pooled), device="cpu")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone.py: no such file"):
        load_encoder(tmp_path / "gone.py", device="cpu")


VERBS = {
    "tracking": ("--data", "davis17:DAVIS", "--resolution", "32"),
    "discovery": ("--data", "rendered:1", "--resolution", "32x48", "--protocol", "miou-frame"),
    "clustering": ("--data", "davis17:DAVIS", "--protocol", "f", "--resolution", "64", "--seeds", "1"),
    "incontext": ("--data", "rendered:1", "--resolution", "64", "--rows", "50", "--neighbours", "4"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_evaluation_takes_it(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    davis(tmp_path / "DAVIS", {"cows": [1]})
    file(tmp_path, POOLED)
    words = ["eval", verb, "--model", "my_encoder.py", "--device", "cpu", "-o", "out", "-q"]
    with pytest.raises(SystemExit) as end:
        main([*words, *VERBS[verb]])
    assert not end.value.code
    record = json.loads(Path("out/run.json").read_text())["model"]
    assert record["file"]["sha256"] == hashlib.sha256(POOLED.encode()).hexdigest()


# ------------------------------------------------------------------------------------- of other libraries

PAGE = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
HUBCONF = """
dependencies = ["timm"]

def tiny():
    import timm
    return timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0, dynamic_img_size=True)
"""


def example(library: str, published: str, ours: str) -> str:
    """The page's file for a library, with a model of ours in the place of the published one."""
    (text,) = [example for example in EXAMPLES if library in example]
    assert published in text
    return text.replace(published, ours)


def test_the_pages_file_for_torch_hub_is_an_encoder(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    local = f'"{tmp_path}", "tiny", source="local"'
    path = file(tmp_path, example("torch.hub", '"facebookresearch/dinov2", "dinov2_vits14"', local))
    encoder = load_encoder(path, device="cpu")
    assert (encoder.patch, encoder.dim) == (16, 192)
    assert encoder(torch.zeros(1, 3, 32, 64))["tokens"].shape == (1, 192, 2, 4)


@pytest.mark.consumers
def test_the_pages_file_for_hugging_face_is_an_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
    network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=56)).eval()
    network.save_pretrained(tmp_path / "tiny")
    path = file(tmp_path, example("transformers", "facebook/dinov2-small", str(tmp_path / "tiny")))
    encoder = load_encoder(path, device="cpu")
    assert (encoder.patch, encoder.dim) == (14, 24)
    images = torch.rand(1, 3, 28, 56)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        theirs = network(pixel_values=(images - mean) / std).last_hidden_state[:, 1:]
    assert torch.allclose(encoder(images)["tokens"].flatten(2).mT, theirs, atol=1e-5)
