"""Everything a run can be told, as one tree of dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from arithmetic import ArithmeticConfig
from loader import build
from nanorlhf.nanoverl import RewardConfig, RLConfig, SFTConfig
from settings import Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where a run lives and what it runs on."""

    name: str
    """Default: name of the config file and seed."""
    dir: Path
    """The run's folder; default: runs/ and the name."""
    fresh: bool = False
    """Throw away what the folder holds and start over."""
    seed: int = 0
    """Of the data, the initial model, the order of training and the sampling."""
    runtime: Literal["inprocess", "nanoray", "ray"] = "nanoray"
    """Trainer and rollout in this process, for a debugger, or in processes of nanoray or Ray."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Who sees the metrics, besides the progress display and metrics.jsonl."""

    wandb: str | None = None
    """Project on Weights & Biases."""
    samples: int = 8
    """Responses of each RL step that go to samples.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """A set of problems: ``arithmetic``, a JSONL file, a folder of them, or a set on the hub."""

    path: str = "arithmetic"
    split: str = "train"
    """Of a hub set; of a folder, the files ``<split>*.jsonl``."""
    subset: str | None = None
    """Configuration of a hub set, e.g. ``main`` of openai/gsm8k."""
    form: Literal["text", "gsm8k"] = "text"
    """gsm8k: calculator marks are dropped and the line ``#### 72`` is the answer."""
    prompt: str = "problem"
    """Column of the problem."""
    response: str = "solution"
    """Column of the worked solution, for SFT."""
    answer: str = "answer"
    """Column of the reference answer, for RL and evaluation."""
    messages: str | None = None
    """Column of a whole conversation; for SFT, instead of prompt and response."""
    drop_answers: tuple[str, ...] = ()
    """Rows with one of these answers, in any case of letters, are left out."""
    limit: int | None = None
    """Rows to take from the front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The problems of each stage."""

    root: Path | None = None
    """Folder of relative paths; default: the variable NANORLHF_DATA, else the working folder."""
    sft: SourceConfig = field(default_factory=SourceConfig)
    rl: SourceConfig = field(default_factory=SourceConfig)
    eval: SourceConfig = field(default_factory=SourceConfig)
    valid_rows: int = 256
    """Rows of the SFT set kept for its validation loss; 0 for none."""
    max_tokens: int = 8192
    """Longer demonstrations are left out."""
    max_prompt_tokens: int = 512
    """Longer RL and evaluation prompts are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to load, or one to train on the SFT set."""

    path: str | None = None
    """Folder or hub name; default: the model's own, or a new one for a new model."""
    vocab_size: int = 512
    """Of a new one, at most."""
    train_rows: int = 10_000
    """Demonstrations that a new one is trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateConfig:
    """How a problem becomes a prompt."""

    form: Literal["plain", "chat"] = "plain"
    """plain: prompt, response, end of text; chat: the tokenizer's chat template."""
    prompt: str = "{problem}"
    """Text put to the model."""
    thinking: bool = False
    """Passed to the chat template as enable_thinking."""

    def __post_init__(self) -> None:
        if "{problem}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r}; it needs {{problem}} where the problem goes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A checkpoint to start from, or the shape of a new model."""

    path: str | None = None
    """Hugging Face folder or hub name; default: a new model of the shape below."""
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 192
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True
    init_std: float = 0.02
    """Standard deviation of the initial weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConfig:
    """The self-contained checkpoints."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """How a checkpoint is scored on the held-out problems: greedy, and sampled at T=1."""

    samples: int = 1
    """Sampled responses to each problem."""
    max_new_tokens: int = 64
    max_model_len: int | None = None
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.8
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 1
    """CPU threads of the engine; a small model gains nothing from more."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """A mean of 1 is an accuracy of 100 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A run from data to result table."""

    run: RunConfig
    log: LogConfig = field(default_factory=LogConfig)
    data: DataConfig = field(default_factory=DataConfig)
    arithmetic: ArithmeticConfig = field(default_factory=ArithmeticConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sft: SFTConfig
    rl: RLConfig
    merge: MergeConfig = field(default_factory=MergeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def resolve(raw: Raw) -> Config:
    """Return the configuration that ``raw`` describes.

    Raises:
        ValueError: It names a key that does not exist, or a value that cannot be.
    """
    return build(Config, raw)
