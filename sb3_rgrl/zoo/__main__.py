"""
``python -m sb3_rgrl.zoo <script> ...``: the RL Zoo's scripts with RGRL among the algorithms.

Does what ``rl_zoo3 <script>`` and ``python -m rl_zoo3.<script>`` do, without relying on the start-up hook.
"""

from __future__ import annotations

import runpy
import sys

from sb3_rgrl.zoo.registration import register

# Scripts of the command `rl_zoo3`, and those that the zoo has as modules only.
COMMANDS = ("train", "enjoy", "plot_train", "plot_from_file", "all_plots")
MODULES = ("benchmark", "record_training", "record_video", "load_from_hub")
OWN = ("push_to_hub",)


def _usage() -> str:
    """
    :return: how to call this module
    """
    return (
        "usage: python -m sb3_rgrl.zoo SCRIPT [ARGUMENTS OF THE SCRIPT]\n"
        f"scripts: {', '.join(COMMANDS + MODULES + OWN)}\n"
        "example: python -m sb3_rgrl.zoo train --algo rgrl --env CartPole-v1"
    )


def main() -> int:
    """
    :return: exit status
    """
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    if script in ("-h", "--help"):
        print(_usage())
        return 0
    if script not in COMMANDS + MODULES + OWN:
        problem = f"unknown script {script!r}" if script else "which script?"
        print(f"sb3_rgrl.zoo: {problem}\n{_usage()}", file=sys.stderr)
        return 2
    register()
    if script in OWN:
        # The zoo's script, and what belongs into the card of an agent that plans.
        from sb3_rgrl.zoo import push_to_hub

        return push_to_hub.main(sys.argv[2:])
    if script in COMMANDS:
        from rl_zoo3 import cli

        cli.main()  # type: ignore[no-untyped-call]
    else:
        del sys.argv[1]
        runpy.run_module(f"rl_zoo3.{script}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
