"""The command `pyro-hrssm`, and `python -m pyro_hrssm`."""

import os


def main() -> None:
    """Run the command line, whose pictures are files, whatever backend the shell of a notebook names."""
    # Matplotlib reads the name when it is first imported, so that this precedes the import of the commands.
    os.environ["MPLBACKEND"] = "Agg"
    from pyro_hrssm import cli

    cli.main()


if __name__ == "__main__":
    main()
