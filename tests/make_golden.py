"""
Make the golden files of this version, tests/data/<version>/, which every later version must load:

    python -m tests.make_golden

Run it once for each release, and never change the files of an earlier one.
"""

import json
from pathlib import Path

from stable_baselines3.common.utils import LinearSchedule
from torch import nn

import sb3_rgrl
from sb3_rgrl import RGRL
from sb3_rgrl.checkpoint import save_checkpoint
from tests.kill_while_saving import make_env
from tests.toy import TINY

DATA = Path(__file__).parent / "data"


def expected_of(model: RGRL) -> dict:
    """What the agent has learned and seen, up to rounding; what it makes of that may differ from version to version."""
    buffer = model.replay_buffer
    return {
        "weights": [float(tensor.detach().double().square().sum()) for tensor in model.policy.parameters()],
        "learning_rate": model.lr_schedule(0.5),
        "num_timesteps": model.num_timesteps,
        "n_steps": buffer.size(),
        "n_windows": buffer.n_windows,
        "stored rewards": buffer.rewards[:5].tolist(),
        "probabilities": buffer.probabilities(1)[buffer.all_windows()].tolist(),
    }


def main() -> None:
    folder = DATA / sb3_rgrl.__version__
    if folder.exists():
        raise SystemExit(f"{folder} is there already: golden files are never changed")
    folder.mkdir(parents=True)
    changes = {
        "learning_rate": LinearSchedule(1e-2, 1e-3, 1.0),
        "ewc_lambda": 1.0,
        "policy_kwargs": {"net_arch": [8], "activation_fn": nn.Tanh},
    }
    model = RGRL("MlpEnsemblePolicy", make_env(), seed=0, **{**TINY, **changes}).learn(50)
    model.save(folder / "agent")
    model.save_replay_buffer(folder / "buffer")
    save_checkpoint(model, folder)
    (folder / "expected.json").write_text(json.dumps(expected_of(model), indent=1) + "\n")


if __name__ == "__main__":
    main()
