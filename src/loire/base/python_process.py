"""Python processes that take no code from the folder in which they are started.

`python -m` and `python -c` put the working directory first among the places of modules: in a
folder that was downloaded, its torch.py would run instead of the library. So `loire` takes it out
before it imports anything, and starts its own processes by this file, which is also a program:

    python python_process.py MODULE [ARGUMENT ...]

runs a module as `python -m` does, with this very package wherever `loire` is imported. (Python
3.11 has -P for it, 3.10 has nothing.) PYTHONPATH, the user's site and editable installs count as
always; only an empty entry of PYTHONPATH, which means the working directory, does not.
"""

# Nothing is imported before the path is right but what every Python has imported by itself.
import os
import sys


def leave_working_directory() -> None:
    """Take the working directory out of sys.path where nobody asked for it in so many words."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        here = ""
    # What `-m` (the directory) or `-c` (nothing) put in front.
    if sys.path and sys.path[0] in ("", here) and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if "" in named and here not in map(os.path.abspath, filter(None, named)):
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module by this Python, without the working directory.

    It is to be started with python_environment().
    """
    flags = (
        ("-I", sys.flags.isolated),
        ("-E", sys.flags.ignore_environment),
        ("-s", sys.flags.no_user_site),
    )
    given = [flag for flag, is_set in flags if is_set]
    return [sys.executable, *given, os.path.abspath(__file__), module, *arguments]


def python_environment() -> dict[str, str]:
    """This process's environment; PYTHONPATH without empty entries."""
    environment = dict(os.environ)
    if "PYTHONPATH" in environment:
        entries = filter(None, environment["PYTHONPATH"].split(os.pathsep))
        environment["PYTHONPATH"] = os.pathsep.join(entries)
    return environment


def _take_this_package() -> None:
    """Let `loire` be the package that this file belongs to, wherever it lies."""
    from importlib.util import module_from_spec, spec_from_file_location

    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = spec_from_file_location(
        "loire", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules["loire"] = package
    spec.loader.exec_module(package)


def _main() -> None:
    # Python puts the folder of a program in front: here that of this file, loire/base.
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    _take_this_package()
    from runpy import run_module

    del sys.argv[0]
    run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
