"""The recipes in examples/, imported as modules."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "examples" / "configs"


def load_recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_randsac, _mae, _saim, _apl, _esvit, _combined = (
    load_recipe(name) for name in ("randsac", "mae", "saim", "apl", "esvit", "combined")
)
RandSACConfig, assemble = _randsac.RandSACConfig, _randsac.assemble
MAEConfig, assemble_mae = _mae.MAEConfig, _mae.assemble
SAIMConfig, assemble_saim = _saim.SAIMConfig, _saim.assemble
APLConfig, assemble_apl = _apl.APLConfig, _apl.assemble
EsViTConfig, assemble_esvit = _esvit.EsViTConfig, _esvit.assemble
CombinedConfig, assemble_combined = _combined.CombinedConfig, _combined.assemble
RECIPES = {
    "randsac": (RandSACConfig, assemble),
    "mae": (MAEConfig, assemble_mae),
    "saim": (SAIMConfig, assemble_saim),
    "apl": (APLConfig, assemble_apl),
    "esvit": (EsViTConfig, assemble_esvit),
    "combined": (CombinedConfig, assemble_combined),
}
