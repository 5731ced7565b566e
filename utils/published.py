"""Published scores of the same task, each with what it depends on, as its source tells it."""

import pandas as pd

UNSAID = "not stated"
COLUMNS = ["system", "split", "n", "modes", "text", "decoding", "bleu_1", "bleu_4", "meteor", "rouge_l",
           "cider", "bertscore_f1", "bertscore_model", "source"]  # fmt: skip
SCORES = COLUMNS[6:12]
# One study scored several systems alike.
STUDY = {"split": "test", "n": 9927, "modes": "all", "text": UNSAID, "decoding": UNSAID,
         "bertscore_model": "deberta-xlarge-mnli, no idf",
         "source": "github.com/Munteanu-Matei/rocov2-medical-vlm"}  # fmt: skip


def row(system: str, scores: tuple, **details) -> dict:
    """Return one line: a system, its scores in the order of ``SCORES``, and what they depend on."""
    unsaid = dict.fromkeys(("split", "modes", "text", "decoding", "bertscore_model"), UNSAID)
    return {**unsaid, **details, "system": system, **dict(zip(SCORES, scores, strict=True))}


ROWS = (
    row("BLIP-2, zero-shot", (0.1516, 0.0091, 0.0984, 0.1252, 0.0350, 0.5195), **STUDY),
    row("BLIP-2 OPT-2.7B, LoRA, 12k images", (0.0815, 0.0120, 0.1113, 0.1543, 0.0931, 0.6441),
        **STUDY | {"decoding": "5 beams, 8 to 40 new tokens, no repeated trigram"}),
    row("Qwen3-VL-4B, LoRA, 12k images", (0.1564, 0.0293, 0.1544, 0.1914, 0.1950, 0.6764), **STUDY),
    row("BioMedCLIP + Qwen2.5-1.5B", (0.1754, 0.0316, 0.1638, 0.1886, 0.1885, 0.6708), **STUDY),
    row("BLIP2-OPT-6.7B int8, LoRA, 7k images", (0.129, 0.022, 0.063, 0.175, 0.117, None),
        split="validation (called test)", n=6600, modes="RGB", text="PTB tokens",
        decoding="greedy, cut at 25 tokens", bertscore_model="none",
        source="github.com/Shakkak/Medical-Image-Captioning-blip2-opt-6.7b"),
    row("ResNet-50 + LSTM, 15k images", (0.1762, 0.0278, 0.1766, 0.2059, 0.1688, 0.8579),
        bertscore_model="roberta-large", source="github.com/naomiJosebashvili/rocov2-image-captioning"),
    row("BLIP-base, LoRA, 10 % of the data", (0.0545, None, 0.0278, 0.0892, 0.0401, None),
        bertscore_model="none", source="github.com/Apa2002/MedImageCaption_BLIP_LoRA_ROCOv2"),
)  # fmt: skip


def published_table(ours: list[dict], others: list[dict]) -> pd.DataFrame:
    """Put our rows above published ones, by system; "–" where there is no figure."""
    table = pd.DataFrame([*ours, *others]).reindex(columns=COLUMNS).astype(object)
    for name in ("n", *SCORES):
        form = ",.0f" if name == "n" else ".4f"
        table[name] = [f"{value:{form}}" if pd.notna(value) else "–" for value in table[name]]
    return table.set_index("system").rename_axis(None)
