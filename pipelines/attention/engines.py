"""Engines: who computes self-attention where a clip's tokens are spread over ranks, and the hooks that spread them.

    single      one rank has the whole sequence
    diffusers   its own Ulysses attention, on any device; ranks must divide the tokens
    xfuser      xDiT's USP (Ulysses × ring) and its attention kernels, on GPUs; padding is left out of attention

The model stays diffusers' own; what an engine changes is self-attention's processor alone. Ranks split tokens right
after the patch embedding and gather them after the last projection, whatever the engine.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from numina.errors import ConfigError
from numina.private.torch import joined_axes
from pipelines.attention.cross import Rotary
from pipelines.attention.kernels import FLASH, FLASH_3, FLASH_3_FP8, HALF, FlashSelfAttention, flash3, flash3_lacks
from pipelines.base import Project, Seams, VideoModel
from pipelines.parallel.config import ParallelConfig
from pipelines.parallel.libraries import XFUSER, require
from pipelines.parallel.shard import Shard
from pipelines.parallel.support import resolve_engine
from pipelines.private.diffusers import attention_backend, enable_parallelism
from pipelines.private.xfuser import give_flash3, set_runtime

AXES = ("cfg", "ring", "ulysses")  # slowest first: neighbouring ranks share heads, and may share a node


def parallelize(model: VideoModel, config: ParallelConfig, *, float8: bool = False) -> Shard:
    """Spreads a loaded model over the ranks of the initialised default process group; this rank's place in it.

    `float8` says that the model's linear layers are in 8 bits: attention=auto then is, too, where a kernel can.

    Raises ConfigError where the group has another size than the config, or the engine isn't installed.
    """
    if config.sequence_ranks == 1:
        _choose_own_kernel(model, config.attention, float8)
    if config.ranks == 1:
        return Shard()
    if dist.get_world_size() != config.ranks:
        raise ConfigError(
            f"parallel.cfg × ring × ulysses is {config.ranks} in a process group of {dist.get_world_size()} ranks;"
            " start that many ranks"
        )
    mesh = init_device_mesh(model.device.type, (config.cfg, config.ring, config.ulysses), mesh_dim_names=AXES)
    shard = _place(mesh, config)
    if config.sequence_ranks > 1:
        split = TokenSplit(shard)
        engine = resolve_engine(config.engine, model.device.type, config.sequence_ranks)
        ATTENTIONS[engine](model, config, mesh, split)
        split.attach(model.seams)
    return shard


def attention_kernel(model: VideoModel) -> str:
    """What computes a model's self-attention, after `parallelize`: the engine's own name for its kernel."""
    processor = model.blocks[0].attn1.processor
    if isinstance(processor, FlashSelfAttention):
        return processor.name
    if isinstance(processor, UspSelfAttention):
        return processor.kernel
    return attention_backend(processor)


def _place(mesh: DeviceMesh, config: ParallelConfig) -> Shard:
    return Shard(
        rank=dist.get_rank() % config.sequence_ranks,
        ranks=config.sequence_ranks,
        group=joined_axes(mesh["ring", "ulysses"]).get_group() if config.sequence_ranks > 1 else None,
        branch=dist.get_rank() // config.sequence_ranks if config.cfg > 1 else None,
        pair=mesh["cfg"].get_group() if config.cfg > 1 else None,
        gang=dist.group.WORLD,
    )


class TokenSplit:
    """Hooks that give every rank its own rows of a transformer's tokens, and all ranks the whole prediction.

    The last ranks' rows past the clip's end are zeros. No block is hooked: compiled ones have one graph for all.
    """

    def __init__(self, shard: Shard):
        self.shard = shard
        self.tokens = 0  # of the clip that is in the model

    def attach(self, seams: Seams) -> None:
        seams.patches.register_forward_hook(self._split_patches)
        seams.tables.register_forward_hook(self._split_tables)
        seams.rows.register_forward_hook(self._gather)

    def _split_patches(self, module: Any, inputs: Any, patches: Tensor) -> Tensor:
        """[B, C, F, h, w] → [B, C, n/R, 1, 1]: the model flattens what it gets."""
        tokens = patches.flatten(2)
        self.tokens = tokens.shape[2]
        return self.shard.own(tokens, dim=2)[..., None, None]

    def _split_tables(self, module: Any, inputs: Any, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.shard.own(table, dim=1) for table in tables)  # [1, n, 1, D]

    def _gather(self, module: Any, inputs: Any, rows: Tensor) -> Tensor:
        return self.shard.gather_rows(rows, dim=1, tokens=self.tokens)


# --- a whole sequence ---


def _choose_own_kernel(model: VideoModel, name: str, float8: bool) -> None:
    """FlashAttention-3 by name, and by itself where it can run and the family's attention can be replaced; else
    diffusers' choice. Raises ConfigError for what can't run."""
    if name not in ("auto", *FLASH):
        _choose_kernel(model, name)
        return
    joint = "a joint attention's kernel can't be replaced" if model.facts.joint else None
    lacking = joint or flash3_lacks(model.device, model.transformer.dtype)
    if lacking is None:
        chosen = name if name != "auto" else FLASH_3_FP8 if float8 else FLASH_3
        attention = FlashSelfAttention(model.seams.project, chosen)
        for own in model.seams.attentions:
            own.processor = attention
    elif name in FLASH:
        raise ConfigError(f"parallel.attention is {name!r}: {lacking}; use auto")


# --- diffusers ---


def _choose_kernel(model: VideoModel, name: str) -> None:
    """Sets the kernel of all attention. Raises ConfigError where diffusers knows none of that name, or can't run it."""
    try:
        model.transformer.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"parallel.attention is {name!r}: {error}; use auto") from error


def _diffusers_attention(model: VideoModel, config: ParallelConfig, mesh: DeviceMesh, split: TokenSplit) -> None:
    from diffusers import ContextParallelConfig

    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)  # "experimental feature"
    if config.attention != "auto":
        _choose_kernel(model, config.attention)
    chosen = ContextParallelConfig(ulysses_degree=config.ulysses, mesh=mesh["ring", "ulysses"])
    enable_parallelism(model.transformer, chosen, model.device)  # TokenSplit does what a plan would


# --- xfuser ---


class UspSelfAttention:
    """Self-attention of the whole sequence by xDiT's USP: heads over Ulysses ranks, keys and values around the ring."""

    def __init__(self, usp: Callable[..., Tensor], project: Project, split: TokenSplit, kernel: str):
        self.usp = usp
        self.kernel = kernel  # by xDiT's name for it
        self.project = project
        self.split = split

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in self.project(attn, hidden_states, None, rotary_emb))
        output = self.usp(query, key, value, attention_kwargs=self._padding())  # [B, N, n/R, D]
        output = output.transpose(1, 2).flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](output))

    def _padding(self) -> dict[str, int] | None:
        """Leaves the keys past the clip's end out of attention; after the exchange of heads they are the last."""
        tokens = self.split.tokens
        return {"valid_kv_len": tokens} if tokens % self.split.shard.ranks else None


def _xfuser_attention(model: VideoModel, config: ParallelConfig, mesh: DeviceMesh, split: TokenSplit) -> None:
    require(XFUSER)
    from xfuser import xFuserArgs
    from xfuser.core import distributed as xdit
    from xfuser.core.distributed import attention_backend as backends
    from xfuser.core.distributed import runtime_state
    from xfuser.model_executor.layers.usp import USP

    if flash3_lacks(model.device, model.transformer.dtype) is None:
        give_flash3(backends, flash3())
    for handler in logging.getLogger("xfuser").handlers:
        handler.setLevel(logging.ERROR)  # it warns of the backend that it chose
    if not xdit.model_parallel_is_initialized():
        xdit.init_distributed_environment(dist.get_world_size(), dist.get_rank(), local_rank=model.device.index or 0)
        xdit.initialize_model_parallel(
            classifier_free_guidance_degree=config.cfg, ulysses_degree=config.ulysses, ring_degree=config.ring
        )
        # What `initialize_runtime_state` makes outside xDiT's own pipelines knows gangs of one rank only.
        degrees = {"ulysses_degree": config.ulysses, "ring_degree": config.ring, "use_cfg_parallel": config.cfg == 2}
        set_runtime(runtime_state, runtime_state.RuntimeState(xFuserArgs(**degrees).create_config()[0]))
    _choose_xfuser_kernel(runtime_state.get_runtime_state(), config, model)
    seams = model.seams
    kernel = runtime_state.get_runtime_state().attention_backend.name.lower()
    attention = UspSelfAttention(USP, seams.project, split, kernel)
    for own in seams.attentions:
        own.processor = attention


def _choose_xfuser_kernel(state: Any, config: ParallelConfig, model: VideoModel) -> None:
    """By name; else FlashAttention-3 where it can run, else cuDNN's. Raises ConfigError for what can't run."""
    name = config.attention
    if name == "auto":
        half = model.transformer.dtype in HALF
        if not half and config.ring > 1:
            raise ConfigError(
                "model.dtype=float32 has no ring attention kernel in xfuser; use bfloat16, or parallel.ring=1"
            )
        flash = flash3_lacks(model.device, model.transformer.dtype) is None
        name = (FLASH_3 if flash else "cudnn") if half else "sdpa"
    try:
        state.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"parallel.attention is {name!r}: {error}; use auto") from error


ATTENTIONS = {"diffusers": _diffusers_attention, "xfuser": _xfuser_attention}
