"""Families of transformers' multimodal generation tables that have no row, each with its reason."""

MIXED = (
    "encoder and decoder: the encoder reads words and media together, so that its states would not tell the two apart"
)
SEAMLESS = (
    "encoder and decoder: the decoder looks for the padding id among the last values of the embeddings that it is given, "
    "and counts positions by them"
)
T5 = "encoder and decoder: T5's attention, with a bias by distance and `layer` in place of `layers`"
SAME = "same class as another row: "

UNBUILDABLE: dict[str, str] = {
    # another row's class
    "glmga": SAME + "glm46v",
    "shieldgemma2": SAME + "gemma3",
    "pp_chart2table": SAME + "got_ocr2",
    "qwen2_5_omni": "a thinker (row qwen2_5_omni_thinker) with a talker and a vocoder around it, whose forward is "
    "not defined",
    "qwen3_omni_moe": "a thinker (row qwen3_omni_thinker) with a talker and a vocoder around it, whose forward is "
    "not defined",
    "mistral4": "text only",
    # no autoregressive text
    "pi0": "outputs robot actions by flow matching, not tokens",
    "diffusion_gemma": "denoises blocks of tokens: no next-token logits",
    "dia": "outputs audio codes",
    "vibevoice": "outputs audio",
    "pop2piano": "outputs notes",
    # no prompt positions that hold media
    "blip": "a BERT captioner: cross-attention, no placeholders, no `layers`",
    "git": "prepends the image inside the model: the prompt has no positions for it, and there is no `layers`",
    "evolla": "reads protein sequences, by cross-attention adapters",
    "kyutai_speech_to_text": "every position sums a text token and 32 audio codes: input_ids has three dimensions",
    "voxtral_realtime": "adds sound to every position, generated ones too: generate needs more sound than forward "
    "takes",
    # towers that cannot be made small or still
    "vibevoice_asr": "samples noise for its audio latents unless forward gets sample=False, which is not a tensor",
    "nemo_speechlm": "an encoder of two pretrained models (recognition and diarisation) with a word-timestamp model",
    # encoder and decoder
    "florence2": MIXED,
    "t5gemma2": MIXED,
    "udop": MIXED,
    "pix2struct": T5,
    "seamless_m4t": SEAMLESS,
    "seamless_m4t_v2": SEAMLESS,
    "speech-encoder-decoder": "a container of any two models: the family of its decoder says what works (as the rows donut "
    "and trocr of vision-encoder-decoder)",
    "speecht5": "encoder and decoder: its attention is not transformers' attention interface",
}
