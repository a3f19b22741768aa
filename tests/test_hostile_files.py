"""Files that somebody made to do harm, and files that were harmed: nothing in them is run, and the error is clear."""

import base64
import hashlib
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rl_zoo3.utils import linear_schedule
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from torch import nn, optim

from sb3_rgrl import RGRL, MlpEnsemblePolicy
from sb3_rgrl.checkpoint import load_checkpoint, save_checkpoint
from sb3_rgrl.descriptions import describe, rebuild
from tests.toy import TINY, Drift

OBSERVATION = np.array([0.3, -0.2], dtype=np.float32)


class Bomb:
    """A pickle of it writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Crafter:
    """Makes a saved agent into something else."""

    def __init__(self, folder: Path):
        self.mark = folder / "executed"
        model = RGRL("MlpEnsemblePolicy", Drift(), seed=0, **TINY).learn(40)
        file, buffer = io.BytesIO(), io.BytesIO()
        model.save(file)
        model.save_replay_buffer(buffer)
        self.model, self.whole, self.buffer = model, file.getvalue(), buffer.getvalue()
        with zipfile.ZipFile(file) as archive:
            self.entries = {name: archive.read(name) for name in archive.namelist()}
        self.bomb = pickle.dumps(Bomb(self.mark))

    def zip(self, entries, compression=zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there twice
            for name, content in entries.items() if isinstance(entries, dict) else entries:
                archive.writestr(name, content)
        return file.getvalue()

    def but(self, **changes) -> bytes:
        """The agent with some entries replaced; None leaves one out."""
        entries = {**self.entries, **{name.replace("__", "."): content for name, content in changes.items()}}
        return self.zip({name: content for name, content in entries.items() if content is not None})

    def settings(self, **changes) -> bytes:
        """The agent with other settings in plain JSON."""
        plain = json.loads(self.entries["rgrl.json"])
        plain["data"].update(changes)
        return self.but(rgrl__json=json.dumps(plain))

    def without_setting(self, name: str) -> bytes:
        plain = json.loads(self.entries["rgrl.json"])
        del plain["data"][name]
        return self.but(rgrl__json=json.dumps(plain))

    def pickled_field(self, name: str, in_plain: bool) -> bytes:
        """The agent with a bomb where SB3 has a pickle; the plain settings tell of it, or not."""
        data, plain = json.loads(self.entries["data"]), json.loads(self.entries["rgrl.json"])
        data[name] = {":type:": "bomb", ":serialized:": base64.b64encode(self.bomb).decode()}
        if in_plain:
            plain["data"][name] = {":opaque:": "bomb"}
        return self.but(data=json.dumps(data), rgrl__json=json.dumps(plain))

    def weights(self, value) -> bytes:
        file = io.BytesIO()
        th.save(value, file)
        return file.getvalue()

    def policy(self, **changes) -> bytes:
        return self.but(policy__pth=self.weights({**self.model.policy.state_dict(), **changes}))

    def optimizer(self, change) -> bytes:
        state = deepcopy(self.model.policy.optimizer.state_dict())
        change(state)
        return self.but(**{"policy__optimizer__pth": self.weights(state)})

    def compressed_weights(self) -> bytes:
        with zipfile.ZipFile(io.BytesIO(self.entries["policy.pth"])) as archive:
            inner = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in inner if name.endswith("data/0"))
        inner[name] = bytes(100_000_000)
        return self.but(policy__pth=self.zip(inner, zipfile.ZIP_DEFLATED))

    def claims_more_than_it_has(self) -> bytes:
        """Two names in the directory for the same bytes, as in an overlapping zip bomb."""
        damaged = bytearray(self.whole)
        place = damaged.rindex(b"PK\x01\x02")
        # The last entry's place is that of the first.
        damaged[place + 42 : place + 46] = struct.pack("<I", 0)
        return bytes(damaged)

    def huge_claim(self) -> bytes:
        damaged = bytearray(self.whole)
        place = damaged.rindex(b"PK\x01\x02")
        damaged[place + 20 : place + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
        return bytes(damaged)

    def npz(self, **changes) -> bytes:
        arrays = {**np.load(io.BytesIO(self.buffer)), **changes}
        file = io.BytesIO()
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
        return file.getvalue()

    def npy_header(self, header: str) -> bytes:
        entries = dict.fromkeys(np.load(io.BytesIO(self.buffer)).files)
        with zipfile.ZipFile(io.BytesIO(self.buffer)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        text = header.encode().ljust(118 - 1) + b"\n"
        entries["rewards.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(160)
        return self.zip(entries)


@pytest.fixture(scope="module")
def crafter(tmp_path_factory) -> Crafter:
    return Crafter(tmp_path_factory.mktemp("crafted"))


def nested(depth: int) -> str:
    return '{"format": 1, "version": "0.1.0", "data": ' + "[" * depth + "]" * depth + "}"


def poison_state(state) -> None:
    state["state"][0]["exp_avg"] = th.zeros(1).expand(10**6, 10**6)


def laughing(state) -> None:
    value = []
    for _ in range(60):
        value = [value, value]
    state["param_groups"][0]["betas"] = value


def without_groups(state) -> None:
    state["param_groups"] = []


AGENTS = {
    # Pickles
    **{
        f"pickle in {name}, {'told' if in_plain else 'untold'}": (lambda c, n=name, p=in_plain: c.pickled_field(n, p))
        for name in ("learning_rate", "policy_class", "observation_space", "action_space", "ep_info_buffer", "train_freq")
        for in_plain in (True,)
    },
    "pickle in place of weights": lambda c: c.but(policy__pth=c.bomb),
    "pickle in torch's archive": lambda c: c.but(policy__pth=c.weights({"a": Bomb(c.mark)})),
    "pickle in the optimizer": lambda c: c.but(**{"policy__optimizer__pth": c.weights({"state": Bomb(c.mark)})}),
    "pickle in ewc": lambda c: c.but(ewc__pth=c.weights(Bomb(c.mark))),
    "weights in torch's old format": lambda c: c.but(policy__pth=pickle.dumps(119547037146038801333356) + c.bomb),
    "the file is a pickle": lambda c: c.bomb,
    "settings are a pickle": lambda c: c.but(rgrl__json=c.bomb),
    "no plain settings": lambda c: c.but(rgrl__json=None),
    # Classes and spaces
    "class of another package": lambda c: c.settings(policy_class={":class:": "os:system"}),
    "class outside of the packages": lambda c: c.settings(policy_class={":class:": "subprocess:Popen"}),
    "class by a way through": lambda c: c.settings(policy_class={":class:": "sb3_rgrl.files:os.system"}),
    "module that is not imported": lambda c: c.settings(policy_class={":class:": "stable_baselines3.nowhere:Policy"}),
    "private name": lambda c: c.settings(policy_class={":class:": "torch.nn.modules.module:Module.__init__"}),
    "policy that is none": lambda c: c.settings(policy_class={":class:": "torch.nn.modules.linear:Linear"}),
    "policy of SB3": lambda c: c.settings(policy_class={":class:": "stable_baselines3.dqn.policies:DQNPolicy"}),
    "policy as text": lambda c: c.settings(policy_class="MlpEnsemblePolicy"),
    "buffer that is none": lambda c: c.settings(replay_buffer_class={":class:": "torch.nn.modules.linear:Linear"}),
    "activation that needs arguments": lambda c: c.settings(
        policy_kwargs={"net_arch": [8], "activation_fn": {":class:": "torch.nn.modules.linear:Linear"}}
    ),
    "unknown kind of value": lambda c: c.settings(seed={":call:": ["os:system", "true"]}),
    "two kinds of value": lambda c: c.settings(seed={":tuple:": [], ":class:": "x"}),
    "schedule that is none": lambda c: c.settings(learning_rate={":schedule:": ["os:system", {"val": 1}]}),
    "schedule of text": lambda c: c.settings(
        learning_rate={":schedule:": ["stable_baselines3.common.utils:FloatSchedule", {"value_schedule": "x"}]}
    ),
    "schedule with more attributes": lambda c: c.settings(
        learning_rate={":schedule:": ["stable_baselines3.common.utils:ConstantSchedule", {"val": 1, "__class__": 2}]}
    ),
    "array of objects": lambda c: c.settings(_last_obs={":array:": ["|O", [1], "AAAAAAAAAAA="]}),
    "array with less than it says": lambda c: c.settings(_last_obs={":array:": ["<f4", [10**9], "AAAA"]}),
    "space that is none": lambda c: c.settings(observation_space={":space:": {"kind": "Text"}}),
    "space as text": lambda c: c.settings(observation_space="Box"),
    "impossible space": lambda c: c.settings(action_space={":space:": {"kind": "Discrete", "n": -3, "start": 0}}),
    # What is set
    "method": lambda c: c.settings(predict=None),
    "dunder": lambda c: c.settings(__class__=None),
    "environment by its name": lambda c: c.settings(env="os:Env-v0"),
    "name that is none": lambda c: c.settings(**{"a.b": 1}),
    "setting is missing": lambda c: c.without_setting("observation_space"),
    "policy_kwargs are a list": lambda c: c.settings(policy_kwargs=[1]),
    "unknown policy_kwargs": lambda c: c.settings(policy_kwargs={"shell": "true"}),
    "seed is text": lambda c: c.settings(seed="1; true"),
    "impossible setting": lambda c: c.settings(gamma=7.0),
    "other format": lambda c: c.but(rgrl__json=json.dumps({"format": 99, "data": {}})),
    "settings are a list": lambda c: c.but(rgrl__json="[]"),
    "settings are no JSON": lambda c: c.but(rgrl__json="{"),
    "settings are deep": lambda c: c.but(rgrl__json=nested(100_000)),
    "settings are no text": lambda c: c.but(rgrl__json=b"\xff\xfe\xfa"),
    # Bombs
    "compressed": lambda c: c.zip(c.entries, zipfile.ZIP_DEFLATED),
    "zip bomb": lambda c: c.zip({**c.entries, "bomb": bytes(10**7)}, zipfile.ZIP_DEFLATED),
    "zip bomb in the weights": lambda c: c.compressed_weights(),
    "overlapping entries": lambda c: c.claims_more_than_it_has(),
    "claims two gigabytes": lambda c: c.huge_claim(),
    "enormous buffer": lambda c: c.settings(buffer_size=10**15),
    "enormous net": lambda c: c.settings(policy_kwargs={"net_arch": [10**5, 10**5]}),
    "enormous layer": lambda c: c.settings(policy_kwargs={"net_arch": [10**12]}),
    "enormous ensemble": lambda c: c.settings(ensemble_size=10**9),
    "enormous horizon": lambda c: c.settings(plan_horizon=10**10),
    "enormous space": lambda c: c.settings(observation_space={":space:": {"kind": "Discrete", "n": 10**9, "start": 0}}),
    "enormous number of environments": lambda c: c.settings(n_envs=10**9),
    # Names
    "path upwards": lambda c: c.zip({**c.entries, "../../executed": b"x"}),
    "absolute path": lambda c: c.zip({**c.entries, "/executed": b"x"}),
    "drive": lambda c: c.zip({**c.entries, "C:\\executed": b"x"}),
    "folder": lambda c: c.zip({**c.entries, "executed/": b""}),
    "twice the same name": lambda c: c.zip([*c.entries.items(), ("policy.pth", c.entries["policy.pth"])]),
    # Weights
    "weights of no module": lambda c: c.but(**{"__class__.pth": c.weights({})}),
    "weights of a setting": lambda c: c.but(replay_buffer__pth=c.weights({})),
    "weights are missing": lambda c: c.but(policy__pth=None),
    "weights are a list": lambda c: c.but(policy__pth=c.weights([1])),
    "weights are NaN": lambda c: c.policy(**{"scales.state.mean": th.full((2,), th.nan)}),
    "weights of another shape": lambda c: c.policy(**{"scales.state.mean": th.zeros(5)}),
    "weights are text": lambda c: c.policy(**{"scales.state.mean": "text"}),
    "weights that repeat one number": lambda c: c.policy(**{"scales.state.mean": th.zeros(1).expand(10**6)}),
    "state of the optimizer of another shape": lambda c: c.optimizer(poison_state),
    "state of the optimizer that laughs": lambda c: c.optimizer(laughing),
    "state of the optimizer without groups": lambda c: c.optimizer(without_groups),
    # Damage
    "empty": lambda c: b"",
    "half": lambda c: c.whole[: len(c.whole) // 2],
    "without its end": lambda c: c.whole[:-10],
    "zeros": lambda c: bytes(len(c.whole)),
    "a flipped bit in the weights": lambda c: flipped(c.whole, c.whole.index(c.entries["policy.pth"]) + 2000),
    "a flipped bit in the settings": lambda c: flipped(c.whole, c.whole.index(c.entries["rgrl.json"]) + 100),
}


def flipped(content: bytes, place: int) -> bytes:
    damaged = bytearray(content)
    damaged[place] ^= 4
    return bytes(damaged)


BUFFERS = {
    "a pickle": lambda c: c.bomb,
    "objects": lambda c: c.npz(rewards=np.array([Bomb(c.mark)] * 40, dtype=object)),
    "structured": lambda c: c.npz(rewards=np.zeros(40, dtype=[("a", "f4")])),
    "text": lambda c: c.npz(rewards=np.array(["x"] * 40)),
    "compressed": lambda c: c.zip({"rewards.npy": bytes(10**7)}, zipfile.ZIP_DEFLATED),
    "header claims more": lambda c: c.npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**12,)}"),
    "header claims much": lambda c: c.npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
    "header is negative": lambda c: c.npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-40,)}"),
    "header is code": lambda c: c.npy_header("__import__('os').mkdir('executed')"),
    "header has objects": lambda c: c.npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (40,)}"),
    "path upwards": lambda c: c.zip({"../executed.npy": b"x"}),
    "an agent": lambda c: c.whole,
    "priorities too large": lambda c: c.npz(priorities=np.full((2, 40), 1e308)),
    "more steps were added than there are": lambda c: c.npz(n_added=np.array(3)),
    "half": lambda c: c.buffer[: len(c.buffer) // 2],
    "flipped": lambda c: flipped(c.buffer, c.buffer.index(b"rewards.npy") + 200),
    "reward is missing": lambda c: c.npz(rewards=None),
    "empty": lambda c: b"",
}


def test_there_are_enough():
    assert len(AGENTS) + len(BUFFERS) >= 50


@pytest.mark.parametrize("kind", AGENTS)
def test_agent_is_refused_and_nothing_runs(crafter: Crafter, tmp_path: Path, kind):
    (tmp_path / "agent.zip").write_bytes(AGENTS[kind](crafter))
    before = set(tmp_path.parent.iterdir()) | set(Path.cwd().iterdir())
    with pytest.raises(ValueError, match=r"^The file .*agent\.zip cannot be loaded: ['\w]") as caught:
        RGRL.load(tmp_path / "agent.zip", device="cpu")
    assert len(str(caught.value)) < 1000
    assert not crafter.mark.exists()
    assert set(tmp_path.parent.iterdir()) | set(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("kind", ["pickle in torch's archive", "weights of another shape", "zip bomb in the weights", "half"])
def test_parameters_are_refused_as_well(crafter: Crafter, kind):
    before = {name: tensor.clone() for name, tensor in crafter.model.policy.state_dict().items()}
    with pytest.raises((ValueError, RuntimeError)):
        crafter.model.set_parameters(io.BytesIO(AGENTS[kind](crafter)))
    assert not crafter.mark.exists()
    for name, tensor in crafter.model.policy.state_dict().items():
        assert th.equal(tensor, before[name]), name


def test_untold_pickles_are_not_looked_at(crafter: Crafter):
    # SB3's settings may hold what they like: they are not read.
    for name in ("learning_rate", "something_else"):
        loaded = RGRL.load(io.BytesIO(crafter.pickled_field(name, in_plain=False)), device="cpu")
        assert not crafter.mark.exists()
        assert loaded.learning_rate == 1e-3
    file = crafter.but(pytorch_variables__pth=crafter.weights({"__class__": th.zeros(1), "bomb": Bomb(crafter.mark)}))
    RGRL.load(io.BytesIO(file), device="cpu")
    assert not crafter.mark.exists()


def test_the_bombs_work(crafter: Crafter):
    # Trusted, the same file runs: the tests above would find out.
    RGRL.load(io.BytesIO(crafter.pickled_field("something_else", in_plain=False)), device="cpu", trust=True)
    assert crafter.mark.exists()
    crafter.mark.rmdir()


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffer_is_refused_and_nothing_runs(crafter: Crafter, tmp_path: Path, kind):
    (tmp_path / "buffer.pkl").write_bytes(BUFFERS[kind](crafter))
    before, rewards = crafter.model.replay_buffer, crafter.model.replay_buffer.rewards.copy()
    with pytest.raises(ValueError, match=r"no replay buffer saved by RGRL, or it is damaged: .|saved buffer does not fit"):
        crafter.model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert not crafter.mark.exists()
    assert not (Path.cwd() / "executed").exists()
    assert crafter.model.replay_buffer is before
    np.testing.assert_array_equal(before.rewards, rewards)


def test_agent_of_another_algorithm(tmp_path: Path):
    DQN("MlpPolicy", Drift(), buffer_size=10, device="cpu").save(tmp_path / "dqn")
    with pytest.raises(ValueError, match=r"saved by another algorithm.*trust=True"):
        RGRL.load(tmp_path / "dqn")


def test_checkpoint_with_a_bomb_in_it(crafter: Crafter, tmp_path: Path):
    path = save_checkpoint(crafter.model, tmp_path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(entries["manifest.json"])
    state = json.loads(entries["state.json"])
    harmful = {
        "agent.zip": crafter.but(policy__pth=crafter.weights({"a": Bomb(crafter.mark)})),
        "replay_buffer.npz": crafter.bomb,
        "state.json": json.dumps({**state, "random": {**state["random"], "python": {":class:": "os:system"}}}).encode(),
    }
    for name, content in harmful.items():
        manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
        changed = {**entries, name: content, "manifest.json": json.dumps(manifest)}
        path.write_bytes(crafter.zip(changed))
        with pytest.raises(ValueError, match=r"cannot be loaded|no replay buffer|class 'os:system'"):
            load_checkpoint(path)
        assert not crafter.mark.exists()
        manifest["sha256"][name] = hashlib.sha256(entries[name]).hexdigest()


# What is not hostile loads without trust


class OwnActivation(nn.Module):
    def forward(self, x):
        return x.tanh()


ORDINARY = {
    "activation": {"policy_kwargs": {"net_arch": [8], "activation_fn": nn.Tanh}},
    "optimizer": {"policy_kwargs": {"optimizer_class": optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}},
    "extractor": {"policy_kwargs": {"features_extractor_class": FlattenExtractor}},
    "groups": {"policy_kwargs": {"member_groups": [{"n_members": 1}, {"n_members": 1, "kind": "gru", "net_arch": (5,)}]}},
    "schedule": {"learning_rate": LinearSchedule(1e-2, 1e-3, 0.5)},
    "constant": {"learning_rate": ConstantSchedule(1e-2)},
    "train_freq": {"train_freq": (1, "episode")},
    "numpy numbers": {"desired_reward": [np.float64(1.0), np.float32(2.0)]},
    "buffer": {"replay_buffer_kwargs": {"priority_refresh": "all"}},
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_agents_need_no_trust(kind):
    model = RGRL("MlpEnsemblePolicy", Drift(), **{"seed": 0, **TINY, **ORDINARY[kind]}).learn(30)
    file = io.BytesIO()
    model.save(file)
    loaded, trusted = RGRL.load(file), RGRL.load(file, trust=True)
    for name, value in vars(trusted).items():
        if name not in ("policy", "ewc", "replay_buffer", "lr_schedule", "learning_rate", "start_time"):
            np.testing.assert_equal(getattr(loaded, name), value, err_msg=name)
            assert type(getattr(loaded, name)) is type(value), name
    assert loaded.lr_schedule(0.4) == model.lr_schedule(0.4)
    expected = model.predict(OBSERVATION, deterministic=True)[1][0]
    np.testing.assert_array_equal(loaded.predict(OBSERVATION, deterministic=True)[1][0], expected)


def test_schedule_of_the_zoo():
    file = io.BytesIO()
    RGRL("MlpEnsemblePolicy", Drift(), **TINY, learning_rate=linear_schedule(1e-2)).save(file)
    assert RGRL.load(file).lr_schedule(0.5) == 5e-3


OWN_CODE = {
    "learning_rate": {"learning_rate": lambda progress: 1e-3 * progress},
    "policy_kwargs": {"policy_kwargs": {"activation_fn": OwnActivation}},
}


@pytest.mark.parametrize("kind", OWN_CODE)
def test_own_code_needs_trust_or_to_be_given(kind):
    file = io.BytesIO()
    with pytest.warns(UserWarning, match=rf"{kind} \(.*custom_objects=\{{'{kind}'.*trust=True"):
        RGRL("MlpEnsemblePolicy", Drift(), **{**TINY, **OWN_CODE[kind]}).save(file)
    with pytest.raises(ValueError, match=rf"{kind} \(.*custom_objects=\{{'{kind}'.*trust=True"):
        RGRL.load(file)
    for loaded in (
        RGRL.load(file, custom_objects=OWN_CODE[kind]),
        RGRL.load(file, trust=True),
        RGRL.load(file, **OWN_CODE[kind]),
    ):
        assert loaded.predict(OBSERVATION)[0].shape == ()


def test_own_policy_is_given(tmp_path: Path):
    class OwnPolicy(MlpEnsemblePolicy):
        pass

    with pytest.warns(UserWarning, match="policy_class"):
        RGRL(OwnPolicy, Drift(), **TINY).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="policy_class"):
        RGRL.load(tmp_path / "agent")
    assert type(RGRL.load(tmp_path / "agent", custom_objects={"policy_class": OwnPolicy}).policy) is OwnPolicy


SPACES = [
    spaces.Box(-1.0, np.inf, (2, 3)),
    spaces.Box(0, 255, (1, 4, 4), np.uint8),
    spaces.Discrete(4, start=-1),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(5),
    spaces.MultiBinary([2, 3]),
    spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,))),
    spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_go_on_where_they_were(space):
    space.seed(3)
    space.sample()
    again = rebuild(json.loads(json.dumps(describe(space))))
    assert again == space
    assert again.dtype == space.dtype
    for _ in range(3):
        np.testing.assert_equal(again.sample(), space.sample())


def test_files_that_sb3_can_read_as_ever(crafter: Crafter):
    data = json.loads(crafter.entries["data"])
    pickled = cloudpickle.loads(base64.b64decode(data["policy_class"][":serialized:"]))
    assert pickled is MlpEnsemblePolicy
