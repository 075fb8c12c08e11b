"""All families. A new one is a file beside this and a line here."""

from collections.abc import Mapping

from loire.checkpoint.families.deepseek import (
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GLM4_MOE_LITE,
    KIMI_K2,
)
from loire.checkpoint.families.exaone4 import EXAONE4
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gemma import GEMMA, GEMMA2, GEMMA3
from loire.checkpoint.families.gemma4 import GEMMA4, GEMMA4_UNIFIED
from loire.checkpoint.families.glm4 import GLM4
from loire.checkpoint.families.gpt_oss import GPT_OSS
from loire.checkpoint.families.granite import GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED
from loire.checkpoint.families.granite_hybrid import GRANITE_MOE_HYBRID
from loire.checkpoint.families.lfm2 import LFM2, LFM2_MOE
from loire.checkpoint.families.llama import LLAMA, MISTRAL
from loire.checkpoint.families.ministral3 import MINISTRAL3
from loire.checkpoint.families.mixtral import MIXTRAL
from loire.checkpoint.families.muse_glimmer import MUSE_GLIMMER
from loire.checkpoint.families.nemotron_h import NEMOTRON_H, NEMOTRON_H_MOE_FILES
from loire.checkpoint.families.olmo import OLMO2, OLMO3
from loire.checkpoint.families.olmoe import OLMOE
from loire.checkpoint.families.phi import PHI3
from loire.checkpoint.families.qwen import QWEN2, QWEN3
from loire.checkpoint.families.qwen_hybrid import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from loire.checkpoint.families.qwen_moe import QWEN3_MOE
from loire.checkpoint.families.seed_oss import SEED_OSS
from loire.checkpoint.families.smollm3 import SMOLLM3

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    MINISTRAL3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    QWEN3_NEXT,
    QWEN3_5,
    QWEN3_5_MOE,
    GEMMA,
    LFM2,
    LFM2_MOE,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    GEMMA4_UNIFIED,
    PHI3,
    SMOLLM3,
    GRANITE,
    GRANITE_MOE,
    GRANITE_MOE_SHARED,
    GRANITE_MOE_HYBRID,
    NEMOTRON_H,
    SEED_OSS,
    MIXTRAL,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    KIMI_K2,
    GLM4_MOE_LITE,
    GLM4,
    EXAONE4,
    GPT_OSS,
    OLMO2,
    OLMO3,
    OLMOE,
    MUSE_GLIMMER,
)

BY_MODEL_TYPE: Mapping[str, Family] = {family.model_type: family for family in FAMILIES}
"""model_type of config.json -> family."""
BY_WRAPPER: Mapping[str, Family] = {
    model_type: family for family in FAMILIES for model_type in family.text_of
}
"""model_type of a model of text and more -> the family of its text_config."""
BY_ARCHITECTURE: Mapping[str, GGUFFamily] = {
    files.architecture: files
    for files in (*(family.gguf for family in FAMILIES), NEMOTRON_H_MOE_FILES)
    if files is not None
}
"""general.architecture of a GGUF file -> how it is read."""
