"""A teacher's answers are transformers' own, whatever kernel computed them; what cannot teach says why.

A Depth-Anything of 73 thousand random weights stands for the real one, which integration/test_real_teacher.py asks.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from delta.checkpoint import load_student
from delta.errors import DeltaError
from delta.teacher import (
    DEFAULT_TEACHER,
    IMAGENET_MEAN,
    IMAGENET_STD,
    StudentTeacher,
    Teacher,
    cls_attention,
    digest_weights,
    load_teacher,
    teacher_name,
)

BLOCKS, WIDTH, HEADS = 4, 32, 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in hub layout."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    config = DepthAnythingConfig(
        backbone_config={
            "model_type": "dinov2",
            "hidden_size": WIDTH,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "mlp_ratio": 2,
            "image_size": 56,
            "patch_size": 14,
            "apply_layernorm": True,
            "reshape_hidden_states": False,
            "out_features": [f"stage{block + 1}" for block in range(BLOCKS)],
        },
        reassemble_hidden_size=WIDTH,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(config)
    for name, weight in model.named_parameters():  # transformers starts so small that all answers are alike
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)
        elif name == "head.conv3.bias":
            torch.nn.init.constant_(weight, 2.0)
    folder = tmp_path_factory.mktemp("tiny") / "Depth-Anything-Tiny"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eager(tiny: Path) -> Any:
    """The same weights in transformers' slow kernel, which tells its attention."""
    from transformers import AutoModelForDepthEstimation

    return AutoModelForDepthEstimation.from_pretrained(str(tiny), attn_implementation="eager").eval()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 56, 84, generator=torch.Generator().manual_seed(1))


def normalized(image: Tensor) -> Tensor:
    return (image - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


@torch.inference_mode()
def test_disparity_is_transformers_own_at_the_inputs_size(tiny: Path, eager: Any, image: Tensor) -> None:
    disparity = load_teacher(str(tiny), taps=(1, 4))(image).disparity
    assert disparity.shape == (2, 56, 84)
    assert disparity.std() > 0.1
    torch.testing.assert_close(disparity, eager(normalized(image)).predicted_depth)


@torch.inference_mode()
def test_features_are_the_backbones_own_after_the_final_norm(tiny: Path, eager: Any, image: Tensor) -> None:
    features = load_teacher(str(tiny), taps=(1, 3))(image).features
    assert list(features) == ["block01", "block03"]
    maps = eager.backbone(normalized(image)).feature_maps
    for name, own in (("block01", maps[0]), ("block03", maps[2])):
        grid = own[:, 1:].transpose(1, 2).unflatten(2, (4, 6))  # rows of patches first, without the CLS token
        torch.testing.assert_close(features[name], grid)


@torch.inference_mode()
def test_attention_is_the_eager_kernels_cls_row(tiny: Path, eager: Any, image: Tensor) -> None:
    attention = load_teacher(str(tiny), taps=(2, 4))(image).attention
    assert list(attention) == ["block02", "block04"]
    own = eager(normalized(image), output_attentions=True).attentions
    for name, block in (("block02", 1), ("block04", 3)):
        grid = own[block][:, :, 0, 1:].unflatten(2, (4, 6))
        torch.testing.assert_close(attention[name], grid, atol=1e-6, rtol=1e-4)
        assert grid.std() > 1e-3  # not uniform
        assert (attention[name].sum(dim=(2, 3)) <= 1 + 1e-6).all()


def test_cls_attention_is_a_softmax_over_all_tokens() -> None:
    query, key = torch.randn(2, 2, 7, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    attention = cls_attention(query, key, 3, (2, 3))
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        weights = (key[1, :, part] @ query[1, 0, part] / 2**0.5).softmax(dim=0)
        torch.testing.assert_close(attention[1, head], weights[1:].view(2, 3))


def test_asking_leaves_no_hook_behind(tiny: Path, image: Tensor) -> None:
    teacher: Any = load_teacher(str(tiny), taps=(1, 2))
    teacher(image)
    hooks = [len(module._forward_hooks) for module in teacher._model.modules()]  # transformers has some of its own
    teacher(image)
    with pytest.raises(RuntimeError):
        teacher(image[:, :, :5, :5])  # smaller than a patch
    assert [len(module._forward_hooks) for module in teacher._model.modules()] == hooks


def test_the_identity_is_that_of_the_weights_and_not_of_the_place(tiny: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny, tmp_path / DEFAULT_TEACHER.split("/")[1]))
    here, there = load_teacher(str(tiny), taps=(4,)), load_teacher(str(moved), taps=(4,))
    assert here.identity.weights_sha256 == there.identity.weights_sha256
    assert (here.identity.name, there.identity.name) == ("Depth-Anything-Tiny", DEFAULT_TEACHER)
    assert here.identity.precision == "float32"
    assert here.parameters == sum(tensor.numel() for tensor in load_file(tiny / "model.safetensors").values())
    assert here.side_multiple == 14


def test_the_identity_is_the_same_from_half_precision_storage(tiny: Path, tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(tiny / "model.safetensors").items()}
    digests = []
    for name, stored in (("half", weights), ("single", {name: tensor.float() for name, tensor in weights.items()})):
        folder = Path(shutil.copytree(tiny, tmp_path / name))
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        digests.append(load_teacher(str(folder), taps=(4,)).identity.weights_sha256)
    assert digests[0] == digests[1] != load_teacher(str(tiny), taps=(4,)).identity.weights_sha256


def test_reduced_precision_is_part_of_the_identity_and_near(tiny: Path, image: Tensor) -> None:
    exact, rough = load_teacher(str(tiny), taps=(4,)), load_teacher(str(tiny), taps=(4,), precision="bfloat16")
    assert rough.identity.precision == "bfloat16"
    assert rough.identity.weights_sha256 == exact.identity.weights_sha256
    answer = rough(image)
    assert {value.dtype for value in (answer.disparity, *answer.features.values(), *answer.attention.values())} == {
        torch.float32
    }
    torch.testing.assert_close(answer.disparity, exact(image).disparity, rtol=0, atol=0.05)  # 8 bits of mantissa


@pytest.mark.parametrize("taps", [(), (0,), (5,), (3, 1), (2, 2)])
def test_taps_that_do_not_fit_are_refused(tiny: Path, taps: tuple[int, ...]) -> None:
    with pytest.raises(DeltaError, match=r"^taps \[.*\] do not fit a teacher of 4 blocks$") as caught:
        load_teacher(str(tiny), taps=taps)
    assert caught.value.hint == "give ascending block numbers from 1 to 4, such as [3, 6, 9, 12]"


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["backbone.layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"backbone.layernorm.weight": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:10000])


def set_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_tensor, "lacks 1 of its tensors, backbone.layernorm.weight among them"),
        (reshape_a_tensor, "cannot be loaded: "),
        (cut_the_weights, "cannot be loaded: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded: Error no file named"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be loaded: "),
        (lambda folder: (folder / "config.json").write_text("{oops"), "cannot be loaded: "),
        (set_config(model_type="bert"), "cannot be loaded: "),
        (set_config(depth_estimation_type="metric"), "answers metric depth, not relative disparity"),
    ],
)
def test_a_folder_that_cannot_teach_says_why(
    tiny: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "damaged"))
    damage(folder)
    with pytest.raises(DeltaError) as caught:
        load_teacher(str(folder), taps=(4,))
    assert str(caught.value).startswith(f"the teacher {folder} {message}")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["./teacher", "~/teacher", "/nowhere/teacher", "teacher", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delta.teacher._load_depth_anything", lambda name: pytest.fail("the hub was asked"))
    with pytest.raises(DeltaError, match=r"^there is no teacher at ") as caught:
        load_teacher(name)
    assert DEFAULT_TEACHER in caught.value.hint


def test_a_hub_that_cannot_be_reached_names_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForDepthEstimation

    def unreachable(*_arguments: Any, **_options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand more of that")

    monkeypatch.setattr(AutoModelForDepthEstimation, "from_pretrained", unreachable)
    with pytest.raises(DeltaError) as caught:
        load_teacher(DEFAULT_TEACHER)
    assert str(caught.value) == f"the teacher {DEFAULT_TEACHER} cannot be loaded: We couldn't connect to the hub"
    assert caught.value.hint.startswith("give --teacher (or DELTA_TEACHER) a local folder")


def test_the_teacher_is_the_one_given_else_the_environments_else_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTA_TEACHER", raising=False)
    assert teacher_name(None) == DEFAULT_TEACHER
    monkeypatch.setenv("DELTA_TEACHER", "somewhere")
    assert teacher_name(None) == "somewhere"
    assert teacher_name("given") == "given"


def test_a_digest_is_of_names_shapes_and_values_alone() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5])
    plain = digest_weights({"a": a, "b": b})
    assert digest_weights({"b": b, "a": a}) == plain
    assert digest_weights({"a": a.half(), "b": b.bfloat16()}) == plain
    assert digest_weights({"a": a.t().contiguous().t(), "b": b}) == plain
    others = [{"a": a.view(4), "b": b}, {"a": a.t(), "b": b}, {"c": a, "b": b}, {"a": a}, {"a": a, "b": b + 1e-6}]
    assert len({plain, *map(digest_weights, others)}) == 6


def test_a_student_teaches_with_its_levels_and_without_attention(random_student: Path) -> None:
    student, _card = load_student(random_student)
    teacher = load_teacher(str(random_student))
    assert isinstance(teacher, StudentTeacher)
    assert isinstance(teacher, Teacher)
    assert teacher.side_multiple == 64
    image = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    answer = teacher(image)
    with torch.inference_mode():
        disparity, levels = student.forward_with_features(image)
    torch.testing.assert_close(answer.disparity, disparity.clamp(min=0))
    assert answer.attention == {}
    assert list(answer.features) == ["stride04", "stride08", "stride16", "stride32"]
    for own, stride in zip(answer.features.values(), (4, 8, 16, 32), strict=True):
        torch.testing.assert_close(own, levels[stride])
        assert own.shape[2:] == (64 // stride, 128 // stride)
    assert teacher.identity.name == "delta student mobilevitv2_050 of nobody"
    assert teacher.identity.architecture == "mobilevitv2_050, light decoder"
    assert teacher.identity.weights_sha256 == digest_weights(student.state_dict())


def test_a_run_folder_teaches_like_its_checkpoint(random_student: Path) -> None:
    assert load_teacher(str(random_student.parent)).identity == load_teacher(str(random_student)).identity
