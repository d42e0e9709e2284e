"""The typed configuration: what each top-level option may be, and how a `_target_`'s arguments are checked.

Two sources say what is allowed, and both are the code itself. The top-level options are the fields of `Options`.
The arguments below a `_target_` are those of the target's annotated signature; what a type cannot say (a
threshold above 0) its constructor checks, with a message that starts with the argument's own name, and
`instantiate` puts the option's path in front of it.
"""

from __future__ import annotations

import functools
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clipbench.errors import ConfigError

GROUPS = ("model", "dataset", "method", "optimizer", "schedule", "noise", "study", "logger")
# Options that say nothing to a study without a network.
TRAINING = frozenset({
    "steps", "epochs", "batch_size", "accumulation", "eval_every", "eval_batch_size", "checkpoint_every", "log_every",
    "log_layers", "precision", "compile",
})  # fmt: skip
EMPTY = ("noise", "study", "logger")  # groups that may be none
PATTERNS = {
    "device": "must be auto, cpu, cuda or cuda:N",
    "tuning.metric": "must be a metric of the validation split, as validation_loss, or train_loss",
    "tuned": "must be auto or none",
}
Count = Annotated[int, Field(ge=1)]


def _interval(value: int | str) -> int | str:
    """Steps, or seconds written as "30s"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and value.endswith("s"):
        try:
            seconds = float(value[:-1])
        except ValueError:
            seconds = math.nan
        if 0 < seconds < math.inf:
            return value
    raise ValueError('must be a count of steps >= 1 or seconds as "30s"')


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DataOptions(_Strict):
    """Where the data lie and how they are split."""

    root: str
    split_seed: Annotated[int, Field(ge=0)] | None
    verify: bool
    download: bool


class PathOptions(_Strict):
    """Where the results go."""

    results: Annotated[str, Field(min_length=1)]
    tuned: str | None


class SkipOptions(_Strict):
    """Name patterns of the parameters that clippers leave alone: those by layer, and those by the whole norm."""

    layers: list[str]
    whole: list[str]


class SpaceOptions(_Strict):
    """Search ranges, laid out as the config they apply to: those of every method, then each method's own."""

    shared: dict[str, Any]
    methods: dict[str, dict[str, Any]]


class PaperOptions(SpaceOptions):
    """A paper's own ranges and, as papers do not always give methods equal ones, its trials per method."""

    trials: dict[str, Count]


class TuningOptions(_Strict):
    """What `python -m clipbench.tune` does; no run depends on it."""

    trials: Count
    methods: list[str] | None
    metric: Annotated[str, Field(pattern=r"^(validation_\w+|train_loss)$")]
    protocol: Literal["ours", "paper"]
    sampler: Literal["sobol", "tpe"]
    pruner: Literal["none", "median"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    final_seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)]
    storage: str | None
    ours: SpaceOptions
    paper: PaperOptions | None
    like: dict[str, str]


class CalibrationOptions(_Strict):
    """What `python -m clipbench.calibrate` does; no run depends on it."""

    methods: list[str] | None
    rounds: Annotated[int, Field(ge=2)]
    train_steps: Count | None
    settle_steps: Count


class Options(_Strict):
    """Every top-level option that is not a group; `experiment` is "<name>/<size>" or "single"."""

    experiment: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    steps: Count | None
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    batch_size: Count
    accumulation: Count
    eval_every: Annotated[int | str, AfterValidator(_interval)]
    checkpoint_every: Count
    log_every: Count
    log_layers: bool
    eval_batch_size: Count
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    precision: Literal["fp32", "tf32", "bf16", "fp64"]
    compile: bool
    deterministic: bool
    threads: Count | None
    together: Count
    role: Literal["single", "tune", "final"]
    trial: Annotated[int, Field(ge=0)] | None
    tuned: Annotated[str, Field(pattern=r"^(auto|none|trial \d+ of .*)$")]
    stale: Literal["rerun", "keep"]
    retry: Literal["failed", "never"]
    skip: SkipOptions
    data: DataOptions
    paths: PathOptions
    tuning: TuningOptions
    calibration: CalibrationOptions

    @property
    def data_seed(self) -> int:
        """What the data are drawn and split from: `data.split_seed`, or the run's seed where that is null."""
        return self.seed if self.data.split_seed is None else self.data.split_seed


def check(config: Mapping[str, Any]) -> Options:
    """The top-level options of a resolved config, checked, and every `_target_`'s arguments.

    Raises ConfigError with one line that names the option, its value and what is allowed.
    """
    try:
        options = Options.model_validate({k: v for k, v in config.items() if k not in GROUPS})
    except ValidationError as error:
        raise ConfigError(complaint(error, "")) from None
    if options.steps is None and options.epochs is None:
        raise ConfigError("steps must be a number >= 1 where epochs is null, got null")
    for group in reached(config):
        _check_shape(config.get(group), group)
        check_target(config[group], group)
    return options


def is_study(config: Mapping[str, Any]) -> bool:
    """Whether the config asks for a study, which trains no network."""
    return "_target_" in (config.get("study") or {})


def reached(config: Mapping[str, Any]) -> list[str]:
    """The groups that the run of a config uses: a training no study, and a study a network where it takes a `setup`."""
    if not is_study(config):
        return [group for group in GROUPS if group != "study"]
    return list(GROUPS) if accepts(str(config["study"]["_target_"]), "setup") else ["study", "logger"]


def used(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what its run cannot use: no part of its record or its identity."""
    groups = reached(config)
    unused = set(GROUPS) - set(groups)
    if "model" not in groups:
        unused |= TRAINING
    return {key: value for key, value in config.items() if key not in unused}


def canonical(config: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The config with its numbers in their options' own types (lr=1 becomes 1.0), so that one run has one id.

    What does not fit its type is left as it is, for `check` to name.
    """
    typed = options.model_dump()
    return {key: _canonical(value) if key in GROUPS else typed[key] for key, value in config.items()}


def _canonical(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    found = {key: _canonical(value) for key, value in node.items()}
    target = node.get("_target_")
    if not isinstance(target, str):
        return found
    try:
        _, hints = _signature(target)
    except ConfigError:
        return found
    for key, value in found.items():
        if key in hints and isinstance(value, int | float | list) and not isinstance(value, bool):
            try:
                found[key] = _adapter(hints[key]).validate_python(value)
            except ValidationError:
                continue
    return found


def _check_shape(node: Any, group: str) -> None:
    """A group is a node with a `_target_`; a method holds two or three of them; noise and logger may be none."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{group} must be a group with a _target_, got {node}")
    if group == "method":
        for key in ("estimator", "clipper", *(["update"] if "update" in node else [])):
            _check_shape(node.get(key), f"{group}.{key}")
        for key in set(node) - {"name", "estimator", "clipper", "update", "tuning"}:
            raise ConfigError(f"method.{key} is not an option (allowed: name, estimator, clipper, update)")
    elif "_target_" not in node and not (group in EMPTY and set(node) <= {"name"}):
        raise ConfigError(f"{group} must have a _target_, got {dict(node)}")


def complaint(error: ValidationError, prefix: str) -> str:
    """One line for pydantic's first complaint: option, what is allowed, value."""
    first = error.errors()[0]
    path = ".".join([prefix] * bool(prefix) + [str(part) for part in first["loc"] if isinstance(part, int | str)])
    context = first.get("ctx", {})
    kind, value = first["type"], first["input"]
    bounds = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
    allowed = {
        "literal_error": f"must be one of {str(context.get('expected', '')).replace(' or ', ', ')}",
        "string_pattern_mismatch": PATTERNS.get(path, "must have another form"),
        "finite_number": "must be a finite number",
        "string_too_short": "must not be empty",
        "too_short": "must not be empty",
        "value_error": str(context.get("error", "")),
    }
    if kind == "extra_forbidden":
        return f"{path} is not an option"
    if kind == "missing":
        return f"{path} must be given"
    if kind in bounds:
        rule = f"must be {bounds[kind]} {next(iter(context.values())):.6g}"
    else:
        rule = allowed.get(kind, first["msg"].replace("Input should be", "must be"))
    # A union's branches ("steps.int") are pydantic's, not the user's: keep what stands before them.
    known = {"int", "float", "str", "bool", "constrained-int", "constrained-float", "none"}
    while path.rpartition(".")[2] in known:
        path = path.rpartition(".")[0]
    return f"{path} {rule}, got {'null' if value is None else value}"


@functools.cache
def _signature(target: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"_target_ must be the name of a class or function, got {target} ({reason})") from None
    function = found.__init__ if inspect.isclass(found) else found
    parameters = dict(inspect.signature(found).parameters)
    return parameters, typing.get_type_hints(function, include_extras=True)


def _signature_at(target: str, path: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    try:
        return _signature(target)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from None


def accepts(target: str, argument: str) -> bool:
    """Whether the target's signature has `argument`."""
    return argument in _signature(target)[0]


def check_target(node: Any, path: str) -> None:
    """Names and types of the arguments below `path`, against the `_target_`'s annotated signature; recursive."""
    if isinstance(node, list):
        for place, part in enumerate(node):
            check_target(part, f"{path}[{place}]")
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        check_target(value, f"{path}.{key}")
    if "_target_" not in node:
        return
    parameters, hints = _signature_at(node["_target_"], path)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key in ("_target_", "_partial_", "_convert_", "_recursive_") or (key == "name" and key not in parameters):
            continue
        if key not in parameters:
            if not open_ended:
                near = get_close_matches(key, parameters, n=1)
                hint = f"did you mean {path}.{near[0]}?" if near else f"allowed: {', '.join(sorted(parameters))}"
                raise ConfigError(f"{path}.{key} is not an option of {node['_target_']} ({hint})")
        elif key in hints and not _holds_nodes(value):
            _check_finite(value, parameters[key].default, f"{path}.{key}")
            _check_value(value, hints[key], f"{path}.{key}")


def _holds_nodes(value: Any) -> bool:
    """Whether a value is, or is a list of, what is built from a config of its own."""
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(part, Mapping) for part in value))


def _check_finite(value: Any, default: Any, path: str) -> None:
    """Numbers are finite; infinity is allowed where the signature's own default is infinite (β of PowerThreshold)."""
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and default != value)):
        raise ConfigError(f"{path} must be a finite number, got {value}")


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def _check_value(value: Any, annotation: Any, path: str) -> None:
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError as error:
        names = [_type_name(part) for part in typing.get_args(annotation) or (annotation,)]
        if typing.get_origin(annotation) is Literal:
            raise ConfigError(complaint(error, path)) from None
        shown = "null" if value is None else value
        raise ConfigError(f"{path} must be {' or '.join(dict.fromkeys(names))}, got {shown}") from None


def _type_name(kind: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _built(value: Any, path: str, given: Mapping[str, Any]) -> Any:
    """A `_target_` node, or a list that holds some, built; anything else as it is."""
    if isinstance(value, list):
        return [_built(part, f"{path}[{place}]", given) for place, part in enumerate(value)]
    return instantiate(value, path, **given) if isinstance(value, Mapping) and "_target_" in value else value


def instantiate(node: Mapping[str, Any], path: str, **given: Any) -> Any:
    """Build the object of a `_target_` node, its inner nodes first.

    `given` holds what the config cannot (the model, the data's spec); each target gets those of them that its
    signature names. A ValueError whose message starts with an argument's name becomes a ConfigError with the
    option's path in front.
    """
    target = node["_target_"]
    parameters, _ = _signature_at(target, path)
    arguments: dict[str, Any] = {}
    for key, value in node.items():
        if key == "_target_" or (key == "name" and key not in parameters):
            continue
        arguments[key] = _built(value, f"{path}.{key}", given)
    arguments |= {key: value for key, value in given.items() if key in parameters and key not in arguments}
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and key not in arguments
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing:
        raise ConfigError(f"{path}.{missing[0]} must be given for {target}")
    build: Callable[..., Any] = pkgutil.resolve_name(target)
    try:
        return build(**arguments)
    except ValueError as error:
        first_word = str(error).split(" ", 1)[0].split("[", 1)[0]
        prefix = f"{path}." if first_word in parameters else ""
        raise ConfigError(f"{prefix}{error}") from error
