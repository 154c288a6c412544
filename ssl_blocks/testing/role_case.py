"""What the checks of all roles share: their error, their report, and how they look at random choices."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

NUM_SEEDS = 8


class RoleError(AssertionError):
    """A part does not keep what its role promises."""


@dataclasses.dataclass(frozen=True)
class RoleReport:
    """What a check of a part found to hold, and what did not apply to it.

    Attributes:
        passed: names of the checks that passed, in order.
        not_applicable: name of each check that was left out, and why.
    """

    passed: tuple[str, ...]
    not_applicable: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Role:
    """A part under test; every public method of a role's own class is a check, which returns why it does not apply."""

    name: ClassVar[str]
    part: Any

    def fail(self, expected: str, got: object) -> NoReturn:
        """Say what was expected, and what came."""
        part = getattr(self.part, "__name__", type(self.part).__name__)
        raise RoleError(f"{self.name} {part}: expected {expected}, got {got}")

    def run(self) -> RoleReport:
        """Run the checks in order, and leave torch's random state as it was."""
        passed, left_out = [], {}
        with torch.random.fork_rng(), torch.enable_grad():
            for method, value in vars(type(self)).items():
                if not method.startswith("_") and callable(value):
                    reason, name = value(self), method.replace("_", " ")
                    if reason is None:
                        passed.append(name)
                    else:
                        left_out[name] = reason
        return RoleReport(tuple(passed), left_out)

    def expect_shape(self, what: str, found: Any, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
        """A tensor of that shape, and of that type; any floating type where ``dtype`` is ``None``."""
        wanted = "a floating type" if dtype is None else str(dtype)
        if not isinstance(found, Tensor):
            self.fail(f"{what} to be a tensor", type(found).__name__)
        fits = found.is_floating_point() if dtype is None else found.dtype == dtype
        if tuple(found.shape) != shape or not fits:
            self.fail(f"{what} of shape {shape} and {wanted}", f"{tuple(found.shape)} of {found.dtype}")

    def expect_device(self, what: str, found: Any, device: torch.device) -> None:
        """Every tensor on that device."""
        for name, leaf in leaves(found):
            if isinstance(leaf, Tensor) and leaf.device.type != device.type:
                self.fail(f"{what} on the images' device, {device.type}", f"{name or 'a tensor'} on {leaf.device.type}")

    def expect_equal(self, expected: str, found: Tensor, wanted: Tensor, tolerance: float, where: str = "") -> None:
        """Two results that are equal but for rounding."""
        difference = apart(found, wanted, tolerance)
        if difference:
            self.fail(expected, difference + where)

    def expect_finite(self, what: str, found: Tensor) -> None:
        """No NaN, and nothing infinite."""
        if not bool(found.isfinite().all()):
            self.fail(f"finite {what}", "others")

    def expect_gradients(self, gradients: Mapping[str, Tensor | None]) -> None:
        """A gradient other than zero for every parameter."""
        missing = [name for name, g in gradients.items() if g is None or not bool((g != 0).any())]
        if missing:
            self.fail("a gradient for every trained parameter", f"none for {', '.join(missing)}")


Sample = Callable[[torch.Generator | None, torch.device], Any]


def check_sampling(role: Role, sample: Sample, device: torch.device, *, looks: bool) -> bool:
    """Check random choices made by ``sample(generator, device of the images)``; return whether there are any."""
    generator = seeded(device)
    state, before = generator.get_state(), default_state(device)
    first = sample(generator, device)
    role.expect_device("a draw", first, device)
    if not same(default_state(device), before):
        role.fail("torch's default random state untouched where a generator is given", "another state")
    if not same(first, sample(seeded(device), device)):
        role.fail("equal draws for generators of equal seeds", "different ones: what else is random?")
    draws = not torch.equal(generator.get_state(), state)
    sample(None, device)
    if same(default_state(device), before) == draws:
        role.fail(
            "randomness from the generator where one is given, else from torch's default", "only one of them used"
        )
    if draws and all(same(first, sample(seeded(device, seed), device)) for seed in range(1, NUM_SEEDS)):
        role.fail("other draws for other seeds", f"the same for {NUM_SEEDS} seeds")
    if draws:
        _check_foreign(role, sample, device)
    if not looks:
        _check_meta(role, sample)
    return draws


def check_undrawn(role: Role, what: str, sample: Sample, alone: Callable[[slice], Any], one: Tensor) -> str | None:
    """Where ``sample`` draws nothing, see that an image alone comes out as in the batch that ``one`` is of."""
    generator = seeded(one.device)
    state, together = generator.get_state(), sample(generator, one.device)
    if not torch.equal(generator.get_state(), state):
        return f"the {what} is drawn at random"
    for i in range(len(one)):
        rows = slice(i, i + 1)
        if not same(alone(rows), rows_of(together, rows, len(one))):
            role.fail(f"an image alone to have the {what} that it has in a batch", f"another {what} of image {i}")
    return None


def _check_foreign(role: Role, sample: Sample, device: torch.device) -> None:
    other = torch.device("meta") if device.type == "cpu" else device
    try:
        sample(torch.Generator(), other)
    except (ValueError, RuntimeError):
        return
    role.fail(
        "a generator of another device to be refused (see ssl_blocks.randomness.check_generator)",
        f"a draw on {other.type} by a generator on cpu",
    )


def _check_meta(role: Role, sample: Sample) -> None:
    meta = torch.device("meta")  # where there is no data: whatever looks at some, raises
    try:
        found = sample(None, meta)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        role.fail("a draw without a look at data, which an accelerator waits for (or looks=True)", reason)
    role.expect_device("a draw", found, meta)


def require_several(num_images: int) -> None:
    """Refuse a single image, which no other could be told from."""
    if num_images < 2:
        raise ValueError(f"images={num_images} of them must be at least 2, so that they can be told from each other")


def seeded(device: torch.device, seed: int = 0) -> torch.Generator:
    """A generator on the device."""
    return torch.Generator(device=device).manual_seed(seed)


def default_state(device: torch.device) -> list[Tensor]:
    """Torch's own random state: the CPU's, and the accelerator's."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def noise(device: torch.device, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Plain noise, the same in every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def shake(module: nn.Module) -> None:
    """Move every weight by noise that suits its size: zeros and ones at the start hide what is left out."""
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            fan_in = max(1, weight[0].numel()) if weight.ndim in (2, 4) else 1
            weight.add_(noise(weight.device, *weight.shape, seed=number, dtype=weight.dtype) * 0.2 * fan_in**-0.5)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What a value of dataclasses, mappings and sequences holds in the end, by name."""
    inner: Iterator[tuple[Any, Any]]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, tuple | list):
        inner = iter(enumerate(value))
    else:
        yield name, value
        return
    for key, part in inner:
        yield from leaves(part, f"{name}.{key}" if name else str(key))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: mapped(getattr(value, name), change) for name in fields})
    if isinstance(value, Mapping):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(mapped(part, change) for part in value)
    return value


def rows_of(value: Any, rows: slice, batch: int) -> Any:
    """What a value says of some images: tensors of ``batch`` rows are cut, all else is shared."""
    return mapped(value, lambda x: x[rows] if x.ndim and len(x) == batch else x)


def same(one: Any, other: Any) -> bool:
    """Whether two values hold the same, bit for bit."""
    ours, theirs = list(leaves(one)), list(leaves(other))
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for (_, a), (_, b) in zip(ours, theirs, strict=True)
    )


def apart(found: Tensor, expected: Tensor, tolerance: float) -> str | None:
    """How two results differ by more than rounding, or ``None``."""
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if found.dtype != expected.dtype or not found.is_floating_point():
        return None if torch.equal(found, expected) else "other values"
    if not found.numel():
        return None
    scale = expected.detach().abs().max().clamp(min=1.0)
    difference = (found - expected).detach().abs().max()
    return None if bool(difference <= tolerance * scale) else f"a difference of {float(difference):.2g}"
