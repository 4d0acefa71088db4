"""Everything that scripts/reproduce.py can make, by name.

The paper's ten artefacts are in tables.py and figures.py, this project's own in own.py, speed.py, transformer.py and
transformer_sweep.py: a new one is an `Artefact` in the dictionary of one of these files, and nothing else has to know.
A study measures the measures.
"""

from scripts.artefacts.figures import FIGURES
from scripts.artefacts.own import OWN
from scripts.artefacts.speed import SPEED
from scripts.artefacts.tables import TABLES
from scripts.artefacts.transformer import TRANSFORMER
from scripts.artefacts.transformer_sweep import SWEEP

PAPER = TABLES | FIGURES
ARTEFACTS = PAPER | OWN | SPEED | TRANSFORMER | SWEEP
STUDIES = {  # name -> (title, what it needs)
    "metrics": ("Motion metrics against the truth (toy world)", "no model; about four minutes of CPU"),
    "measures": ("Graded measures: floor, ceiling, repeatability (toy world)", "a model of the toy world; a minute"),
}
