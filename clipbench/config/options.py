"""The typed top-level options, and the line that says what pydantic does not like about one."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

PATTERNS = {
    "device": "must be auto, cpu, cuda or cuda:N",
    "tuning.metric": "must be a metric of the validation split, as validation_loss, or train_loss",
    "tuned": "must be auto or none",
}
# A name becomes a file's or a folder's: it must not lead out of the results.
_PLAIN = re.compile(r"[^\W_][\w.+=%@-]*|_[\w.+=%@-]+")
Count = Annotated[int, Field(ge=1)]


def is_plain(name: object) -> bool:
    """Whether a text can be the name of a file as it is: word characters and .+=%@-, not beginning with a dot."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None


def _experiment(value: str) -> str:
    if all(is_plain(part) for part in value.split("/")):
        return value
    raise ValueError("must be plain names joined by /, as heavy_tailed_mlp/cpu")


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

    experiment: Annotated[str, AfterValidator(_experiment)]
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
    # Option → "${oc.env:NAME}" where its value is an environment variable's; what a record keeps instead of the value.
    environment: dict[str, Any] = Field(default_factory=dict)

    @property
    def data_seed(self) -> int:
        """What the data are drawn and split from: `data.split_seed`, or the run's seed where that is null."""
        return self.seed if self.data.split_seed is None else self.data.split_seed


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
