"""Compiled losses are the same losses, and where nothing can be compiled learning goes on without."""

import shutil
import warnings

import numpy as np
import pytest
import torch as th

from sb3_rgrl import RGRL, compiling
from sb3_rgrl.losses import _end_losses

SMALL = {"n_candidates": 4, "plan_horizon": 3, "n_plan_iterations": 1, "ensemble_size": 2, "learning_starts": 20, "seed": 0}
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
# Of torch itself, when it compiles.
ignores_torch = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


def learned(n_steps=60, **policy_kwargs):
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs={"net_arch": [8], **policy_kwargs}, **SMALL)
    return model.learn(n_steps)


@needs_compiler
@ignores_torch
def test_what_is_learned_is_the_same():
    plain, fast = (learned(windows_per_sample=1, compile_losses=compiled) for compiled in (False, True))
    assert plain._n_updates == fast._n_updates > 0
    for one, other in zip(plain.policy.parameters(), fast.policy.parameters(), strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_compiler
@ignores_torch
def test_ends_that_are_nearly_certain_or_hardly_thought_of_are_as_without():
    # Compiled, expm1 loses all digits near 0: the surprise by an end that was hardly thought of would be infinite.
    logits = th.tensor([-100.0, -69.0, -40.0, -17.0, -8.0, -1.0, -0.4, 0.0, 0.4, 3.0, 20.0, 100.0])
    logits = th.stack([logits, logits.flip(0)], dim=-1)[None]
    for ended in (0.0, 1.0):
        alive, terminated = th.tensor([1.0, 1.0 - ended]), th.tensor([ended, ended])
        both = []
        for function in (_end_losses, compiling.compiled(_end_losses)):
            leaf = logits.clone().requires_grad_()
            losses = function(leaf, terminated.expand_as(leaf), alive.expand_as(leaf))
            both.append((losses, *th.autograd.grad(losses.sum(), leaf)))
        for plain, fast in zip(*both, strict=True):
            assert th.isfinite(fast).all()
            th.testing.assert_close(plain, fast, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_it_warns_once_and_learns(monkeypatch):
    def broken(graph, inputs, options=None):
        raise OSError("no g++ here")

    compile_with = th.compile
    monkeypatch.setattr(compiling.th, "compile", lambda function, **kwargs: compile_with(function, backend=broken, **kwargs))
    compiling.compiled.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"cannot compile window_errors here.*no g\+\+ here.*C\+\+ compiler"):
            fast = learned(compile_losses=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fast.learn(20)
    finally:
        compiling.compiled.cache_clear()
    plain = learned(compile_losses=False).learn(20)
    for one, other in zip(plain.policy.parameters(), fast.policy.parameters(), strict=True):
        assert th.equal(one, other)


def test_units_and_priorities_are_not_compiled(monkeypatch):
    # Numbers of windows differ each time there, and every number would be compiled anew.
    called = []

    def watched(function):
        def call(*args):
            called.append(args[3].indices.shape)
            return function(*args)

        return call

    monkeypatch.setattr("sb3_rgrl.expecting.compiled", watched)
    model = learned(compile_losses=True)
    assert called == [(2, 64)] * model._n_updates
    called.clear()
    model.policy.window_errors(model.replay_buffer.windows(np.zeros((2, 3), dtype=int)), thin=False)
    assert called == []


def test_it_is_saved_with_agent_and_policy(tmp_path):
    model = learned(0, compile_losses=True)
    model.save(tmp_path / "agent")
    assert RGRL.load(tmp_path / "agent").policy.compile_losses
    model.policy.save(str(tmp_path / "policy"))
    assert type(model.policy).load(str(tmp_path / "policy")).compile_losses
