"""`python -m pyro_hrssm` is `pyro-hrssm`."""

from pyro_hrssm.cli import main

if __name__ == "__main__":
    main()
