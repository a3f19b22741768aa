"""RGRL in rl_zoo3: the literal commands, the start-up hook, the registration and the sampler."""

import colorsys
import contextlib
import importlib.util
import inspect
import io
import os
import pickle
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import optuna
import pytest
import yaml

from sb3_rgrl import RGRL, HerSequenceReplayBuffer
from sb3_rgrl.policies import MlpEnsemblePolicy
from sb3_rgrl.zoo import __main__ as zoo_main
from sb3_rgrl.zoo import default_config_path, register
from sb3_rgrl.zoo.sampler import convert_rgrl_params, sample_rgrl_params

REPO = Path(__file__).resolve().parents[1]
HOOK_DIR = REPO / "zoo_hook"
SWITCH = "SB3_RGRL_NO_ZOO_HOOK"

# As little work as possible that still plans and learns.
TINY = [
    *("learning_starts:60", "train_freq:30", "gradient_steps:1", "batch_size:8", "ensemble_size:2"),
    *("plan_horizon:4", "sequence_length:2", "n_plan_iterations:1", "n_candidates:4"),
]
# Keys of the hyperparameter file that the zoo takes out before it calls the constructor.
ZOO_KEYS = {"n_timesteps", "n_envs", "env_wrapper", "vec_env_wrapper", "frame_stack", "normalize", "callback", "env_kwargs"}

# ------------------------------------------------------------------ helpers


def run(command: list, cwd: Path, env: dict, ok: bool = True) -> str:
    """Run a command, check its exit status and return all it printed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, f"{command} ended with {done.returncode}:\n{output}"
    return output


def python(code: str, *options: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a bare interpreter that takes in no site-packages: milliseconds instead of seconds."""
    env = {**os.environ, **variables}
    command = [sys.executable, "-I", "-S", *options, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def hook_env(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Environment variables under which the hook works, whether the package is installed or only checked out."""
    env = {key: value for key, value in os.environ.items() if key != SWITCH}
    env.update(OMP_NUM_THREADS="1", MPLBACKEND="agg", SDL_VIDEODRIVER="dummy")
    if importlib.util.find_spec("_sb3_rgrl_hook") is None:
        site_dir = tmp_path_factory.mktemp("site")
        (site_dir / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(HOOK_DIR)!r})\n")
        env["PYTHONPATH"] = os.pathsep.join([str(site_dir), str(REPO)])
    return env


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, hook_env: dict) -> tuple[Path, str]:
    """A working directory with ``logs/`` of a short run, and what the command printed."""
    cwd = tmp_path_factory.mktemp("zoo")
    command = [*zoo_command(), "train", "--algo", "rgrl", "--env", "CartPole-v1", "-n", 150, "--seed", 0, "--progress"]
    command += ["--vec-env", "subproc", "--eval-freq", 100, "--eval-episodes", 1, "--num-threads", 1, "-params", *TINY]
    return cwd, run(command, cwd, hook_env)


def zoo_command() -> list[str]:
    """The console script beside this Python."""
    script = shutil.which("rl_zoo3", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "rl_zoo3.cli"]


def zoo(cwd: Path, *command: object, module: str | None = None) -> str:
    """
    A command of the zoo in this process, which saves the imports, each some seconds.

    :param command: What stands after ``rl_zoo3``, or, with a module, after ``python -m rl_zoo3.<module>``.
    :return: What it printed.
    """
    from rl_zoo3 import cli

    register()
    mpl.use("agg")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("default")  # errors in these tests, but those of the zoo are not ours
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # as it was run here before
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["rl_zoo3", *map(str, command)])
        if module is None:
            cli.main()
        else:
            runpy.run_module(f"rl_zoo3.{module}", run_name="__main__", alter_sys=True)
    return printed.getvalue()


# ------------------------------------------------------------------ the literal commands


def test_train(trained: tuple[Path, str]) -> None:
    cwd, output = trained
    run_path = cwd / "logs" / "rgrl" / "CartPole-v1_1"
    assert f"Loading hyperparameters from: {default_config_path()}" in output
    for name in ("CartPole-v1.zip", "best_model.zip", "evaluations.npz", "0.monitor.csv", "CartPole-v1/config.yml"):
        assert (run_path / name).is_file(), name


def test_enjoy(trained: tuple[Path, str], hook_env: dict) -> None:
    command = [*zoo_command(), "enjoy", "--algo", "rgrl", "--env", "CartPole-v1", "-f", "logs", "--no-render", "-n", 60]
    assert "Mean reward" in run(command, trained[0], hook_env)


CONFIG = """
CartPole-v1:
  n_timesteps: 240
  policy: MlpEnsemblePolicy
  n_envs: 2
  normalize: "dict(norm_obs=True, norm_reward=False)"
  learning_rate: lin_0.001
  policy_kwargs: "dict(net_arch=[16])"
  callback:
    - stable_baselines3.common.callbacks.LogEveryNTimesteps:
        n_steps: 100
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A run by a file of hyperparameters with checkpoints and buffer: where, how, and what it printed."""
    cwd = tmp_path_factory.mktemp("configured")
    tiny = "".join(f"  {setting.replace(':', ': ')}\n" for setting in TINY)
    (cwd / "mine.yml").write_text(CONFIG + tiny)
    options = ["--algo", "rgrl", "--env", "CartPole-v1", "--conf-file", "mine.yml", "--eval-freq", "120"]
    options += ["--eval-episodes", "2", "--save-freq", "120", "--save-replay-buffer", "--num-threads", "1"]
    return cwd, options, zoo(cwd, "train", *options, "--seed", 0)


def test_file_of_hyperparameters(configured: tuple[Path, list[str], str]) -> None:
    """Normalization, a schedule, a callback and several environments, all from YAML."""
    cwd, _, output = configured
    run_path = cwd / "logs" / "rgrl" / "CartPole-v1_1"
    assert "Normalization activated: {'norm_obs': True, 'norm_reward': False" in output
    for name in ("best_model.zip", "rl_model_120_steps.zip", "rl_model_240_steps.zip", "replay_buffer.pkl"):
        assert (run_path / name).is_file(), name
    assert (run_path / "CartPole-v1" / "vecnormalize.pkl").is_file()
    # LogEveryNTimesteps of the file, on top of every fourth episode
    assert "total_timesteps | 100" in output
    agent = RGRL.load(run_path / "CartPole-v1.zip")
    assert (agent.num_timesteps, agent.n_envs, agent.policy.net_arch) == (240, 2, [16])
    assert agent.lr_schedule(0.5) == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        (["--load-best"], "best_model.zip"),
        (["--load-checkpoint", "120"], "rl_model_120_steps.zip"),
        (["--load-last-checkpoint"], "rl_model_240_steps.zip"),
        (["--stochastic"], "CartPole-v1.zip"),
        (["--n-envs", "2"], "CartPole-v1.zip"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_enjoy_each(configured: tuple[Path, list[str], str], options: list[str], loaded: str) -> None:
    output = zoo(configured[0], "enjoy", "--algo", "rgrl", "--env", "CartPole-v1", "-f", "logs", "--exp-id", 1, "--no-render",
                 "-n", 120, "--num-threads", 1, *options)  # fmt: skip
    assert f"CartPole-v1_1/{loaded}" in output
    assert ("Mean reward" in output) == ("--n-envs" not in options)


def test_continue_then_plot(configured: tuple[Path, list[str], str]) -> None:
    cwd, options, _ = configured
    first = "logs/rgrl/CartPole-v1_1/CartPole-v1.zip"
    output = zoo(cwd, "train", *options, "-n", 240, "-i", first, "-params", "learning_rate:0.002", "--seed", 1)
    for line in ("Loading pretrained agent", "Loading replay buffer", "Loading saved VecNormalize stats"):
        assert line in output
    second = cwd / "logs" / "rgrl" / "CartPole-v1_2"
    agent = RGRL.load(second / "CartPole-v1.zip")
    assert (agent.num_timesteps, agent.lr_schedule(1.0)) == (240, 0.002)
    agent.load_replay_buffer(second / "replay_buffer.pkl")
    assert agent.replay_buffer.size() == 240 + 240
    assert agent._n_updates > RGRL.load(cwd / first)._n_updates

    zoo(cwd, "plot_train", "-a", "rgrl", "-e", "CartPole", "-f", "logs", "-w", 2)
    output = zoo(cwd, "all_plots", "-a", "rgrl", "-e", "CartPole-v1", "-f", "logs", "--no-display", "-o", "plots")
    assert re.search(r"\|CartPole-v1 *\|\d+ \+/- \d+", output)
    assert "CartPole-v1" in pickle.loads((cwd / "plots.pkl").read_bytes())
    zoo(cwd, "plot_from_file", "-i", "plots.pkl", "-o", "figure.png", "--format", "png")
    assert (cwd / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_record_video(configured: tuple[Path, list[str], str]) -> None:
    pytest.importorskip("pygame", reason="needs the extra `examples`")
    options = ["--algo", "rgrl", "--env", "CartPole-v1", "-f", "logs", "--exp-id", 1, "-n", 20, "-o", "videos"]
    zoo(configured[0], *options, module="record_video")
    (video,) = (configured[0] / "videos").glob("*.mp4")
    assert video.stat().st_size > 0


@pytest.mark.slow
def test_benchmark(configured: tuple[Path, list[str], str], hook_env: dict) -> None:
    """Measures every agent in a folder. It calls the enjoy.py of the zoo's own checkout, which is this line."""
    cwd = configured[0]
    (cwd / "enjoy.py").write_text("from rl_zoo3.enjoy import enjoy\n\nenjoy()\n")
    env = {**hook_env, "PATH": os.pathsep.join([str(Path(sys.executable).parent), hook_env["PATH"]])}
    options = ["--log-dir", "logs", "--benchmark-dir", "bench", "-n", 100, "--no-hub", "--num-threads", 1]
    output = run([sys.executable, "-m", "rl_zoo3.benchmark", *options], cwd, env)
    assert re.search(r"Mean reward: [\d.]+ \+- [\d.]+", output)
    assert re.search(r"\|rgrl\|CartPole-v1\|", (cwd / "bench" / "benchmark.md").read_text().replace(" ", ""))


@pytest.mark.slow
def test_optimize_in_two_processes_at_once(tmp_path: Path, hook_env: dict) -> None:
    """Both take their trials from one journal, and count them together."""
    command = [*zoo_command(), "train", "--algo", "rgrl", "--env", "CartPole-v1", "-n", 60, "--eval-episodes", 1]
    command += ["--num-threads", 1, "--storage", "study.log", "--study-name", "study", "--sampler", "random"]
    command += ["-optimize", "--max-total-trials", 4, "--no-optim-plots"]
    processes = [
        subprocess.Popen([*map(str, command), "--seed", seed, "-f", f"logs{seed}"], cwd=tmp_path, env=hook_env,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for seed in ("1", "2")
    ]  # fmt: skip
    for process in processes:
        output = process.communicate()[0]
        assert process.returncode == 0, output
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    trials = optuna.load_study(study_name="study", storage=storage).trials
    # Two processes may each begin the last trial.
    assert 4 <= len(trials) <= 5
    assert all(trial.state.is_finished() and trial.state != optuna.trial.TrialState.FAIL for trial in trials)


def test_show_agent(trained: tuple[Path, str], hook_env: dict, tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="needs the extra `examples`")
    command = [sys.executable, REPO / "examples" / "show_agent.py", "--n-eval-episodes", 2, "--output-dir", tmp_path]
    output = run(command, trained[0], hook_env)
    assert re.search(r"CartPole-v1: mean return [\d.]+ ± [\d.]+ over 2 episodes", output)
    assert (tmp_path / "CartPole-v1-learning-curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "CartPole-v1-episode.gif").read_bytes().startswith(b"GIF8")


def test_optimize_without_hook(tmp_path: Path, hook_env: dict) -> None:
    """The documented way round the hook; in the same breath the search and the loading of a trial."""
    env = {**hook_env, SWITCH: "1"}
    common = ["-m", "sb3_rgrl.zoo", "train", "--algo", "rgrl", "--env", "CartPole-v1", "-n", 240, "--eval-episodes", 1]
    # With this seed the first trial has learning_starts of 100, and the second one the default of 200: both learn.
    common += ["--num-threads", 1, "--seed", 13, "--storage", "study.log", "--study-name", "study"]
    output = run([sys.executable, *common, "-optimize", "--n-trials", 2, "--no-optim-plots"], tmp_path, env)
    assert "Number of finished trials:  2" in output
    assert len(list((tmp_path / "logs" / "rgrl").glob("report_*.csv"))) == 1
    assert "Loading from Optuna study" in run([sys.executable, *common, "--trial-id", 1], tmp_path, env)


# ------------------------------------------------------------------ the start-up hook


@pytest.fixture
def fake_zoo(tmp_path: Path) -> Path:
    """Stand-ins for rl_zoo3 and sb3_rgrl which import in no time; the file `broken` makes ours fail."""
    files = {
        "rl_zoo3/__init__.py": "from rl_zoo3.utils import ALGOS",
        "rl_zoo3/utils.py": "ALGOS = {}",
        "rl_zoo3/exp_manager.py": "",
        "sb3_rgrl/__init__.py": "",
        "sb3_rgrl/zoo/__init__.py": "",
        "sb3_rgrl/zoo/registration.py": (
            "import pathlib\n"
            "if (pathlib.Path(__file__).parent / 'broken').exists():\n"
            "    raise ImportError('no such\\nthing')\n"
            "def extend(module):\n"
            "    print('extended', module.__name__, type(module.__loader__).__name__)\n"
        ),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def hooked(program: str, fake_zoo: Path) -> str:
    """A program that runs as if the hook were installed in its site-packages."""
    return f"import site, sys; sys.path.insert(0, {str(fake_zoo)!r}); site.addsitedir({str(HOOK_DIR)!r}); {program}"


def test_hook_extends_only_what_is_imported(fake_zoo: Path) -> None:
    done = python(hooked("print('waiting', 'sb3_rgrl' in sys.modules); import rl_zoo3; print('done')", fake_zoo))
    assert done.stdout.split("\n")[:-1] == ["waiting False", "extended rl_zoo3.utils SourceFileLoader", "done"]
    assert done.stderr == ""


def test_hook_installs_once(fake_zoo: Path) -> None:
    again = "import _sb3_rgrl_hook as h; h.install(); h.install(); print(sys.meta_path.count(h)); import rl_zoo3"
    assert python(hooked(again, fake_zoo)).stdout.split("\n")[:-1] == ["1", "extended rl_zoo3.utils SourceFileLoader"]


def test_hook_survives_reload(fake_zoo: Path) -> None:
    done = python(hooked("import importlib, rl_zoo3.utils; importlib.reload(rl_zoo3.utils)", fake_zoo))
    assert done.stdout.count("extended rl_zoo3.utils") == 2


def test_hook_failure_is_one_line(fake_zoo: Path) -> None:
    (fake_zoo / "sb3_rgrl" / "zoo" / "broken").touch()
    done = python(hooked("import rl_zoo3.exp_manager; print('alive')", fake_zoo), "-W", "error")
    assert done.stdout == "alive\n"
    assert re.fullmatch(r"sb3-rgrl: .*\(ImportError: no such thing\).*SB3_RGRL_NO_ZOO_HOOK=1.*\n", done.stderr)


def test_hook_without_package_is_one_line(fake_zoo: Path) -> None:
    shutil.rmtree(fake_zoo / "sb3_rgrl")
    done = python(hooked("import rl_zoo3; print('alive')", fake_zoo))
    assert done.stdout == "alive\n"
    assert done.stderr.count("\n") == 1


def test_hook_can_be_switched_off(fake_zoo: Path) -> None:
    program = hooked("import rl_zoo3; print(sys.modules['_sb3_rgrl_hook'] in sys.meta_path)", fake_zoo)
    assert python(program, **{SWITCH: "1"}).stdout == "False\n"
    assert python(program, **{SWITCH: "0"}).stdout == "extended rl_zoo3.utils SourceFileLoader\nTrue\n"


def test_hook_imports_nothing() -> None:
    code = f"import os, sys; sys.path.insert(0, {str(HOOK_DIR)!r}); old = set(sys.modules); import _sb3_rgrl_hook; "
    assert python(code + "print(*set(sys.modules) - old)", "-B").stdout == "_sb3_rgrl_hook\n"


def test_hook_start_up_cost(tmp_path: Path) -> None:
    """A ratio, as machines differ and are busy: 0.7 of a module of a hundred lines, likewise from a folder of its own."""
    for name, source in (("_sb3_rgrl_hook", HOOK_DIR / "_sb3_rgrl_hook.py"), ("small", Path(colorsys.__file__))):
        (tmp_path / name).mkdir()
        shutil.copy(source, tmp_path / name / f"{name}.py")
    folders = f"import os, sys; sys.path[:0] = [{str(tmp_path / 'small')!r}, {str(tmp_path / '_sb3_rgrl_hook')!r}]; "
    reports = [python(folders + "import small, _sb3_rgrl_hook", "-X", "importtime").stderr for _ in range(15)]
    hook, small = (
        min(int(re.search(rf"\| +(\d+) \| +{name}\n", report)[1]) for report in reports)
        for name in ("_sb3_rgrl_hook", "small")
    )
    assert hook < 1.2 * small


def test_start_file_names_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEP 829: the entry point must resolve, and lie in a file of the same name as the .pth file that it replaces."""
    monkeypatch.syspath_prepend(HOOK_DIR)
    (start,) = HOOK_DIR.glob("*.start")
    lines = [line for line in start.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert [pkgutil.resolve_name(line).__name__ for line in lines] == ["install"]
    assert start.with_suffix(".pth").is_file()


# ------------------------------------------------------------------ registration and sampler


def test_register_is_idempotent() -> None:
    from rl_zoo3 import ALGOS, exp_manager, hyperparams_opt

    register()
    init = exp_manager.ExperimentManager.__init__
    register()
    assert exp_manager.ExperimentManager.__init__ is init
    assert ALGOS["rgrl"] is RGRL
    # What `replay_buffer_class: HerSequenceReplayBuffer` in a YAML file comes to.
    assert eval("HerSequenceReplayBuffer", vars(exp_manager)) is HerSequenceReplayBuffer
    assert hyperparams_opt.HYPERPARAMS_SAMPLER["rgrl"] is sample_rgrl_params
    assert hyperparams_opt.HYPERPARAMS_CONVERTER["rgrl"] is convert_rgrl_params


@pytest.mark.parametrize(
    ("algo", "config", "expected"),
    [("rgrl", None, str(default_config_path())), ("rgrl", "mine.yml", "mine.yml"), ("dqn", "mine.yml", "mine.yml")],
)
def test_default_config(algo: str, config: str | None, expected: str) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    register()
    assert ExperimentManager(None, algo, "CartPole-v1", "logs", config=config).config == expected


def test_default_config_of_other_algorithms() -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    register()
    assert Path(ExperimentManager(None, "dqn", "CartPole-v1", "logs").config).parent.parent.name == "rl_zoo3"
    assert "trial_id" in inspect.signature(ExperimentManager).parameters


def test_hyperparameter_file() -> None:
    entries = yaml.safe_load(default_config_path().read_text())
    known = set(inspect.signature(RGRL).parameters) | ZOO_KEYS
    assert {"default", "atari", "CartPole-v1", "Pendulum-v1", "LunarLander-v3"} <= set(entries)
    for env_id, entry in entries.items():
        assert set(entry) <= known, env_id
        assert entry["n_timesteps"] > 0, env_id
        assert entry["policy"] in RGRL.policy_aliases, env_id


@pytest.mark.parametrize(("env_id", "n_actions"), [("CartPole-v1", 0), ("Pendulum-v1", 1)])
def test_sampler_gives_constructor_arguments(env_id: str, n_actions: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        params = sample_rgrl_params(trial, n_actions, n_envs=1, additional_args={})
        assert set(params) <= set(inspect.signature(RGRL).parameters)
        assert 10 <= params["plan_horizon"] <= 30
        assert params["n_candidates"] % params["ensemble_size"] == 0
        assert params["gradient_steps"] >= 1
        # What the zoo makes of a stored trial is what the trial had been run with.
        assert convert_rgrl_params(trial.params) == params
        # Choices have no mean.
        assert ("plan_temperature" in params["policy_kwargs"]) == ("action_init_std" in params) == (n_actions > 0)
        # A trial of before this was searched.
        policy_kwargs = dict(params["policy_kwargs"])
        earlier = {name: value for name, value in trial.params.items() if name != "uneven_actions"}
        assert policy_kwargs.pop("uneven_actions") == trial.params["uneven_actions"]
        assert convert_rgrl_params(earlier) == {**params, "policy_kwargs": policy_kwargs}
    RGRL("MlpEnsemblePolicy", env_id, **params)


@pytest.mark.parametrize("n_actions", [0, 1])
def test_second_trial_has_the_defaults(n_actions: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = [sample_rgrl_params(study.ask(), n_actions, n_envs=1, additional_args={}) for _ in range(5)]
    defaults = inspect.signature(RGRL).parameters
    in_policy = inspect.signature(MlpEnsemblePolicy).parameters
    second = dict(sampled[1])
    policy_kwargs = second.pop("policy_kwargs")
    assert second.pop("train_freq") == defaults["train_freq"].default[0]
    assert second == {name: defaults[name].default for name in second}
    assert policy_kwargs == {name: in_policy[name].default for name in policy_kwargs}
    # Once, and nothing is left that waits for its turn.
    assert [trial.user_attrs.get("defaults", False) for trial in study.trials] == [False, True, False, False, False]


@pytest.mark.parametrize("argv", [[], ["trein"]])
def test_module_names_its_scripts(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["sb3_rgrl.zoo", *argv])
    assert zoo_main.main() == 2
    assert "train, enjoy" in capsys.readouterr().err
