"""Training learns, repeats itself bit for bit, resumes as if it had never stopped, and stops when it must."""

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from delta.batch import Batch
from delta.errors import DeltaError
from delta.objective import LossConfig, Objective, TargetStatistics
from delta.optimizer import OptimizerConfig
from delta.student import StudentConfig, build_student
from delta.train import NotFinite, StepReport, fit
from delta.train_state import TrainState

CPU = torch.device("cpu")
EXACT = OptimizerConfig(precision="float32", lr_encoder=2e-3, lr_decoder=2e-3, warmup=0.0, ema_decay=0.9)
LOSS = LossConfig(affine_invariant=1.0, gradient=0.5, raw=0.2, features=0.3, levels=(16, 32))
TAPS = ("block09", "block12")


def start(config: OptimizerConfig = EXACT, seed: int = 0, loss: LossConfig = LOSS) -> TrainState:
    torch.manual_seed(seed)
    student = build_student(StudentConfig(width=16))
    each = {tap: torch.zeros(4) for tap in TAPS}
    ones = {tap: torch.ones(4) for tap in TAPS}
    statistics = TargetStatistics(disparity_scale=1.0, feature_mean=each, feature_std=ones)
    return TrainState(student, Objective(loss, student.channels, statistics), config, CPU)


def batch_of(seed: int) -> Batch:
    """Two images whose brightness is their depth, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 4, 4, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)
    return Batch(
        image=image.contiguous(),
        disparity=image[:, 0] * 2 + 0.5,
        valid=torch.ones(2, 64, 64, dtype=torch.bool),
        features={tap: torch.randn(2, 4, 4, 4, generator=generator) for tap in TAPS},
        attention={},
        feature_weight=torch.ones(2),
        samples=torch.tensor([10 * seed, 10 * seed + 1]),
    )


def batches(first: int = 0) -> Iterator[Batch]:
    return map(batch_of, itertools.count(first))


def run(state: TrainState, total: int, config: OptimizerConfig = EXACT, until: int | None = None) -> list[StepReport]:
    steps = fit(state, batches(state.step), config, total)
    return list(itertools.islice(steps, None if until is None else until - state.step))


def numbers(reports: list[StepReport]) -> list[StepReport]:
    """The reports without their times."""
    return [msgspec.structs.replace(report, step_s=0.0, wait_s=0.0) for report in reports]


def snapshot(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"student.{name}": value for name, value in state.student.state_dict().items()}
    tensors |= {f"objective.{name}": value for name, value in state.objective.state_dict().items()}
    if state.average:
        tensors |= {f"average.{name}": value for name, value in state.average.module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    return {name: value.detach().clone() for name, value in tensors.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_the_loss_falls_when_two_images_are_learned_by_heart():
    state, batch = start(), batch_of(0)
    reports = list(fit(state, itertools.repeat(batch), EXACT, 30))
    assert [report.step for report in reports] == list(range(1, 31))
    first, last = reports[0].terms, reports[-1].terms
    # Seen: to 0.3 of the start, with one thread or two; a trainer that does not learn stays at 1.
    assert last["total"] < 0.5 * first["total"]
    assert last["affine_invariant"] < 0.5 * first["affine_invariant"]


def test_the_same_seed_gives_the_same_curve_and_weights_bit_for_bit():
    one, two, other = start(), start(), start(seed=1)
    curves = [numbers(run(state, 2)) for state in (one, two, other)]
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]
    assert differing(snapshot(one), snapshot(two)) == []


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_a_run_stopped_and_resumed_from_its_file_is_the_run_without_a_stop(tmp_path, ema_decay):
    config = msgspec.structs.replace(EXACT, ema_decay=ema_decay, warmup=0.3)
    whole = start(config)
    curve = numbers(run(whole, 5, config))
    stopped = start(config)
    first = run(stopped, 5, config, until=2)
    stopped.save(tmp_path / "state.safetensors")
    resumed = start(config, seed=7)
    resumed.load(tmp_path / "state.safetensors")
    assert resumed.step == 2
    assert numbers(first + run(resumed, 5, config)) == curve
    assert differing(snapshot(whole), snapshot(resumed)) == []


def test_a_finished_run_takes_no_step_more():
    state = start()
    run(state, 2)
    before = snapshot(state)
    assert run(state, 2) == []
    assert differing(before, snapshot(state)) == []


def test_what_is_frozen_and_what_has_no_gradient_survives_the_file(tmp_path):
    loss = msgspec.structs.replace(LOSS, train_projectors=False)
    state = start(loss=loss)
    before = snapshot(state)
    run(state, 1)
    after = snapshot(state)
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("objective.")} <= unchanged
    state.save(tmp_path / "state.safetensors")
    other = start(seed=3, loss=loss)
    other.load(tmp_path / "state.safetensors")
    assert differing(snapshot(state), snapshot(other)) == []


@pytest.mark.parametrize("damage", [b"", b"half of it"])
def test_a_damaged_state_is_said_in_one_sentence(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    start().save(path)
    path.write_bytes(damage or path.read_bytes()[:-100])
    with pytest.raises(DeltaError, match=r"state\.safetensors is damaged") as caught:
        start().load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def unlearnable(total: str) -> Any:
    """An objective whose loss, or only its gradient, is not a number from the second step on."""
    calls = itertools.count(1)

    class Bad(torch.nn.Module):
        def forward(self, disparity: Tensor, _levels: list[Tensor], _batch: Batch) -> dict[str, Tensor]:
            value = disparity.mean()
            if next(calls) > 1:
                value = value * math.nan if total == "loss" else value + (disparity * 0).sum().sqrt()
            return {"raw": value, "total": value}

    return Bad()


@pytest.mark.parametrize(
    ("what", "named"), [("loss", "the loss is not finite"), ("gradient", "gradient is not finite")]
)
def test_what_is_not_finite_stops_the_run_and_leaves_the_weights_as_they_were(what, named):
    state = start()
    state.forward.objective = unlearnable(what)
    steps = fit(state, batches(), EXACT, 4)
    next(steps)
    before, step = snapshot(state), state.step
    with pytest.raises(NotFinite, match=f"{named} at step 2") as caught:
        next(steps)
    assert (caught.value.step, caught.value.samples) == (2, [10, 11])
    assert "raw" in str(caught.value)
    assert "learning rates" in caught.value.hint
    assert state.step == step == 1
    # The norms' running statistics moved with the forward pass; nothing that is learned did.
    moved = {name.rsplit(".", 1)[1] for name in differing(before, snapshot(state))}
    assert moved <= {"running_mean", "running_var", "num_batches_tracked"}
    assert all(value.isfinite().all() for value in snapshot(state).values())


def test_the_average_follows_the_student_and_is_the_best_student():
    state = start()
    run(state, 3)
    assert state.average is not None
    assert state.best_student is state.average.module
    weight = "decoder.head.2.weight"
    averaged, current = (module.state_dict()[weight] for module in (state.best_student, state.student))
    first = start().student.state_dict()[weight]
    assert not torch.equal(averaged, current)
    assert 0 < (averaged - first).norm() < (current - first).norm()


def test_without_an_average_the_student_itself_is_the_best():
    config = msgspec.structs.replace(EXACT, ema_decay=0.0)
    state = start(config)
    run(state, 1, config)
    assert state.average is None
    assert state.best_student is state.student


def test_the_average_does_not_touch_the_training():
    off = msgspec.structs.replace(EXACT, ema_decay=0.0)
    with_average, without = start(), start(off)
    assert numbers(run(with_average, 2)) == numbers(run(without, 2, off))


def test_the_learning_rate_warms_up_and_falls_to_its_end_by_the_step_alone():
    config = msgspec.structs.replace(EXACT, warmup=0.5, lr_final=1e-5)
    rates = [report.learning_rate for report in run(start(config), 4, config)]
    middle = (1e-5 + 2e-3) / 2
    last = 1e-5 + (2e-3 - 1e-5) * (1 + math.cos(math.pi * 3 / 4)) / 2  # Loshchilov and Hutter, step 3 of 4
    assert rates == pytest.approx([1e-5, middle, middle, last])
    resumed = start(config)
    resumed.step = 3
    assert run(resumed, 4, config)[0].learning_rate == rates[3]


def test_encoder_and_decoder_have_their_own_rates_and_norms_and_biases_no_decay():
    state = start(msgspec.structs.replace(EXACT, lr_encoder=1e-4, lr_decoder=1e-2))
    groups = state.optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-4, 0.05),
        (1e-4, 0.0),
        (1e-2, 0.05),
        (1e-2, 0.0),
    ]
    assert all(p.ndim > 1 for group in groups[::2] for p in group["params"])
    assert all(p.ndim <= 1 for group in groups[1::2] for p in group["params"])
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for module in (state.student, state.objective) for p in module.parameters()}


def test_a_gradient_above_the_limit_is_clipped_and_reported_as_it_was():
    tight = msgspec.structs.replace(EXACT, clip_norm=1e-3)
    loose, clipped = start(), start(tight)
    norms = [run(loose, 1)[0].grad_norm, run(clipped, 1, tight)[0].grad_norm]
    assert norms[0] == norms[1] > 1e-3
    parameters = [p.grad for group in clipped.optimizer.param_groups for p in group["params"] if p.grad is not None]
    assert torch.stack([g.norm() for g in parameters]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_reaches_the_forward_pass_and_not_the_losses_or_weights():
    half = msgspec.structs.replace(EXACT, precision="bfloat16")
    exact, rough = start(), start(half)
    seen = []
    forward = rough.objective.forward

    def spy(*arguments: Any) -> dict[str, Tensor]:
        terms = forward(*arguments)
        seen.extend([arguments[0].dtype, terms["total"].dtype])
        return terms

    rough.objective.forward = spy
    a, b = run(exact, 1)[0].terms["total"], run(rough, 1, half)[0].terms["total"]
    assert a != b
    assert a == pytest.approx(b, rel=0.05)  # bfloat16 keeps 8 bits
    assert seen == [torch.bfloat16, torch.float32]
    assert {value.dtype for value in rough.student.parameters()} == {torch.float32}


def without_batch_norms(state: TrainState) -> TrainState:
    """Norms see the images of a batch together: what is left without them does not."""
    for module in state.student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, norm=module: norm  # type: ignore[method-assign]
    return state


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_batch_in_parts_is_the_step_of_the_whole_batch(mirrored):
    parted = msgspec.structs.replace(EXACT, accumulate=2)
    one, two = without_batch_norms(start()), without_batch_norms(start(parted))
    batch = batch_of(3)
    if mirrored:  # the weights of the feature terms are shares of the whole batch
        batch = msgspec.structs.replace(batch, feature_weight=torch.tensor([2.0, 0.0]))
    reports = [next(fit(s, [batch], c, 1)) for s, c in ((one, EXACT), (two, parted))]
    assert reports[0].terms == pytest.approx(reports[1].terms, rel=1e-5)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-4)
    assert reports[0].images == reports[1].images == 2
    gradients = [
        torch.cat([p.grad.flatten() for p in s.student.parameters() if p.grad is not None]) for s in (one, two)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_float16_scales_its_loss_skips_what_overflows_and_resumes(tmp_path):
    config = msgspec.structs.replace(EXACT, precision="float16")
    state = start(config)
    before = snapshot(state)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**127})  # too high for any gradient
    report = run(state, 3, config, until=1)[0]
    assert not math.isfinite(report.grad_norm)
    assert math.isfinite(report.terms["total"])
    weight = "student.decoder.head.2.weight"
    assert torch.equal(snapshot(state)[weight], before[weight])
    assert state.scaler.get_scale() == 2.0**126
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 256.0})
    assert math.isfinite(run(state, 3, config, until=2)[0].grad_norm)
    assert not torch.equal(snapshot(state)[weight], before[weight])
    state.save(tmp_path / "state.safetensors")
    other = start(config)
    other.load(tmp_path / "state.safetensors")
    assert other.scaler.state_dict() == state.scaler.state_dict()


def test_a_gradient_that_overflows_at_any_scale_stops_the_run():
    config = msgspec.structs.replace(EXACT, precision="float16")
    state = start(config)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 1.0})
    state.forward.objective = unlearnable("gradient")
    steps = fit(state, batches(), config, 4)
    next(steps)
    with pytest.raises(NotFinite, match="the gradient is not finite at step 2"):
        next(steps)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("can't allocate memory: 8 GB"),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(error):
    def fail(*_: object) -> None:
        raise error

    state = start()
    state.forward.objective.forward = fail
    with pytest.raises(DeltaError, match="ran out of memory on 2 images of 64 px in 1 part") as caught:
        run(state, 1)
    assert all(name in caught.value.hint for name in ("optimizer.accumulate to 2", "batch_size", "size_px", "bfloat16"))


def test_a_compiler_that_fails_says_how_to_do_without():
    from torch._dynamo.exc import InternalTorchDynamoError

    def fail(*_: object) -> None:
        raise InternalTorchDynamoError("no C++ compiler\nand much more")

    state = start()
    state.forward.objective.forward = fail
    with pytest.raises(DeltaError, match=r"^torch.compile failed: no C\+\+ compiler$") as caught:
        run(state, 1)
    assert caught.value.hint == "set optimizer.compile to false"


def test_another_runtime_error_is_a_bug_and_stays_one():
    state = start()
    state.forward.objective.forward = lambda *_: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size") as caught:
        run(state, 1)
    assert not isinstance(caught.value, DeltaError)


def test_the_report_says_how_long_the_step_waited_for_its_batch():
    def slow() -> Iterator[Batch]:
        time.sleep(0.2)
        yield batch_of(0)

    report = next(fit(start(), slow(), EXACT, 1))
    assert 0.2 <= report.wait_s < report.step_s


def test_a_state_of_another_student_is_refused_in_a_sentence(tmp_path):
    start().save(tmp_path / "state.safetensors")
    other = build_student(StudentConfig(width=24))
    state = TrainState(other, start().objective, EXACT, CPU)
    with pytest.raises(DeltaError, match="is not the state of this student and recipe"):
        state.load(tmp_path / "state.safetensors")


@pytest.mark.parametrize("config", [{"channels_last": False}, {"ema_decay": 0.0}, {"clip_norm": 1e9}])
def test_each_option_still_learns(config):
    changed = msgspec.structs.replace(EXACT, **config)
    state, batch = start(changed), batch_of(0)
    reports = list(fit(state, itertools.repeat(batch), changed, 5))
    assert reports[-1].terms["total"] < reports[0].terms["total"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_student_takes_the_same_step():
    compiled = msgspec.structs.replace(EXACT, compile=True)
    plain, fast = (run(start(config), 2, config) for config in (EXACT, compiled))
    assert fast[0].terms == pytest.approx(plain[0].terms, rel=1e-3)
    assert all(math.isfinite(value) for value in fast[1].terms.values())


def test_a_state_is_saved_while_the_run_goes_on_without_changing_it(tmp_path):
    state, twin = start(), start()
    run(twin, 3)
    steps = fit(state, batches(), EXACT, 3)
    for report in steps:
        before = snapshot(state)
        state.save(tmp_path / f"{report.step}.safetensors")
        assert differing(before, snapshot(state)) == []
    assert differing(snapshot(state), snapshot(twin)) == []
