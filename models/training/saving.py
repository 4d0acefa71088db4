"""What a training puts into a checkpoint: the adapters, how they were made, and all that the next step needs."""

from pathlib import Path

from configs.schema import to_yaml
from models.files.checkpoint import save_checkpoint
from models.files.modelspec import model_spec


def save(cfg, method, optimizer, folder: Path, step: int, previews) -> None:
    """Write `folder`/checkpoint-`step`, whose header gets what `previews` show of the clips, and a thumbnail."""
    motion, appearance = method.state()
    info = {"base_model": cfg.pretrained_model_path, "method": cfg.method, **method.info()}
    shown = dict(caption=previews.caption, clips=previews.clips, size=previews.size, thumbnail=previews.thumbnail(step))
    info |= model_spec(cfg, info, folder, step, **shown)
    save_checkpoint(
        folder,
        step,
        motion=motion,
        appearance=appearance,
        kind=method.kind,
        config_yaml=to_yaml(cfg),
        info=info,
        training_state={
            "step": step,
            "optimizer": optimizer.state_dict(),
            "processes": optimizer.processes.count if optimizer.processes else 1,
        },
        limit=cfg.checkpoints_total_limit,
    )
